"""Every encoder family with both heads on a tiny random model: found, trained, recorded, saved, loaded, taken off."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as tf
from encoder_toys import FAMILIES, HEADS, KINDS, LAYERS, encoder, settings
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from uq4ct.adapters import AdapterError, MixLoraConfig, linear_targets, record_routing
from uq4ct.adapters.layers import FfnMixture, InLayerFfn, MixtureLinear
from uq4ct.adapters.placement import lora_linears
from uq4ct.encoders import draw_head, head_modules, note_new_modules, weights_of, with_head, without_adapters

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
IDS = torch.tensor([[2, 30, 41, 3, 50, 3], [2, 33, 3, 51, 45, 3]])
TWO_PARTS = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta", "deberta-v2", "mpnet"]


def logits(model, kind, ids=IDS):
    """Two sequences: two questions of one choice, or two texts."""
    return model(input_ids=ids[:, None] if kind == "multiple_choice" else ids).logits


def adapt(base, **options):
    config = MixLoraConfig(**{"r": 2, "num_experts": 4, "lora_dropout": 0.0, **options})
    return get_peft_model(base, with_head(config, base)).eval()


def randomise(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "uqmoe_" in name:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("routing", ["ffn_block", "per_linear"])
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_a_family_trains_saves_and_loads(family, kind, routing, tmp_path):
    base = encoder(family, kind)
    plain, names = logits(base, kind), list(base.state_dict())
    model = randomise(adapt(base, routing=routing))
    mixtures = [module for module in model.modules() if isinstance(module, (FfnMixture, MixtureLinear))]
    assert len(mixtures) == (LAYERS if routing == "ffn_block" else len(lora_linears(encoder(family, kind))))
    head = tuple(head_modules(encoder(family, kind)))
    with record_routing(model) as record:
        output = logits(model, kind)
    assert [layer.kept.shape for layer in record.layers] == [(2, 6, 4)] * len(mixtures)
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        trained = "uqmoe_" in name or ".modules_to_save." in name
        assert parameter.requires_grad == trained, name
        if trained:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
    assert {name for name, _ in model.get_base_model().named_modules() if name.endswith("modules_to_save")} == {
        f"{name}.modules_to_save" for name in head
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name:
                parameter.add_(0.1)
    output = logits(model, kind)
    assert not torch.allclose(output, plain, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(encoder(family, kind), tmp_path).eval()
    assert torch.equal(logits(loaded, kind), output)
    with model.disable_adapter():
        assert torch.equal(logits(model, kind), plain)
    restored = without_adapters(model)
    assert torch.equal(logits(restored, kind), plain)
    assert sorted(restored.state_dict()) == sorted(names)


@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_zero_deltas_compute_the_family_s_own_function_in_training_too(family, kind, mixing):
    """Dropout of the base included: BERT and DistilBERT drop after the FFN."""
    base = encoder(family, kind).double().train()
    torch.manual_seed(3)
    expected = logits(base, kind)
    model = adapt(encoder(family, kind).double(), mixing=mixing).train()
    torch.manual_seed(3)
    torch.testing.assert_close(logits(model, kind), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("routing", ["ffn_block", "per_linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_adapter_on_a_bfloat16_encoder_is_the_base_bit_for_bit(family, routing):
    base = encoder(family, "classification").to(torch.bfloat16)
    plain = logits(base, "classification")
    assert torch.equal(logits(adapt(base, routing=routing), "classification"), plain)


@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "deberta-v2"])
def test_an_ffn_mixes_its_experts_as_a_loop_over_them_does(family, mixing):
    """Forward and every gradient, in float64, against whole FFNs with merged weights, one expert at a time."""
    model = randomise(adapt(encoder(family).double(), mixing=mixing))
    mixture = next(module for module in model.modules() if isinstance(module, FfnMixture))
    hidden = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    weights = [p for name, p in mixture.named_parameters() if "uqmoe_" in name]
    found = mixture(hidden)
    expected = loop(mixture, hidden, mixing)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    probe = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    ours = torch.autograd.grad((found * probe).sum(), [hidden, *weights])
    theirs = torch.autograd.grad((expected * probe).sum(), [hidden, *weights])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def loop(mixture, hidden, mixing):
    base, settings = mixture.base_layer, mixture.settings["default"]
    p = (hidden @ mixture.uqmoe_router["default"].T).softmax(-1)
    kept, chosen = p.topk(2, dim=-1)
    weights = kept / kept.sum(-1, keepdim=True) if mixing == "rescaled" else kept
    if isinstance(base, InLayerFfn):
        linears = {"up": base.up, "down": base.down}
    else:
        linears = {role: getattr(base, name) for role, name in mixture.site.projections}
    activation = getattr(base, mixture.site.activation)

    def expert(number, x):
        def linear(role, x):
            y = linears[role](x)
            if number is not None:
                part = slice(2 * number, 2 * number + 2)
                A, B = (getattr(mixture, f"uqmoe_{role}_{side}")["default"] for side in "AB")
                y = y + settings.scaling * (x @ A[part].T) @ B[:, part].T
            return y

        if "gate_up" in linears:
            gate, up = linear("gate_up", x).chunk(2, dim=-1)
            return linear("down", activation(gate) * up)
        return linear("down", activation(linear("up", x)))

    total = torch.zeros_like(hidden)
    for row in range(hidden.shape[0]):
        for token in range(hidden.shape[1]):
            x = hidden[row, token]
            y = sum(weights[row, token, k] * expert(int(chosen[row, token, k]), x) for k in range(2))
            if mixing == "raw":
                y = y + (1 - weights[row, token].sum()) * expert(None, x)  # the mass that was not kept stays with the base
            total[row, token] = y
    return total


@pytest.mark.parametrize("family", TWO_PARTS)
def test_a_second_adapter_finds_the_ffn_again(family):
    model = randomise(adapt(encoder(family, "classification")))
    assert any(isinstance(module.base_layer, InLayerFfn) for module in model.modules() if isinstance(module, FfnMixture))
    first = logits(model, "classification")
    config = with_head(MixLoraConfig(r=2, num_experts=3), encoder(family, "classification"))
    model.add_adapter("other", config)
    model.set_adapter("other")
    assert not torch.allclose(logits(model, "classification"), first)
    model.set_adapter("default")
    assert torch.equal(logits(model, "classification"), first)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_a_plain_lora_takes_the_same_linears_and_nothing_of_the_head(family, kind):
    base = encoder(family, kind)
    names, head = linear_targets(base), tuple(f"{name}." for name in head_modules(base))
    shapes = lora_linears(base, names)
    assert not any(path.startswith(head) for path in shapes)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=names))
    adapted = {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}
    assert adapted == set(shapes)


def test_a_router_never_sits_where_deberta_reads_positions():
    for family, names in (("deberta", ["pos_proj"]), ("deberta-v2", ["query_proj"])):
        with pytest.raises(AdapterError, match=f"'{names[0]}' matches no linear module"):
            get_peft_model(encoder(family, "classification"), MixLoraConfig(routing="per_linear", target_modules=names))


def test_an_ffn_that_is_computed_in_chunks_is_refused():
    for family in ("bert", "distilbert"):
        with pytest.raises(AdapterError, match="chunk_size_feed_forward"):
            adapt(encoder(family, chunk_size_feed_forward=2))


def test_an_encoder_of_an_unknown_structure_is_refused():
    """ALBERT calls one layer again and again: a router there would be recorded once."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "embedding_size": 8}
    albert = tf.AlbertForMultipleChoice(tf.AlbertConfig(vocab_size=90, **sizes))
    with pytest.raises(AdapterError, match="no known structure"):
        get_peft_model(albert, MixLoraConfig())


def test_the_ffn_of_two_parts_can_be_named_with_the_layer_s_own_activation_only():
    named = {"up": "intermediate.dense", "down": "output.dense", "activation": "intermediate.intermediate_act_fn"}
    base = encoder("bert").double()
    plain = logits(base, "multiple_choice")
    torch.testing.assert_close(logits(adapt(base, ffn_sites=named), "multiple_choice"), plain, rtol=1e-10, atol=1e-10)
    with pytest.raises(AdapterError, match="name the layer's own activation"):
        adapt(encoder("bert"), ffn_sites={**named, "activation": "gelu"})


def test_an_activation_that_is_a_function_comes_back_as_one():
    base = encoder("bert")
    for layer in base.bert.encoder.layer:
        del layer.intermediate.intermediate_act_fn
        layer.intermediate.intermediate_act_fn = nn.functional.gelu
    before = logits(base, "multiple_choice")
    restored = without_adapters(adapt(base))
    assert restored.bert.encoder.layer[0].intermediate.intermediate_act_fn is nn.functional.gelu
    assert torch.equal(logits(restored, "multiple_choice"), before)


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "modernbert"])
def test_checkpointing_records_each_layer_once(family):
    model = randomise(adapt(encoder(family))).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StableDropout":
            module.p = module.drop_prob = 0.0

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        with record_routing(model) as record:
            output = logits(model, "multiple_choice")
        (output.square().sum() + sum(layer.kept.sum() for layer in record.layers)).backward()
        assert len(record.layers) == LAYERS
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ---- the head


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_the_head_is_what_lies_behind_the_last_layer(family, kind):
    model = encoder(family, kind)
    head = weights_of(model, head_modules(model))
    inner = type(model).base_model_prefix
    body = {name for name, _ in getattr(model, inner).named_parameters() if not name.startswith("pooler")}
    assert head == {name for name, _ in model.named_parameters()} - {f"{inner}.{name}" for name in body}
    assert head


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_a_new_head_is_a_function_of_the_seed_alone(family, kind):
    def drawn(seed, before):
        model = encoder(family, kind, seed=before)
        assert note_new_modules(model, weights_of(model, head_modules(model))) == []
        draw_head(model, seed)
        return torch.cat([model.get_parameter(name).flatten() for name in sorted(weights_of(model, head_modules(model)))])

    assert torch.equal(drawn(1, before=5), drawn(1, before=6))
    assert not torch.equal(drawn(1, before=5), drawn(2, before=5))
    weight = drawn(1, before=5)
    assert 0.1 < weight[weight.nonzero()].std() < 0.6


def test_only_what_a_checkpoint_lacks_is_drawn():
    model = encoder("bert")
    pooler = copy.deepcopy(model.bert.pooler.state_dict())
    assert note_new_modules(model, {"classifier.weight", "bert.encoder.layer.0.output.dense.bias"}) == [
        "bert.encoder.layer.0.output.dense.bias"
    ]
    before = model.classifier.weight.clone()
    draw_head(model, 1)
    assert not torch.equal(model.classifier.weight, before)
    assert all(torch.equal(value, pooler[name]) for name, value in model.bert.pooler.state_dict().items())


def test_all_families_of_the_table_are_tested_here():
    from uq4ct import encoders

    assert set(FAMILIES) == set(encoders.FAMILIES)
    assert {settings(family).model_type for family in FAMILIES} == set(encoders.FAMILIES)
    assert set(HEADS) == {"multiple_choice", "classification"}
