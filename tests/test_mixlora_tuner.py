"""The mixture as a PEFT method: everything a user of PEFT does with an adapter, on a tiny Llama."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from uq4ct.adapters import AdapterError, MixLoraConfig, record_routing
from uq4ct.adapters.layers import FfnMixture, LoraLinear, MixtureLinear
from uq4ct.adapters.published import write_published

IDS = torch.tensor([[5, 3, 9, 1, 7], [2, 2, 8, 4, 6]])
ROUTINGS = ["ffn_block", "per_linear"]


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")


def tiny_llama(seed: int = 0, layers: int = 2, dtype: torch.dtype = torch.float32, **options) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_key_value_heads=1, num_hidden_layers=layers, **options)
    return LlamaForCausalLM(config).to(dtype).eval()


def mixture_config(**options) -> MixLoraConfig:
    return MixLoraConfig(**{"r": 3, "num_experts": 4, "task_type": "CAUSAL_LM", **options})


def train_a_little(model: nn.Module, seed: int = 1) -> None:
    """Give every trainable tensor values that matter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)


def adapted(routing: str = "ffn_block", dtype: torch.dtype = torch.float32, **options) -> PeftModel:
    model = get_peft_model(tiny_llama(dtype=dtype), mixture_config(routing=routing, **options))
    train_a_little(model)
    return model.eval()


def routers(model: nn.Module) -> int:
    return sum(isinstance(module, (FfnMixture, MixtureLinear)) for module in model.modules())


# ---- what is trained


@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_adapter_tensor_gets_a_gradient_and_no_base_tensor_does(routing):
    model = adapted(routing)
    model(IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == ("uqmoe_" in name), name


def test_ffn_block_has_one_router_per_layer_and_plain_lora_on_attention():
    model = adapted()
    assert routers(model) == 2
    assert sum(isinstance(module, LoraLinear) for module in model.modules()) == 2 * 4
    layer = model.base_model.model.model.layers[0]
    assert layer.mlp.uqmoe_router["default"].shape == (4, 16)
    assert layer.mlp.uqmoe_gate_A["default"].shape == (4 * 3, 16)
    assert layer.mlp.uqmoe_down_B["default"].shape == (16, 4 * 3)
    assert layer.self_attn.q_proj.uqmoe_A["default"].shape == (3, 16)


def test_per_linear_has_one_router_per_linear():
    assert routers(adapted("per_linear")) == 2 * 7


def test_initial_values_follow_the_recipe():
    model = get_peft_model(tiny_llama(), mixture_config(r=64, num_experts=8))
    mlp = model.base_model.model.model.layers[0].mlp
    A = mlp.uqmoe_down_A["default"]
    assert A.abs().max() <= 24**-0.5  # kaiming_uniform(a = sqrt 5) with the fan-in of one expert
    assert A.abs().max() > 0.99 * 24**-0.5
    assert mlp.uqmoe_down_B["default"].abs().max() == 0
    assert 0.015 < mlp.uqmoe_router["default"].std() < 0.025


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
def test_an_untrained_adapter_is_the_base_model(routing, mixing):
    base = tiny_llama()(IDS).logits
    model = get_peft_model(tiny_llama(), mixture_config(routing=routing, mixing=mixing)).eval()
    torch.testing.assert_close(model(IDS).logits, base, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_one_expert_equals_peft_lora_with_the_same_weights(routing, use_rslora):
    with pytest.warns(UserWarning, match="FEU is identically 1"):
        config = mixture_config(routing=routing, num_experts=1, top_k=1, use_rslora=use_rslora)
    ours = get_peft_model(tiny_llama(dtype=torch.float64), config).eval()
    train_a_little(ours)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=3, lora_alpha=32, use_rslora=use_rslora, target_modules=names)
    theirs = get_peft_model(tiny_llama(dtype=torch.float64), lora).eval()
    weights = {name: value for name, value in ours.named_parameters() if "uqmoe_" in name}
    with torch.no_grad():
        for path, module in theirs.named_modules():
            if not hasattr(module, "lora_A"):
                continue
            parent, leaf = path.rsplit(".", 1)
            for factor in "AB":
                block = f"{parent}.uqmoe_{leaf.removesuffix('_proj')}_{factor}.default"
                own = f"{path}.uqmoe_{factor}.default"
                getattr(module, f"lora_{factor}")["default"].weight.copy_(weights.get(block, weights.get(own)))
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=1e-10, atol=1e-10)


def test_fewer_experts_in_some_layers():
    model = adapted(num_experts=[3, 5])
    with record_routing(model) as routing:
        model(IDS)
    assert [layer.probabilities.shape[-1] for layer in routing.layers] == [3, 5]


def test_only_named_projections_are_adapted():
    model = adapted(target_modules=["v_proj", "down_proj"])
    names = {name.split("uqmoe_")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"A.default", "B.default", "router.default", "down_A.default", "down_B.default"}
    assert adapted(target_modules=["mlp"]).peft_config["default"].target_modules == ["mlp"]
    assert routers(adapted("per_linear", target_modules=r".*layers\.1\..*(q|v)_proj")) == 2
    assert routers(adapted("per_linear", target_modules="all-linear")) == 14


# ---- PEFT's operations


@pytest.mark.parametrize("routing", ROUTINGS)
def test_disabling_the_adapter_gives_the_base_model_bit_for_bit(routing):
    base, model = tiny_llama()(IDS).logits, adapted(routing)
    before = model(IDS).logits
    assert not torch.allclose(before, base, atol=1e-3)
    with model.disable_adapter(), record_routing(model) as record:
        assert torch.equal(model(IDS).logits, base)
    assert record.layers == ()
    assert torch.equal(model(IDS).logits, before)
    assert torch.equal(model.unload()(IDS).logits, base)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_outputs_are_bit_equal(tmp_path, routing, low_cpu_mem_usage):
    model = adapted(routing, mixing="raw", num_experts=[4, 3])
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    ours, theirs = get_peft_model_state_dict(model), get_peft_model_state_dict(loaded)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert any(
        p.requires_grad for p in PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True).parameters()
    )


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_router_temperature_divides_the_logits_of_every_router(tmp_path, routing):
    warm, plain = adapted(routing, router_temperature=2.5), adapted(routing)
    for module in plain.modules():
        if isinstance(module, (FfnMixture, MixtureLinear)):
            module.uqmoe_router["default"].data /= 2.5
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient), record_routing(warm) as ours, record_routing(plain) as theirs:
            assert torch.allclose(warm(IDS).logits, plain(IDS).logits, atol=1e-6)
        for one, other in zip(ours.layers, theirs.layers, strict=True):
            assert torch.allclose(one.probabilities, other.probabilities, atol=1e-6)
    entropy = [(-r.probabilities * r.probabilities.log()).sum(-1).mean() for r in ours.layers]
    with record_routing(sharp := adapted(routing)) as cold:
        sharp(IDS)
    assert all(e > (-r.probabilities * r.probabilities.log()).sum(-1).mean() for e, r in zip(entropy, cold.layers, strict=True))
    sum(layer.kept.sum() for layer in ours.layers).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in warm.named_parameters() if "uqmoe_router" in n)
    warm.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(loaded(IDS).logits, warm(IDS).logits)
    if routing == "ffn_block":
        with pytest.raises(ValueError, match=r"router_temperature 1\.0 only, got 2\.5"):
            write_published(warm, tmp_path / "published")


def test_a_fresh_process_loads_the_same_outputs(tmp_path):
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    model = adapted()
    model.save_pretrained(tmp_path / "adapter")
    torch.save(model(IDS).logits, tmp_path / "expected.pt")
    script = (
        "import sys, torch, uq4ct.adapters\n"
        "from peft import PeftModel\n"
        "from transformers import LlamaForCausalLM\n"
        "torch.set_num_threads(1)\n"
        "base = LlamaForCausalLM.from_pretrained(sys.argv[1] + '/base')\n"
        "model = PeftModel.from_pretrained(base, sys.argv[1] + '/adapter').eval()\n"
        f"logits = model(torch.tensor({IDS.tolist()})).logits\n"
        "assert torch.equal(logits, torch.load(sys.argv[1] + '/expected.pt'))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_second_adapter_lives_beside_the_first(tmp_path, routing):
    model = adapted(routing)
    first = model(IDS).logits
    model.add_adapter("other", mixture_config(routing=routing, r=2, num_experts=3, top_k=1, mixing="raw"))
    assert torch.equal(model(IDS).logits, first)
    model.set_adapter("other")
    train_a_little(model, seed=2)
    model.eval()
    second = model(IDS).logits
    assert not torch.allclose(first, second)
    model.save_pretrained(tmp_path)
    alone = PeftModel.from_pretrained(tiny_llama(), tmp_path / "other").eval()
    assert torch.equal(alone(IDS).logits, second)
    model.set_adapter("default")
    assert torch.equal(model(IDS).logits, first)
    alone.load_adapter(tmp_path, "again")
    alone.set_adapter("again")
    assert torch.equal(alone(IDS).logits, first)
    model.delete_adapter("other")
    assert torch.equal(model(IDS).logits, first)
    with pytest.raises(ValueError, match="one mixture adapter can be active"):
        alone.base_model.set_adapter(["default", "again"])


def test_adapters_of_one_model_have_the_same_routing():
    model = adapted("ffn_block")
    with pytest.raises(AdapterError, match="same routing"):
        model.add_adapter("other", mixture_config(routing="per_linear"))
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_bfloat16_base_keeps_float32_adapters_and_its_own_activations(routing):
    model = get_peft_model(tiny_llama(dtype=torch.bfloat16), mixture_config(routing=routing))
    trainable = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert trainable == {torch.float32}
    assert model(IDS).logits.dtype == torch.bfloat16
    with record_routing(model) as record:
        model(IDS, labels=IDS).loss.backward()
    assert record.layers[0].probabilities.dtype == torch.float32
    same = get_peft_model(tiny_llama(dtype=torch.bfloat16), mixture_config(), autocast_adapter_dtype=False)
    assert {parameter.dtype for parameter in same.parameters()} == {torch.bfloat16}
    assert same(IDS).logits.dtype == torch.bfloat16


def test_an_untrained_adapter_on_a_bfloat16_base_is_the_base_bit_for_bit():
    base = tiny_llama(dtype=torch.bfloat16)(IDS).logits
    model = get_peft_model(tiny_llama(dtype=torch.bfloat16), mixture_config()).eval()
    assert torch.equal(model(IDS).logits, base)


def test_autocast_trains():
    model = adapted()
    with torch.autocast("cpu", dtype=torch.bfloat16), record_routing(model) as record:
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    assert record.layers[0].probabilities.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_merging_is_refused_with_the_reason_and_changes_nothing(routing):
    model = adapted(routing)
    before = model(IDS).logits
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match="depends on the input"):
            merge()
    assert torch.equal(model(IDS).logits, before)


def test_another_adapter_per_row_is_refused():
    with pytest.raises(ValueError, match="once per adapter"):
        adapted()(IDS, adapter_names=["__base__", "default"])


class PackedLinear(nn.Linear):
    """A linear stored in eight bits, as bitsandbytes does it: its weight is no number to compute with."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.register_buffer("scale", linear.weight.detach().abs().max() / 127)
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_quantised_base_is_called_and_never_read(routing):
    def packed() -> LlamaForCausalLM:
        model = tiny_llama()
        for layer in model.model.layers:
            for parent in (layer.self_attn, layer.mlp):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(parent, name, PackedLinear(child))
        return model

    model = get_peft_model(packed(), mixture_config(routing=routing)).eval()
    torch.testing.assert_close(model(IDS).logits, packed()(IDS).logits)
    train_a_little(model)
    model(IDS, labels=IDS).loss.backward()
    trained = [p for n, p in model.named_parameters() if "uqmoe_" in n]
    assert all(p.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in trained)


def test_transformers_loads_the_adapter_by_itself(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(tmp_path / "base"), mixture_config())
    train_a_little(model)
    model.eval().save_pretrained(tmp_path / "adapter")
    expected = model(IDS).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()(IDS).logits, expected)
    assert torch.equal(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()(IDS).logits, expected)


def test_dropout_is_on_in_training_only():
    model = adapted(lora_dropout=0.5)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    model.eval()
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_a_deep_copy_is_independent():
    model = adapted()
    twin = copy.deepcopy(model)
    before = model(IDS).logits
    train_a_little(twin, seed=5)
    assert torch.equal(model(IDS).logits, before)
    assert not torch.allclose(twin(IDS).logits, before)


def test_generation_with_a_cache_equals_generation_without():
    model = adapted()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(input_ids=IDS, use_cache=True, **options)
    assert torch.equal(cached, model.generate(input_ids=IDS, use_cache=False, **options))


def test_left_padding_does_not_change_what_real_tokens_get():
    model = adapted()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(IDS)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with record_routing(model) as alone:
        expected = model(IDS).logits
    with record_routing(model) as with_padding:
        found = model(padded, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(found[:, 3:], expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(alone.layers, with_padding.layers, strict=True):
        torch.testing.assert_close(other.probabilities[:, 3:], one.probabilities)


# ---- the recorder


def routing_gradients(model: PeftModel) -> list[torch.Tensor]:
    model.zero_grad()
    with record_routing(model) as record:
        loss = model(IDS, labels=IDS).loss
    captured = len(record.layers)
    (loss + sum(layer.kept.sum(-1).mean() for layer in record.layers)).backward()
    assert len(record.layers) == captured == routers(model)
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_checkpointing_changes_neither_the_captures_nor_the_gradients(routing):
    model = adapted(routing, lora_dropout=0.0).train()
    plain = routing_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = routing_gradients(model)
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_loss_on_the_routing_alone_reaches_the_router_under_checkpointing():
    model = adapted().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with record_routing(model) as record:
        model(IDS)
    sum(layer.kept.sum() for layer in record.layers).backward()
    for module in model.modules():
        if isinstance(module, FfnMixture):
            assert module.uqmoe_router["default"].grad.abs().sum() > 1e-8


def test_backward_inside_the_context_does_not_add_captures():
    model = adapted().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with record_routing(model) as record:
        loss = model(IDS, labels=IDS).loss
        assert len(record.layers) == 2
        loss.backward()
    assert len(record.layers) == 2


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_a_loud_error():
    model = adapted().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(RuntimeError, match="use_reentrant"), record_routing(model):
        model(IDS, labels=IDS)
    with torch.no_grad(), record_routing(model) as record:
        model(IDS)
    assert len(record.layers) == 2


def test_frozen_routers_may_be_recorded_without_a_graph():
    model = adapted()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with record_routing(model) as record:
        model(IDS)
    assert len(record.layers) == 2


def test_the_record_is_closed_when_the_context_ends():
    model = adapted()
    with record_routing(model) as record:
        model(IDS)
    kept = record.layers
    model(IDS.flip(0))
    assert record.layers is kept
    assert all(module.captured is None for module in model.modules() if isinstance(module, FfnMixture))


def test_parallel_and_nested_recordings_do_not_mix():
    one, other = adapted(), adapted("per_linear")
    with record_routing(one) as first, record_routing(other) as second:
        one(IDS)
        other(IDS)
    assert (len(first.layers), len(second.layers)) == (2, 14)
    with record_routing(one) as outer:
        one(IDS)
        with record_routing(one) as inner:
            one(IDS.flip(0))
    assert torch.equal(outer.layers[0].first, inner.layers[0].first.flip(0))


def test_a_failing_forward_leaves_the_routers_clean():
    model = adapted()
    with pytest.raises(IndexError), record_routing(model):
        model(IDS + 1000)
    assert not any(m.recording or m.captured for m in model.modules() if isinstance(m, FfnMixture))


def test_recording_sees_through_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(adapted().train())
        with record_routing(model) as record:
            loss = model(IDS, labels=IDS).loss
        (loss + sum(layer.kept.sum() for layer in record.layers)).backward()
        assert len(record.layers) == 2
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_compiled_model_with_a_recorder_has_no_graph_break_and_the_same_gradients():
    model = adapted(lora_dropout=0.0).train()
    plain = routing_gradients(model)
    torch._dynamo.reset()
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with record_routing(compiled) as record:
        loss = compiled(IDS, labels=IDS).loss
    (loss + sum(layer.kept.sum(-1).mean() for layer in record.layers)).backward()
    torch._dynamo.reset()
    assert len(record.layers) == 2
    for one, other in zip(plain, [p.grad for p in model.parameters() if p.requires_grad], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_compiled_layer_has_no_graph_break_where_it_drops_inputs():
    model = adapted(lora_dropout=0.5).train()
    module = model.base_model.model.model.layers[0].mlp
    hidden = torch.randn(2, 5, 16)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert not torch.equal(compiled(hidden), compiled(hidden))
    torch._dynamo.reset()


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_compiled_layer_has_no_graph_break_and_records(routing):
    model = adapted(routing)
    module = model.base_model.model.model.layers[0].mlp
    hidden = torch.randn(2, 5, 16)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with record_routing(model) as eager:
        expected = module(hidden)
    with record_routing(model) as traced:
        found = compiled(hidden)
    torch.testing.assert_close(found, expected)
    assert len(traced.layers) == len(eager.layers) > 0
    assert traced.layers[0].kept.requires_grad
    torch.testing.assert_close(compiled(hidden), expected)
    torch._dynamo.reset()


# ---- mistakes and foreign files


def test_all_problems_of_a_configuration_are_reported_at_once():
    with pytest.raises(ValueError, match="mixing") as caught:
        MixLoraConfig(r=0, lora_alpha=-1, lora_dropout=1.0, top_k=9, mixing="both", routing="no", router_init_range=-1,
                      router_temperature=0)  # fmt: skip
    problems = caught.value.problems
    assert [problem.split(":")[0] for problem in problems] == [
        "r",
        "lora_alpha",
        "lora_dropout",
        "router_init_range",
        "router_temperature",
        "routing",
        "mixing",
        "top_k",
    ]
    assert "9 is larger than the 8 experts" in problems[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": [4, 1]}, "larger than the 1 experts to choose from in layer 1"),
        ({"num_experts": []}, "num_experts"),
        ({"r": "16"}, "r: expected a whole number"),
        ({"lora_dropout": float("nan")}, "lora_dropout"),
        ({"target_modules": []}, "target_modules"),
        ({"ffn_sites": {"up": "mlp.w1"}}, "ffn_sites: expected the keys"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MixLoraConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": [4, 4, 4]}, "num_experts has 3 entries, but 2 layers"),
        ({"target_modules": ["q_porj", "down_proj"]}, "Did you mean 'q_proj'"),
        ({"target_modules": ["q_proj"]}, "no projection of the FFN"),
        ({"target_modules": "nothing.*"}, "match no linear module"),
        (
            {"ffn_sites": {"gate": "mlp.w1", "up": "mlp.w3", "down": "mlp.w2", "activation": "silu"}},
            "no layer holds all",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_the_model_is_refused(options, message):
    with pytest.raises(AdapterError, match=message):
        get_peft_model(tiny_llama(), mixture_config(**options))


def test_settings_that_defeat_the_method_are_warned_about():
    with pytest.warns(UserWarning, match="FEU is identically 1"):
        MixLoraConfig(num_experts=2, top_k=2)
    with pytest.warns(UserWarning, match="no gradient from cross entropy"):
        MixLoraConfig(top_k=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MixLoraConfig(top_k=1, mixing="raw")
        MixLoraConfig()


def test_a_foreign_configuration_cannot_name_code(tmp_path):
    adapted().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "auto_mapping": {"base_model_class": "system", "parent_library": "os"}}))
    assert PeftConfig.from_pretrained(str(tmp_path)).auto_mapping is None
    path.write_text(json.dumps({**saved, "num_experts": "__import__('os')"}))
    with pytest.raises(AdapterError, match="num_experts"):
        PeftConfig.from_pretrained(str(tmp_path))
    path.write_text(json.dumps({**saved, "from_a_later_version": 1}))
    with pytest.warns(UserWarning, match="from_a_later_version"):
        assert isinstance(PeftConfig.from_pretrained(str(tmp_path)), MixLoraConfig)


def test_saved_configurations_come_back_equal(tmp_path):
    config = mixture_config(num_experts=[4, 5], routing="per_linear", mixing="raw", target_modules=["v_proj"])
    config.save_pretrained(str(tmp_path))
    assert MixLoraConfig.from_pretrained(str(tmp_path)) == config


def test_llama_2_7b_has_the_parameters_that_appendix_a4_counts():
    with torch.device("meta"):
        sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        base = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32000))
    model = get_peft_model(base, MixLoraConfig(), low_cpu_mem_usage=True)
    router = sum(p.numel() for n, p in model.named_parameters() if "uqmoe_router" in n)
    experts = sum(p.numel() for n, p in model.named_parameters() if "uqmoe_" in n) - router
    assert router == 32 * 8 * 4096  # 1.05 M
    assert experts == 202_375_168  # 202.4 M: LoRA of rank 80 on the same modules has 199.9 M
