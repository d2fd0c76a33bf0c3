"""Every supported family on a tiny random model: found, trained, recorded, saved, loaded, and the base left alone."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from torch import nn

from uq4ct.adapters import AdapterError, MixLoraConfig, linear_targets, record_routing
from uq4ct.adapters.layers import FfnMixture, InLayerFfn, LoraLinear, MixtureLinear
from uq4ct.adapters.placement import lora_linears
from uq4ct.adapters.sites import FfnSite, find_ffn_sites, probe
from uq4ct.methods import find

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")

IDS = torch.tensor([[5, 3, 9, 1, 7], [2, 2, 8, 4, 6]])
HEADS = {"num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 24}
SIZES = {**HEADS, "hidden_size": 16, "intermediate_size": 24}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SIZES, "num_key_value_heads": 1}
GATED = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
GEMMA3 = {**GROUPED, "head_dim": 8, **TOKENS}
VISION = {**HEADS, "num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 24, "image_size": 28, "patch_size": 14}
# q, k and v have the same names in the layers of the vision tower, so that only their paths are unambiguous
SHARED = [f"model.language_model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "qkv"]

FAMILIES = {
    "llama": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED, mlp_bias=True)), GATED),
    "mistral": (lambda: tf.MistralForCausalLM(tf.MistralConfig(**GROUPED, head_dim=8)), GATED),
    "qwen2": (lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**GROUPED)), GATED),
    "qwen3": (lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**GROUPED, head_dim=8)), GATED),
    "gemma": (lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**GROUPED, head_dim=8, **TOKENS)), GATED),
    "gemma2": (lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**GROUPED, head_dim=8, **TOKENS)), GATED),
    "gemma3": (lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**GEMMA3)), GATED),
    "gemma3-multimodal": (
        lambda: tf.AutoModelForCausalLM.from_config(
            tf.Gemma3Config(text_config=GEMMA3, vision_config=VISION, mm_tokens_per_image=4)
        ),
        " ".join(["o_proj gate_proj up_proj down_proj", *SHARED]),
    ),
    "phi3": (
        lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**GROUPED, **TOKENS)),
        "qkv_proj o_proj gate_up_proj down_proj",
    ),
    "phi": (lambda: tf.PhiForCausalLM(tf.PhiConfig(**SIZES)), "q_proj k_proj v_proj dense fc1 fc2"),
    "gpt2": (
        lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=32, **TOKENS)
        ),
        "c_attn c_proj c_fc",
    ),
    "gpt_neox": (
        lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES)),
        "query_key_value dense dense_h_to_4h dense_4h_to_h",
    ),
    "opt": (
        lambda: tf.OPTForCausalLM(
            tf.OPTConfig(**HEADS, hidden_size=16, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32)
        ),
        "q_proj k_proj v_proj out_proj fc1 fc2",
    ),
}


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    return FAMILIES[family][0]().eval()


def adapt(base: nn.Module, **options) -> PeftModel:
    model = get_peft_model(base, MixLoraConfig(**{"r": 2, "num_experts": 4, "task_type": "CAUSAL_LM", **options}))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("routing", ["ffn_block", "per_linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_saves_and_loads(family, routing, tmp_path):
    plain = build(family)(input_ids=IDS).logits
    model = adapt(build(family), routing=routing)
    assert model.peft_config["default"].target_modules == sorted(FAMILIES[family][1].split())
    mixtures = [module for module in model.modules() if isinstance(module, (FfnMixture, MixtureLinear))]
    linears = sum(1 if ".layers." in name else 2 for name in FAMILIES[family][1].split()) + (family == "gpt2") * 2
    assert len(mixtures) == (2 if routing == "ffn_block" else linears)

    with record_routing(model) as record:
        output = model(input_ids=IDS, labels=IDS)
    assert [layer.kept.shape for layer in record.layers] == [(2, 5, 4)] * len(mixtures)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if "uqmoe_" in name:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name

    assert not torch.allclose(output.logits, plain, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(family), tmp_path).eval()
    assert torch.equal(loaded(input_ids=IDS).logits, output.logits)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, plain)
    restored = model.unload()
    assert torch.equal(restored(input_ids=IDS).logits, plain)
    assert restored.state_dict().keys() == build(family).state_dict().keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_lora_can_take_the_same_linears(family):
    assert linear_targets(build(family)) == sorted(FAMILIES[family][1].split())


@pytest.mark.parametrize("method", ["lora", "blob", "ivon", "laplace"])
def test_a_vision_tower_is_neither_adapted_nor_counted(method):
    """Nothing of it sees text: a LoRA there is never trained, and takes from the rank that matches the mixture."""
    multimodal, text = build("gemma3-multimodal"), build("gemma3")
    assert len(lora_linears(multimodal)) == len(lora_linears(text)) == 2 * 7
    for options in ({}, {"target_modules": ("q_proj", "v_proj")}):
        fitted = find(method)(**options)
        assert fitted.matched_rank(multimodal) == fitted.matched_rank(text)
        assert fitted.notes(multimodal) == fitted.notes(text)
        shapes = lora_linears(multimodal, fitted.target_modules)
        model = get_peft_model(build("gemma3-multimodal"), fitted.adapter_config(multimodal))
        adapted = {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}
        assert adapted == set(shapes)
        assert all(path.startswith("model.language_model.layers.") for path in adapted)


def test_a_target_outside_the_text_model_is_refused():
    with pytest.raises(AdapterError, match=r"'out_proj' lies outside the text model, e\.g\. model\.vision_tower"):
        find("lora")(rank=2, target_modules=("out_proj",)).adapter_config(build("gemma3-multimodal"))


@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize("family", FAMILIES)
def test_zero_deltas_compute_the_family_s_own_function_in_training_too(family, mixing):
    """Dropout of the base included: GPT-2 and OPT drop after the FFN."""
    base = build(family).double().train()
    torch.manual_seed(3)
    expected = base(input_ids=IDS).logits
    config = MixLoraConfig(r=2, num_experts=4, mixing=mixing, lora_dropout=0.0)
    model = get_peft_model(build(family).double(), config).train()
    torch.manual_seed(3)
    torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-10, atol=1e-10)


def test_attention_gets_plain_lora_with_fused_projections_as_one():
    for family in ("phi3", "gpt2", "gpt_neox"):
        loras = [module for module in adapt(build(family)).modules() if isinstance(module, LoraLinear)]
        assert len(loras) == 2 * 2, family


def test_opt_takes_its_ffn_out_of_the_decoder_layer_and_a_second_adapter_finds_it_again():
    model = adapt(build("opt"))
    layer = model.base_model.model.model.decoder.layers[0]
    assert isinstance(layer.fc1, FfnMixture)
    assert isinstance(layer.fc1.base_layer, InLayerFfn)
    first = model(input_ids=IDS).logits
    model.add_adapter("other", MixLoraConfig(r=2, num_experts=3, task_type="CAUSAL_LM"))
    model.set_adapter("other")
    assert not torch.allclose(model(input_ids=IDS).logits, first)
    model.set_adapter("default")
    assert torch.equal(model(input_ids=IDS).logits, first)


@pytest.mark.parametrize("family", ["gpt2", "opt", "phi3"])
def test_checkpointing_records_each_layer_once(family):
    model = adapt(build(family), lora_dropout=0.0)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        with record_routing(model) as record:
            loss = model(input_ids=IDS, labels=IDS).loss
        (loss + sum(layer.kept.sum() for layer in record.layers)).backward()
        assert len(record.layers) == 2
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


# ---- unknown architectures


class OddFfn(nn.Module):
    """A gated FFN under names that no table knows."""

    def __init__(self, residual: bool = False):
        super().__init__()
        self.w1, self.w3, self.w2 = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.residual = residual

    def forward(self, x):
        y = self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))
        return y + x if self.residual else y


class OddModel(nn.Module):
    def __init__(self, residual: bool = False):
        super().__init__()
        layer = {"mixer": nn.Linear(8, 8), "mlp": OddFfn(residual)}
        self.layers = nn.ModuleList(nn.ModuleDict(layer) for _ in range(1))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["mlp"](x + layer["mixer"](x))
        return self.head(x)


NAMED = {"gate": "mlp.w1", "up": "mlp.w3", "down": "mlp.w2", "activation": "silu"}


def test_an_unknown_architecture_is_refused_with_its_linears_and_the_way_to_name_them():
    with pytest.raises(AdapterError) as caught:
        get_peft_model(OddModel(), MixLoraConfig())
    message = str(caught.value)
    assert "layers.*.mixer, layers.*.mlp.w1, layers.*.mlp.w2, layers.*.mlp.w3" in message
    assert "ffn_sites={'gate': 'mlp.w1'" in message
    assert "per_linear" in message


def test_an_unknown_architecture_can_name_its_ffn(tmp_path):
    torch.manual_seed(0)
    base = OddModel()
    x = torch.randn(2, 5, 8)
    expected = base(x)
    model = get_peft_model(base, MixLoraConfig(ffn_sites=NAMED, lora_dropout=0.0))
    torch.testing.assert_close(model(x), expected)
    with record_routing(model) as record:
        model(x).sum().backward()
    assert len(record.layers) == 1
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_()
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    assert torch.equal(PeftModel.from_pretrained(OddModel(), tmp_path)(x), model(x))


def test_per_linear_works_on_any_architecture():
    model = get_peft_model(OddModel(), MixLoraConfig(routing="per_linear"))
    assert model.peft_config["default"].target_modules == [
        "mixer",
        "w1",
        "w2",
        "w3",
    ]  # the head lies outside the layers
    with record_routing(model) as record:
        model(torch.randn(2, 5, 8))
    assert len(record.layers) == 4


class OwnLinears(nn.Module):
    """A layer that holds the two linears of its FFN itself and may scale what lies between them."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.norm, self.fc1, self.fc2, self.act = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.GELU()
        self.scale, self.dropout = scale, nn.Dropout(0.5)

    def forward(self, x):
        return x + self.dropout(self.fc2(self.scale * self.act(self.fc1(self.norm(x)))))


class OwnFfn(nn.Module):
    """A layer around an ``OddFfn``."""

    def __init__(self, residual: bool = False):
        super().__init__()
        self.mlp = OddFfn(residual)

    def forward(self, x):
        return x + self.mlp(x)


class OddDecoder(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.embed, self.layers, self.head = nn.Embedding(10, 8), nn.ModuleList(layers), nn.Linear(8, 10)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


IN_LAYER = {"up": "fc1", "down": "fc2", "activation": "act"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_does_more_between_its_own_linears_is_refused_and_left_as_it_was(dtype):
    torch.manual_seed(0)
    base = OddDecoder(OwnLinears(), OwnLinears(scale=4.0)).to(dtype)
    names, plain = list(base.state_dict()), base.eval()(IDS)
    base.layers[0].train()
    flags = [module.training for module in base.modules()]
    with pytest.raises(AdapterError, match=r"does not hold here: outputs differ by .* where the largest is"):
        get_peft_model(base, MixLoraConfig(r=2, ffn_sites=IN_LAYER))
    assert [module.training for module in base.modules()] == flags
    assert list(base.state_dict()) == names
    assert torch.equal(base.eval()(IDS), plain)


@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_whose_own_linears_are_an_ffn_is_adapted_and_its_flags_are_kept(dtype, mixing):
    torch.manual_seed(0)
    base = OddDecoder(OwnLinears(), OwnLinears()).to(dtype).train()
    base.layers[0].eval()
    model = get_peft_model(base, MixLoraConfig(r=2, ffn_sites=IN_LAYER, lora_dropout=0.0, mixing=mixing))
    assert sum(isinstance(module, InLayerFfn) for module in model.modules()) == 2
    assert [(layer.training, layer.dropout.training) for layer in base.layers] == [(False, False), (True, True)]
    with model.disable_adapter():
        expected = model.eval()(IDS)
    torch.testing.assert_close(model(IDS), expected)


def test_every_layer_of_a_named_ffn_is_looked_at_and_not_the_first_alone():
    with pytest.raises(AdapterError, match=r"layers\.1\.mlp .*outputs differ"):
        get_peft_model(OddDecoder(OwnFfn(), OwnFfn(residual=True)), MixLoraConfig(ffn_sites=NAMED))
    get_peft_model(OddDecoder(OwnFfn(), OwnFfn()), MixLoraConfig(ffn_sites=NAMED))


def test_linears_of_the_layer_itself_are_not_adapted_unseen():
    """There is no token to try; on the meta device there is nothing to compute with, and nothing to train either."""
    unseen = nn.Sequential(OwnLinears(), nn.Linear(8, 3))
    with pytest.raises(AdapterError, match="has no embedding of tokens"):
        get_peft_model(unseen, MixLoraConfig(ffn_sites=IN_LAYER))
    with torch.device("meta"):
        model = get_peft_model(OddDecoder(OwnLinears(scale=4.0)), MixLoraConfig(ffn_sites=IN_LAYER))
    assert any(isinstance(module, InLayerFfn) for module in model.modules())


BY_HAND = {
    "opt": {"up": "fc1", "down": "fc2", "activation": "activation_fn"},
    "llama": {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "activation": "silu"},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", BY_HAND)
def test_a_known_family_named_by_hand_passes_in_every_dtype(family, dtype, tmp_path):
    base = build(family).to(dtype).train()
    model = get_peft_model(base, MixLoraConfig(r=2, num_experts=4, ffn_sites=BY_HAND[family], task_type="CAUSAL_LM"))
    assert all(module.training for module in base.modules())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(family).to(dtype), tmp_path)
    assert torch.equal(loaded.eval()(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)


@pytest.mark.parametrize("wrong", [{"activation": "gelu"}, {"gate": "mlp.w3", "up": "mlp.w1"}])
def test_a_wrongly_named_ffn_is_noticed_before_training(wrong):
    with pytest.raises(AdapterError, match="does not compute one"):
        get_peft_model(OddModel(), MixLoraConfig(ffn_sites={**NAMED, **wrong}))


def test_an_ffn_that_computes_something_else_is_refused():
    with pytest.raises(AdapterError, match="outputs differ"):
        get_peft_model(OddModel(residual=True), MixLoraConfig(ffn_sites=NAMED))
    with pytest.raises(AdapterError, match="silly' is neither"):
        get_peft_model(OddModel(), MixLoraConfig(ffn_sites={**NAMED, "activation": "silly"}))


def test_the_probe_leaves_random_numbers_and_training_flags_alone():
    ffn = build("gpt2").transformer.h[0].mlp
    site = find_ffn_sites(dict(build("gpt2").named_modules()))[0]
    state = torch.get_rng_state()
    probe(ffn, site)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in ffn.modules())
    without_dropout = FfnSite(site.module, site.kind, site.projections, site.activation)
    with pytest.raises(AdapterError, match="outputs differ"):
        probe(ffn, without_dropout)


def test_the_vision_tower_of_a_multimodal_model_is_left_alone():
    modules = {f"model.vision_tower.layers.0.mlp{name}": module for name, module in _mlp_modules()}
    text = {f"model.language_model.layers.0.mlp{name}": module for name, module in _mlp_modules()}
    assert [site.module for site in find_ffn_sites({**modules, **text})] == ["model.language_model.layers.0.mlp"]


SPARSE = {
    "qwen3_moe": (
        lambda: tf.Qwen3MoeConfig(
            **{**GROUPED, "num_hidden_layers": 4}, head_dim=8, moe_intermediate_size=8, num_experts=4,
            num_experts_per_tok=2, mlp_only_layers=[0]
        ),
        1,
    ),
    "deepseek_v3": (
        lambda: tf.DeepseekV3Config(
            **{**SIZES, "num_hidden_layers": 9}, num_key_value_heads=2, moe_intermediate_size=8, n_routed_experts=4,
            num_experts_per_tok=2, first_k_dense_replace=2, n_group=1, topk_group=1, q_lora_rank=8, kv_lora_rank=8,
            qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        ),
        2,
    ),
}  # fmt: skip


def sparse(family: str) -> nn.Module:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(SPARSE[family][0]()).eval()


@pytest.mark.parametrize("method", ["uq4ct", "lora"])
def test_layers_without_a_known_ffn_are_refused_by_name(method):
    """A router on the others alone would pass for all: FEU and its losses would be of one layer of four."""
    with pytest.raises(AdapterError) as caught:
        find(method)().check(sparse("qwen3_moe"))
    message = str(caught.value)
    assert "3 of 4 layers have none of a known structure: model.layers.1, model.layers.2, model.layers.3. " in message
    assert "ffn_sites={'gate': 'mlp.gate_proj', 'up': 'mlp.up_proj', 'down': 'mlp.down_proj', " in message
    assert "'activation': 'mlp.act_fn'}, as in model.layers.0, puts routers on" in message
    with pytest.raises(AdapterError, match=r"7 of 9 .*: model\.layers\.2, .*4, \.\.\., model\.layers\.8\. "):
        find(method)().check(sparse("deepseek_v3"))
    way_out = {"rank": 2, "target_modules": ("q_proj", "o_proj")} if method == "lora" else {"routing": "per_linear"}
    find(method)(**way_out).check(sparse("qwen3_moe"))


@pytest.mark.parametrize("family", SPARSE)
def test_where_the_sites_are_named_some_layers_may_go_without_a_router_and_the_user_is_told(family):
    parts = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj", "activation": "act_fn"}
    sites = {role: f"mlp.{name}" for role, name in parts.items()}
    method, base, routed = find("uq4ct")(rank=2, num_experts=4, ffn_sites=sites), sparse(family), SPARSE[family][1]
    layers = len(base.model.layers)
    assert method.notes(base) == [f"uq4ct: routers on {routed} of {layers} layers; FEU is the mean over those"]
    plain = base(input_ids=IDS).logits
    model = get_peft_model(base, method.adapter_config(base)).eval()
    assert sum(isinstance(module, FfnMixture) for module in model.modules()) == routed
    torch.testing.assert_close(model(input_ids=IDS).logits, plain)
    assert method.options()["ffn_sites"] == sites
    assert find("uq4ct").model_validate(method.options()) == method


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_a_known_family_has_a_router_and_nothing_is_said(family):
    for routing in ("ffn_block", "per_linear"):
        assert find("uq4ct")(routing=routing).notes(build(family)) == []


def test_an_ffn_named_by_the_parts_of_a_vision_tower_s_is_not_there():
    named = {"up": "mlp.fc1", "down": "mlp.fc2", "activation": "mlp.activation_fn"}
    with pytest.raises(AdapterError, match=r"no layer holds all of mlp\.fc1, mlp\.fc2"):
        get_peft_model(build("gemma3-multimodal"), MixLoraConfig(ffn_sites=named))


def test_the_shared_expert_of_a_real_mixture_model_is_not_taken_for_the_ffn():
    with pytest.raises(AdapterError, match="no known structure"):
        find_ffn_sites({f"model.layers.0.mlp.shared_expert{name}": module for name, module in _mlp_modules()})


def _mlp_modules():
    mlp = build("llama").model.layers[0].mlp
    return [("", mlp), *((f".{name}", module) for name, module in mlp.named_children())]
