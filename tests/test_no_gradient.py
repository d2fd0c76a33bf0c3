"""The shorter way of adapted linears where no gradient is wanted, against the way that training takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_toys import mixture, questions

from uq4ct.adapters import no_gradient, record_routing
from uq4ct.adapters.layers import LayerSettings, LoraLinear, MixtureLinear, use_arithmetic
from uq4ct.scoring import score_all

SETTINGS = {"rank": 3, "scaling": 0.7, "dropout": 0.5, "num_experts": 5, "top_k": 2}


def layer_of(kind: type, base: nn.Module | None = None, **options) -> nn.Module:
    torch.manual_seed(0)
    layer = kind(nn.Linear(8, 6) if base is None else base)
    layer.add_adapter("default", LayerSettings(**{**SETTINGS, **options}))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


@pytest.fixture
def taken(monkeypatch) -> list[None]:
    """Note each time that the shorter way is taken."""
    calls, adapt = [], no_gradient.adapt
    monkeypatch.setattr(no_gradient, "adapt", lambda *given: calls.append(None) or adapt(*given))
    return calls


@pytest.mark.parametrize("kind", [LoraLinear, MixtureLinear])
@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (0, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_answer_is_what_training_computes(kind, mixing, shape, dtype, taken):
    layer, x = layer_of(kind, mixing=mixing).to(dtype), torch.randn(shape, dtype=dtype)
    with record_routing(layer) as trained:
        expected = layer(x)
    assert not taken
    before = x.clone()
    with torch.inference_mode(), record_routing(layer) as answered:
        found = layer(x)
    assert taken
    assert torch.equal(x, before)
    torch.testing.assert_close(found, expected.detach())
    for one, other in zip(answered.layers, trained.layers, strict=True):
        assert torch.equal(one.first, other.first)
        torch.testing.assert_close(one.kept, other.kept.detach())
        torch.testing.assert_close(one.probabilities, other.probabilities.detach())


@pytest.mark.parametrize("routing", ["ffn_block", "per_linear"])
def test_a_model_scores_as_by_the_plain_formula(routing, taken):
    model = mixture(dtype=torch.float64, routing=routing)
    short = score_all(model, questions(6), 0, 3)
    assert taken
    use_arithmetic(model, "autograd")
    taken.clear()
    for one, other in zip(short, score_all(model, questions(6), 0, 3), strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-10, atol=1e-10)
    assert not taken


@pytest.mark.parametrize("kind", [LoraLinear, MixtureLinear])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_hook_on_the_base_keeps_what_the_base_computed(kind, everywhere, taken):
    layer, x, seen = layer_of(kind), torch.randn(4, 8), []

    def note(module: nn.Module, given: tuple, output: torch.Tensor) -> None:
        if module is layer.base_layer:
            seen.append(output)

    add = nn.modules.module.register_module_forward_hook if everywhere else layer.base_layer.register_forward_hook
    handle = add(note)
    try:
        with torch.no_grad():
            layer(x)
            assert taken
            assert torch.equal(seen[0], F.linear(x, layer.base_layer.weight, layer.base_layer.bias))
    finally:
        handle.remove()


class Remembers(nn.Linear):
    """A base that gives the same tensor again, as a cache of outputs would."""

    kept = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = super().forward(x) if self.kept is None else self.kept
        return self.kept


@pytest.mark.parametrize("kind", [LoraLinear, MixtureLinear])
@pytest.mark.parametrize("replaced", [False, True])
def test_an_output_that_the_base_keeps_is_not_written_to(kind, replaced, taken):
    base = Remembers(8, 6)
    if replaced:  # as libraries do that move a module's work elsewhere
        plain = nn.Linear(8, 6)
        base.load_state_dict(plain.state_dict())
        plain.forward, base = base.forward, plain
    layer, x = layer_of(kind, base), torch.randn(4, 8)
    with torch.no_grad():
        first = layer(x).clone()
        second = layer(x)
    assert len(taken) == 2
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", [LoraLinear, MixtureLinear])
def test_an_output_of_another_dtype_is_rounded_once_to_it(kind, taken):
    class Half(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).bfloat16()

    layer, x = layer_of(kind, Half(8, 6)), torch.randn(40, 8)
    expected = layer(x).detach()
    with torch.no_grad():
        found = layer(x)
    assert taken
    assert found.dtype == torch.bfloat16
    assert (found != expected).float().mean() < 0.02  # float32 sums in another order, at the edge of a rounding
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [LoraLinear, MixtureLinear])
def test_columns_that_lie_apart_are_added_to_where_they_are(kind):
    class Turned(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).transpose(0, 1).contiguous().transpose(0, 1)

    layer, x = layer_of(kind, Turned(8, 6)), torch.randn(3, 4, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), (use_arithmetic(layer, "autograd"), layer(x))[1])
    assert not no_gradient._is_the_callers_own(nn.Linear(2, 3), torch.ones(3, 4).T)


@pytest.mark.parametrize("kind", [LoraLinear, MixtureLinear])
@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize(
    ("base", "adapter", "autocast"),
    [
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.float32, False),  # as a GPU's answers are
        (torch.bfloat16, torch.float32, True),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.float64, torch.float32, False),
    ],
)
def test_an_answer_in_half_or_mixed_precision_is_near_the_plain_formula_s(kind, mixing, base, adapter, autocast, taken):
    layer = layer_of(kind, nn.Linear(64, 48), mixing=mixing, rank=16).to(adapter)
    layer.base_layer.to(base)
    x, exact = torch.randn(200, 64, dtype=base), layer_of(kind, nn.Linear(64, 48), mixing=mixing, rank=16)
    exact.load_state_dict(layer.state_dict())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        with record_routing(layer) as short:
            found = layer(x)
        assert taken
        use_arithmetic(layer, "autograd")
        with record_routing(layer) as plain:
            expected = layer(x)
        assert len(taken) == 1
    assert found.dtype == expected.dtype
    for one, other in zip(short.layers, plain.layers, strict=True):
        assert one.kept.dtype == torch.promote_types(base, torch.float32)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    with torch.no_grad():
        truth = exact.double()(x.double())
    assert (found - truth).norm() <= 1.02 * (expected - truth).norm()  # not less exact
    assert (found - truth).norm() < 0.02 * truth.norm()


@pytest.mark.parametrize("kind", [LoraLinear, MixtureLinear])
def test_training_dropout_and_adapters_of_several_dtypes_go_the_way_of_training(kind, taken):
    layer, x = layer_of(kind), torch.randn(4, 8)
    layer(x)
    with torch.no_grad():
        layer.train()(x)
        layer.eval().uqmoe_B.bfloat16()
        layer(x)
    assert not taken


@pytest.mark.parametrize("kind", [LoraLinear, MixtureLinear])
def test_an_untrained_adapter_is_the_base_bit_for_bit_and_new_weights_act_at_once(kind, taken):
    layer, x = layer_of(kind), torch.randn(2, 5, 8)
    with torch.no_grad():
        before = layer(x)
        state = {name: torch.zeros_like(value) if "_B" in name else value for name, value in layer.state_dict().items()}
        layer.load_state_dict(state)
        assert torch.equal(layer(x), layer.base_layer(x))
        layer.uqmoe_B["default"].normal_()
        assert not torch.equal(layer(x), layer.base_layer(x))
    assert len(taken) == 3
    assert before.shape == (2, 5, 6)


@pytest.mark.parametrize("kind", [LoraLinear, MixtureLinear])
def test_a_layer_compiles_without_a_graph_break_where_no_gradient_is_wanted(kind):
    layer, x = layer_of(kind), torch.randn(2, 5, 8)
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
    finally:
        torch._dynamo.reset()
