"""The mixture's arithmetic against an explicit loop over whole-FFN experts, in float64."""

from __future__ import annotations

import inspect
import itertools
import typing

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import jaxtyped
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from uq4ct.adapters import mixture
from uq4ct.adapters.mixture import FeedForward, LowRank, Projection
from uq4ct.adapters.router import LayerRouting

WIDTH, INNER, RANK = 6, 10, 3
VALUES, GRADIENTS = 1e-10, 1e-8
WAYS = ["autograd", "dense", "sorted"]  # of computing the slots


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def shapes_checked(function):
    """Return the function with every annotated tensor shape compared, argument by argument and with the result."""
    hints = typing.get_type_hints(function)

    def wrapper(*args, **kwargs):
        with jaxtyped("context"):
            bound = inspect.signature(function).bind(*args, **kwargs)
            for name, value in bound.arguments.items():
                if isinstance(hints[name], type) and issubclass(hints[name], jaxtyping.AbstractArray):
                    assert isinstance(value, hints[name]), (function.__name__, name, value.shape, hints[name])
            result = function(*args, **kwargs)
            if isinstance(hints["return"], type) and issubclass(hints["return"], jaxtyping.AbstractArray):
                assert isinstance(result, hints["return"]), (function.__name__, result.shape)
            return result

    return wrapper


route, linear_mixture, ffn_mixture = map(shapes_checked, (mixture.route, mixture.linear_mixture, mixture.ffn_mixture))


class Case:
    """One FFN of the given kind with N experts, and the loop that defines what the mixture must compute."""

    def __init__(self, kind: str, experts: int, bias: bool = True, adapted: tuple[bool, ...] | None = None):
        inputs = {"gated": (INNER, INNER), "fused": (2 * INNER,), "plain": (INNER,)}[kind]
        self.kind, self.experts = kind, experts
        self.bases = [nn.Linear(WIDTH, out, bias=bias) for out in inputs] + [nn.Linear(INNER, WIDTH, bias=bias)]
        for base in self.bases:
            base.requires_grad_(False)
        self.router = torch.randn(experts, WIDTH, requires_grad=True)
        adapted = adapted or (True,) * len(self.bases)
        self.low_rank = [
            LowRank(
                torch.randn(experts * RANK, base.in_features, requires_grad=True),
                torch.randn(base.out_features, experts * RANK, requires_grad=True),
            )
            if wanted
            else None
            for base, wanted in zip(self.bases, adapted, strict=True)
        ]
        self.hidden = torch.randn(2, 5, WIDTH)

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [self.router, *itertools.chain(*(e for e in self.low_rank if e is not None))]

    def mixture(
        self, top_k: int, mixing: str, scaling: float = 0.7, dropout: float = 0.0, arithmetic: str = "auto"
    ) -> torch.Tensor:
        projections = [Projection(base, experts) for base, experts in zip(self.bases, self.low_rank, strict=True)]
        ffn = FeedForward(self.kind, tuple(projections[:-1]), F.silu, projections[-1])
        routing, slots = route(self.hidden, self.router, top_k)
        options = {"mixing": mixing, "scaling": scaling, "dropout": dropout, "arithmetic": arithmetic}
        return ffn_mixture(self.hidden, ffn, routing, slots, **options)

    def loop(self, top_k: int, mixing: str, scaling: float = 0.7) -> torch.Tensor:
        """Token by token and expert by expert: E_k is a whole FFN with its own weights W + s B_k A_k."""
        rows = []
        for h in self.hidden.reshape(-1, WIDTH):
            p = (self.router @ h).softmax(0)
            kept = sorted(range(self.experts), key=lambda e: -p[e].item())[:top_k]
            total = sum(p[e] for e in kept)
            weights = {e: p[e] / total if mixing == "rescaled" else p[e] for e in kept}
            y = sum(w * self.expert(e, h, scaling) for e, w in weights.items())
            if mixing == "raw":
                y = y + (1 - total) * self.expert(None, h, scaling)
            rows.append(y)
        return torch.stack(rows).reshape(*self.hidden.shape[:-1], WIDTH)

    def expert(self, expert: int | None, h: torch.Tensor, scaling: float) -> torch.Tensor:
        pre = [self.linear(i, expert, h, scaling) for i in range(len(self.bases) - 1)]
        if self.kind == "gated":
            a = F.silu(pre[0]) * pre[1]
        elif self.kind == "fused":
            a = F.silu(pre[0][:INNER]) * pre[0][INNER:]
        else:
            a = F.silu(pre[0])
        return self.linear(len(self.bases) - 1, expert, a, scaling)

    def linear(self, i: int, expert: int | None, x: torch.Tensor, scaling: float) -> torch.Tensor:
        weight = self.bases[i].weight
        if expert is not None and self.low_rank[i] is not None:
            mine = slice(expert * RANK, (expert + 1) * RANK)
            weight = weight + scaling * self.low_rank[i].B[:, mine] @ self.low_rank[i].A[mine]
        return F.linear(x, weight, self.bases[i].bias)


def gradients(output: torch.Tensor, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    found = torch.autograd.grad((output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum(), parameters)
    return list(found)


def assert_same(case: Case, ours: torch.Tensor, reference: torch.Tensor) -> None:
    torch.testing.assert_close(ours, reference, rtol=VALUES, atol=VALUES)
    for mine, theirs in zip(gradients(ours, case.parameters), gradients(reference, case.parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=GRADIENTS, atol=GRADIENTS)


@pytest.mark.parametrize("kind", ["gated", "fused", "plain"])
@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
@pytest.mark.parametrize("arithmetic", WAYS)
def test_the_ffn_mixture_equals_a_loop_over_whole_ffn_experts(kind, mixing, top_k, arithmetic):
    case = Case(kind, experts=4)
    assert_same(case, case.mixture(top_k, mixing, arithmetic=arithmetic), case.loop(top_k, mixing))


@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize("adapted", [(True, False, True), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("arithmetic", WAYS)
def test_projections_without_an_adapter_stay_base(mixing, adapted, arithmetic):
    case = Case("gated", experts=3, bias=False, adapted=adapted)
    assert_same(case, case.mixture(2, mixing, arithmetic=arithmetic), case.loop(2, mixing))


@settings(max_examples=15, deadline=None)
@given(
    experts=st.integers(1, 6),
    data=st.data(),
    kind=st.sampled_from(["gated", "fused", "plain"]),
    mixing=st.sampled_from(["rescaled", "raw"]),
    arithmetic=st.sampled_from(["autograd", "dense", "sorted"]),
    seed=st.integers(0, 99),
)
def test_any_number_of_experts_and_slots_equals_the_loop(experts, data, kind, mixing, arithmetic, seed):
    torch.manual_seed(seed)
    top_k = data.draw(st.integers(1, experts))
    case = Case(kind, experts)
    ours = case.mixture(top_k, mixing, arithmetic=arithmetic)
    torch.testing.assert_close(ours, case.loop(top_k, mixing), rtol=VALUES, atol=VALUES)


@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_linear_mixture_equals_a_loop(mixing, top_k):
    base, x = nn.Linear(WIDTH, 5), torch.randn(2, 4, WIDTH)
    router = torch.randn(3, WIDTH, requires_grad=True)
    experts = LowRank(torch.randn(9, WIDTH, requires_grad=True), torch.randn(5, 9, requires_grad=True))
    routing, _ = route(x, router, top_k)
    ours = linear_mixture(base(x), x, experts, routing, mixing=mixing, scaling=2.0)

    p = (x @ router.T).softmax(-1)
    kept = torch.zeros_like(p).scatter(-1, p.topk(top_k).indices, 1.0) * p
    gates = kept / kept.sum(-1, keepdim=True) if mixing == "rescaled" else kept
    loop = base(x)
    for e in range(3):
        delta = experts.B[:, 3 * e : 3 * e + 3] @ experts.A[3 * e : 3 * e + 3]
        loop = loop + 2.0 * gates[..., e : e + 1] * (x @ delta.T)
    torch.testing.assert_close(ours, loop, rtol=VALUES, atol=VALUES)
    parameters = [router, *experts]
    for mine, theirs in zip(gradients(ours, parameters), gradients(loop, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=GRADIENTS, atol=GRADIENTS)


@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize("arithmetic", WAYS)
@pytest.mark.parametrize("top_k", [2, 3])
def test_analytic_gradients_equal_numerical_ones(mixing, arithmetic, top_k):
    case = Case("gated", experts=3)
    case.hidden = torch.randn(3, WIDTH)

    def output(router, *factors):
        case.router = router
        case.low_rank = [LowRank(*factors[i : i + 2]) for i in range(0, len(factors), 2)]
        return case.mixture(top_k, mixing, arithmetic=arithmetic)

    assert torch.autograd.gradcheck(output, case.parameters, eps=1e-6, atol=1e-6)


def test_one_expert_is_a_plain_lora_ffn():
    case = Case("gated", experts=1)
    lora = [
        base(x) + 0.7 * x @ e.A.T @ e.B.T
        for base, e, x in zip(case.bases[:2], case.low_rank[:2], [case.hidden] * 2, strict=True)
    ]
    a = F.silu(lora[0]) * lora[1]
    down = case.low_rank[2]
    torch.testing.assert_close(case.mixture(1, "rescaled"), case.bases[2](a) + 0.7 * a @ down.A.T @ down.B.T)
    torch.testing.assert_close(case.mixture(1, "raw"), case.mixture(1, "rescaled"))


def test_keeping_every_expert_is_the_dense_mixture_whatever_the_mixing():
    case = Case("gated", experts=4)
    p = (case.hidden @ case.router.T).softmax(-1)
    rows = [[case.expert(e, h, 0.7) for e in range(4)] for h in case.hidden.reshape(-1, WIDTH)]
    outputs = torch.stack([torch.stack(row) for row in rows]).reshape(2, 5, 4, WIDTH)
    dense = (p.unsqueeze(-1) * outputs).sum(-2)
    torch.testing.assert_close(case.mixture(4, "rescaled"), dense)
    torch.testing.assert_close(case.mixture(4, "raw"), dense)


def test_the_order_of_the_experts_does_not_matter():
    case = Case("gated", experts=4)
    before = case.mixture(2, "raw")
    order = torch.tensor([2, 0, 3, 1])
    rows = (order.unsqueeze(-1) * RANK + torch.arange(RANK)).flatten()
    case.router = case.router[order]
    case.low_rank = [LowRank(e.A[rows], e.B[:, rows]) for e in case.low_rank]
    torch.testing.assert_close(case.mixture(2, "raw"), before, rtol=VALUES, atol=VALUES)


def test_zero_b_leaves_the_base_alone():
    case = Case("fused", experts=3)
    case.low_rank = [LowRank(e.A, torch.zeros_like(e.B)) for e in case.low_rank]
    base = torch.stack([case.expert(None, h, 0.0) for h in case.hidden.reshape(-1, WIDTH)]).reshape(2, 5, WIDTH)
    for mixing in ("rescaled", "raw"):
        torch.testing.assert_close(case.mixture(2, mixing), base)


def test_an_untrained_uniform_router_gives_every_expert_the_same_probability():
    routing, slots = route(torch.randn(2, 3, WIDTH), torch.zeros(4, WIDTH), top_k=2)
    assert torch.equal(routing.probabilities, torch.full((2, 3, 4), 0.25))
    assert torch.equal(routing.kept.sum(-1), torch.full((2, 3), 0.5))
    assert slots.sum().item() == 2 * 3 * 2


def test_kept_probabilities_are_not_rescaled_and_the_weights_are():
    routing, slots = route(torch.randn(3, 5, WIDTH), torch.randn(4, WIDTH), top_k=2)
    top = routing.probabilities.topk(2)
    torch.testing.assert_close(routing.kept.sum(-1), top.values.sum(-1))
    assert (routing.kept.sum(-1) < 1).all()
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(3, 5))
    assert torch.equal(routing.first, routing.probabilities.argmax(-1))
    assert torch.equal(slots.int().argmax(-1), top.indices)


def test_top_1_with_rescaled_weights_gives_the_router_no_gradient_and_raw_weights_do():
    case = Case("gated", experts=4)
    rescaled = torch.autograd.grad(case.mixture(1, "rescaled").square().sum(), case.router)[0]
    raw = torch.autograd.grad(case.mixture(1, "raw").square().sum(), case.router)[0]
    assert rescaled.abs().max() < 1e-12 < 1e-3 < raw.abs().max()


def test_routing_is_done_in_float32_under_bfloat16_autocast():
    hidden, router = torch.randn(2, 3, WIDTH, dtype=torch.float32), torch.randn(4, WIDTH, dtype=torch.float32)
    exact, _ = route(hidden, router, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, _ = route(hidden, router, 2)
    assert torch.equal(exact.probabilities, under_autocast.probabilities)
    assert route(hidden.bfloat16(), router.bfloat16(), 2)[0].probabilities.dtype == torch.float32


def test_tokens_do_not_see_each_other():
    case = Case("gated", experts=4)
    whole = case.mixture(2, "rescaled")
    case.hidden = case.hidden.clone()
    case.hidden[:, 2:] = 1e3
    torch.testing.assert_close(case.mixture(2, "rescaled")[:, :2], whole[:, :2])


def test_dropout_is_unbiased_and_zero_dropout_draws_no_random_number():
    case = Case("plain", experts=2)
    case.bases[1].weight.zero_()  # leave only what is linear in the dropped activation
    case.low_rank[0] = None
    exact = case.mixture(2, "rescaled")
    state = torch.get_rng_state()
    assert torch.equal(case.mixture(2, "rescaled", dropout=0.0), exact)
    assert torch.equal(torch.get_rng_state(), state)
    samples = torch.stack([case.mixture(2, "rescaled", dropout=0.2) for _ in range(800)])
    error = (samples.mean(0) - exact).abs() / (samples.std(0) / 800**0.5)
    assert samples.std(0).min() > 0
    assert error.max() < 5


def test_all_experts_share_one_dropout_mask():
    case = Case("plain", experts=2)
    base, twins = case.low_rank, []
    for e in base:  # two identical experts are one expert, with dropout on too
        twins.append(LowRank(e.A[:RANK].repeat(2, 1), e.B[:, :RANK].repeat(1, 2)))
    case.low_rank = twins
    torch.manual_seed(1)
    two = case.mixture(2, "rescaled", dropout=0.5)
    case.low_rank = [LowRank(e.A[:RANK], e.B[:, :RANK]) for e in base]
    case.router, case.experts = case.router[:1], 1
    torch.manual_seed(1)
    torch.testing.assert_close(case.mixture(1, "rescaled", dropout=0.5), two)


@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
def test_no_value_is_read_on_the_host(mixing):
    """What a GPU runs (``sorted`` is for a CPU). Fake tensors have no values: a loop over the experts in use, or an index search, would fail on them."""
    with FakeTensorMode():
        case = Case("gated", experts=4)
        for arithmetic in ("autograd", "dense"):
            assert case.mixture(2, mixing, dropout=0.1, arithmetic=arithmetic).shape == (2, 5, WIDTH)
        with pytest.raises(DataDependentOutputException):
            case.router.argmax().item()


def test_weights_are_a_property_of_the_kept_probabilities():
    kept = torch.tensor([[0.3, 0.0, 0.1]])
    torch.testing.assert_close(LayerRouting(kept, kept, kept.argmax(-1)).weights, torch.tensor([[0.75, 0.0, 0.25]]))
