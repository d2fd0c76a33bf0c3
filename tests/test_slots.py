"""The ways of computing an FFN's slots against each other: gradients, dropout, dtypes, memory, PyTorch's environments."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_toys import mixture, questions

from uq4ct.adapters import record_routing
from uq4ct.adapters.bottleneck import bottleneck, keep_mask
from uq4ct.adapters.layers import FfnMixture, LayerSettings, LoraLinear, MixtureLinear, use_arithmetic
from uq4ct.adapters.mixture import route
from uq4ct.adapters.slots import Branch, slot_activations
from uq4ct.losses.objective import Objective
from uq4ct.scoring import collate, uq4ct_loss

TOKENS, INNER, EXPERTS, RANK = 7, 6, 5, 2
HAND_MADE = ["dense", "sorted"]


def gated(pre):
    return F.silu(pre[0]) * pre[1]


class Slots:
    """Random inputs of ``slot_activations``, each a leaf that wants a gradient."""

    def __init__(self, top_k: int = 2, base: torch.dtype = torch.float64, adapter: torch.dtype = torch.float64):
        torch.manual_seed(0)
        precision = torch.promote_types(base, torch.float32)

        def leaf(*shape: int, dtype: torch.dtype = adapter) -> torch.Tensor:
            return torch.randn(shape).to(dtype).requires_grad_()

        wide = EXPERTS * RANK
        self.branches = [Branch(leaf(TOKENS, INNER, dtype=base), leaf(TOKENS, wide), leaf(INNER, wide)) for _ in "gu"]
        self.down = leaf(wide, INNER)
        self.logits = leaf(TOKENS, EXPERTS, dtype=precision)
        self.chosen = F.one_hot(self.logits.topk(top_k).indices, EXPERTS).bool().movedim(1, 0)
        self.keep: torch.Tensor | None = None

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [*(part for branch in self.branches for part in branch), self.down, self.logits]

    def __call__(self, arithmetic: str) -> tuple[torch.Tensor, torch.Tensor]:
        weights = (self.chosen * self.logits.softmax(-1)).sum(-1)
        return slot_activations(self.branches, gated, self.chosen, weights, self.down, self.keep, arithmetic)

    def gradients(self, arithmetic: str, times: int = 1) -> list[torch.Tensor]:
        mixed, adapted = self(arithmetic)
        loss = mixed.double().sin().sum() + adapted.double().cos().sum()
        for _ in range(times):
            loss.backward(retain_graph=True)
        found = [leaf.grad / times for leaf in self.leaves]
        for leaf in self.leaves:
            leaf.grad = None
        return found


@pytest.mark.parametrize("arithmetic", HAND_MADE)
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("dropout", [False, True])
def test_hand_made_gradients_are_those_of_autograd(arithmetic, top_k, dropout):
    slots = Slots(top_k)
    slots.keep = torch.rand(TOKENS, INNER) > 0.4 if dropout else None
    for one, other in zip(slots(arithmetic), slots("autograd"), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(slots.gradients(arithmetic), slots.gradients("autograd"), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("arithmetic", HAND_MADE)
def test_a_backward_pass_may_be_repeated_and_a_second_derivative_is_refused(arithmetic):
    slots = Slots()
    once, twice = slots.gradients(arithmetic), slots.gradients(arithmetic, times=2)
    assert all(map(torch.equal, once, twice))
    (gradient,) = torch.autograd.grad(slots(arithmetic)[0].sin().sum(), slots.down, create_graph=True, allow_unused=True)
    (gradient,) = torch.autograd.grad(slots(arithmetic)[0].sin().sum(), slots.logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("arithmetic", HAND_MADE)
def test_an_expert_without_a_token_gets_a_gradient_of_zero(arithmetic):
    slots = Slots()
    slots.chosen = F.one_hot(torch.tensor([[0, 2]] * TOKENS), EXPERTS).bool().movedim(1, 0)
    for leaf, gradient in zip(slots.leaves, slots.gradients(arithmetic), strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.isfinite().all()
    by_expert = slots.gradients(arithmetic)[6].unflatten(0, (EXPERTS, RANK)).abs().sum((1, 2))
    assert (by_expert > 0).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(("base", "adapter"), [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_half_precision_gradients_are_as_near_to_the_exact_ones_as_autograds(base, adapter):
    exact = Slots()
    rounded = Slots(base=base, adapter=adapter)
    with torch.no_grad():
        for leaf, value in zip(exact.leaves, rounded.leaves, strict=True):
            leaf.copy_(value)
    exact.chosen = rounded.chosen
    truth = exact.gradients("autograd")
    plain, hand_made = rounded.gradients("autograd"), rounded.gradients("dense")
    for true, one, other, leaf in zip(truth, plain, hand_made, rounded.leaves, strict=True):
        assert other.dtype == leaf.dtype
        assert (other.double() - true).norm() < 1.5 * (one.double() - true).norm() + 1e-3 * true.norm()


def test_dense_gradients_of_a_float32_base_are_not_rounded_to_the_dtype_of_its_adapters():
    slots = Slots(base=torch.float32, adapter=torch.bfloat16)
    bases = [branch.base for branch in slots.branches]
    found = [torch.autograd.grad(slots(way)[0].sin().sum(), bases) for way in ("dense", "autograd")]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def saved_bytes(slots: Slots, arithmetic: str) -> int:
    """Count what the graph keeps beyond the inputs, each storage once."""
    own = {leaf.untyped_storage().data_ptr() for leaf in slots.leaves}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = slots(arithmetic)  # kept alive, so that no storage is freed and its address used again
    del kept
    return sum(found.values())


@pytest.mark.parametrize("arithmetic", HAND_MADE)
def test_less_is_kept_than_by_autograd_and_no_more_with_more_slots(arithmetic, monkeypatch):
    monkeypatch.setitem(globals(), "INNER", 600)
    two, three, four = (saved_bytes(Slots(top_k), arithmetic) for top_k in (2, 3, 4))
    row = TOKENS * 600 * 8
    assert two < 4.3 * row < 8 * row < saved_bytes(Slots(2), "autograd")
    assert four < three + 0.3 * row < 1.3 * row


def peak_bytes(run) -> int:
    """Return the largest running sum of what is allocated and freed while ``run`` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize(("arithmetic", "rows"), [("dense", 4), ("sorted", 1.7)])
@pytest.mark.parametrize("dropout", [False, True])
def test_a_backward_pass_holds_little_beside_its_gradients_even_when_all_tokens_choose_the_same_experts(
    arithmetic, rows, dropout, monkeypatch
):
    monkeypatch.setitem(globals(), "TOKENS", 300)
    monkeypatch.setitem(globals(), "INNER", 2000)
    slots = Slots(base=torch.float32, adapter=torch.float32)
    slots.chosen = F.one_hot(torch.tensor([[0, 2]] * TOKENS), EXPERTS).bool().movedim(1, 0)
    slots.keep = torch.rand(TOKENS, INNER) > 0.4 if dropout else None
    mixed, adapted = slots(arithmetic)
    one, other, row = torch.randn_like(mixed), torch.randn_like(adapted), TOKENS * INNER * 4
    gradients = [leaf.numel() * 4 for leaf in slots.leaves]
    peak = peak_bytes(lambda: torch.autograd.grad([mixed, adapted], slots.leaves, [one, other]))
    assert sum(gradients) < peak < sum(gradients) + rows * row


def test_a_dropout_mask_keeps_the_share_that_it_should():
    torch.manual_seed(0)
    for probability in (0.05, 0.5, 0.9):
        kept = keep_mask((1000, 999), probability, torch.device("cpu"))
        assert kept.dtype == torch.bool
        assert kept.shape == (1000, 999)
        deviation = (kept.double().mean() - (1 - probability)) / (probability * (1 - probability) / kept.numel()) ** 0.5
        assert abs(deviation) < 4
        columns = kept.double().mean(dim=0)  # the four that share a word are alike
        for lane in range(4):
            error = columns[lane::4].mean() - (1 - probability)
            assert abs(error) < 4.5 * (probability * (1 - probability) / 250_000) ** 0.5
    assert not torch.equal(keep_mask((64,), 0.5, torch.device("cpu")), keep_mask((64,), 0.5, torch.device("cpu")))


@pytest.mark.parametrize("probability", [1e-5, 0.99999, 0.999999])
def test_a_dropout_mask_of_an_extreme_probability_keeps_the_share_that_it_should(probability):
    torch.manual_seed(0)
    rare = keep_mask((20_000, 1000), probability, torch.device("cpu"))
    rare = ~rare if probability < 0.5 else rare
    expected = rare.numel() * min(probability, 1 - probability)
    assert abs(int(rare.sum()) - expected) < 4.5 * expected**0.5


def test_a_dropout_mask_lies_on_its_device_whatever_the_default_one_is():
    with torch.device("meta"):
        assert keep_mask((3, 5), 0.5, torch.device("cpu")).device.type == "cpu"


@pytest.mark.parametrize("layer_of", [LoraLinear, MixtureLinear])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_single_token_without_a_batch_trains_as_a_batch_of_one(layer_of, dropout):
    layer = layer_of(nn.Linear(8, 6))
    layer.add_adapter("default", LayerSettings(rank=2, scaling=1.0, dropout=dropout, num_experts=4, top_k=2))
    nn.init.normal_(layer.uqmoe_B["default"])
    x, found = torch.randn(8, requires_grad=True), []
    for one in (x, x[None]):
        torch.manual_seed(0)
        y = layer(one)
        found.append([y.flatten(), *torch.autograd.grad(y.sin().sum(), [x, *layer.uqmoe_A.parameters()])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dropped_projection_has_the_gradients_of_autograd_and_keeps_its_input_alone(dtype):
    x, A = torch.randn(2, 3, 8).to(dtype).requires_grad_(), torch.randn(4, 8, dtype=torch.float64).requires_grad_()
    keep = torch.rand(2, 3, 8) > 0.3
    found = []
    for by_hand in (True, False):
        z = bottleneck(x, A, 0.5, keep, by_hand=by_hand)
        found.append([z, *torch.autograd.grad(z.sin().sum(), [x, A])])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        bottleneck(x, A, 0.5, keep)
    assert {id(tensor) for tensor in kept} <= {id(x), id(A), id(keep)}


def test_the_input_of_a_linear_with_its_own_router_is_free_before_the_last_gradient_of_it_is_made():
    layer = MixtureLinear(nn.Linear(2000, 8).requires_grad_(False))
    layer.add_adapter("default", LayerSettings(rank=2, scaling=1.0, dropout=0.0, num_experts=4, top_k=2))
    leaf = torch.randn(2, 150, 2000, requires_grad=True)
    step = lambda: layer(leaf.neg()).sum().backward()  # noqa: E731 (the graph alone holds the input)
    assert peak_bytes(step) < 3.5 * leaf.numel() * 4


@pytest.mark.parametrize("autocast", [False, True])
def test_a_router_and_a_projection_keep_a_half_precision_input_itself_and_have_the_gradients_of_a_cast(autocast):
    x, router, A = (torch.randn(shape).requires_grad_() for shape in ((2, 3, 8), (4, 8), (4, 8)))
    half, kept = x.detach().bfloat16().requires_grad_(), []
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            ours = [route(half, router, 2)[0].probabilities, bottleneck(half, A, 0.5)]
        plain = [F.linear(half.float(), A)]
    with torch.autocast("cpu", enabled=False):
        plain = [F.linear(half.float(), router).softmax(-1), 0.5 * plain[0]]
    assert [t for t in kept if t.numel() == x.numel() and t.data_ptr() != half.data_ptr()] == []
    found = [torch.autograd.grad(sum(z.sin().sum() for z in both), [half, router, A]) for both in (ours, plain)]
    for one, other in zip([*ours, *found[0]], [*plain, *found[1]], strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=2e-2 * other.abs().max().item(), rtol=0)


# ---- a whole model: the same gradients, those of the losses on the routing included


def gradients_of(model: nn.Module, checkpointing: bool = False, autocast: bool = False) -> dict[str, torch.Tensor]:
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = collate(questions(6), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        uq4ct_loss(model, batch, Objective(calibration_weight=1.0, balance_weight=0.5)).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


@pytest.mark.parametrize("arithmetic", HAND_MADE)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_gets_the_gradients_of_autograd_for_all_three_losses(arithmetic, checkpointing):
    model = mixture(dtype=torch.float64)
    use_arithmetic(model, "autograd")
    plain = gradients_of(model)
    use_arithmetic(model, arithmetic)
    for name, gradient in gradients_of(model, checkpointing).items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, plain[name], msg=name)


@pytest.mark.parametrize("routing", ["ffn_block", "per_linear"])
def test_a_model_of_the_plain_formula_can_be_differentiated_twice_dropout_included(routing):
    model = mixture(dtype=torch.float64, dropout=0.3, routing=routing).train()
    model.set_attn_implementation("eager")
    use_arithmetic(model, "autograd")
    trained = [p for p in model.parameters() if p.requires_grad]
    batch = collate(questions(4, lengths=(8, 8)), 0)  # eager attention in float64 does not stand padding
    loss = uq4ct_loss(model, batch, Objective(calibration_weight=1.0)).loss
    first = torch.autograd.grad(loss, trained, create_graph=True)
    sum(one.square().sum() for one in first).backward()  # autograd.grad would pass by what refuses
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)


@pytest.mark.parametrize("arithmetic", ["dense", "auto"])
def test_autocast_gives_gradients_as_near_to_the_exact_ones_as_autograds(arithmetic):
    model = mixture()
    use_arithmetic(model, "autograd")
    exact, plain = gradients_of(model), gradients_of(model, autocast=True)
    use_arithmetic(model, arithmetic)
    for name, gradient in gradients_of(model, autocast=True).items():
        assert gradient.dtype == torch.float32
        error, allowed = (gradient - exact[name]).norm(), (plain[name] - exact[name]).norm()
        assert error < 1.5 * allowed + 0.02 * exact[name].norm(), name


@pytest.mark.parametrize("arithmetic", HAND_MADE)
def test_a_backward_pass_inside_autocast_gets_the_same_gradients(arithmetic):
    slots = Slots(base=torch.float32, adapter=torch.float32)
    found = []
    for autocast in (False, True):
        loss = sum(one.sin().sum() for one in slots(arithmetic))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found.append(torch.autograd.grad(loss, slots.leaves))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arithmetic", [*HAND_MADE, "autograd", "auto"])
def test_no_token_at_all_gives_empty_activations_and_gradients_of_zero(arithmetic, monkeypatch):
    monkeypatch.setitem(globals(), "TOKENS", 0)
    slots = Slots()
    mixed, adapted = slots(arithmetic)
    assert (mixed.shape, adapted.shape) == ((0, INNER), (0, EXPERTS * RANK))
    assert all(not gradient.any() for gradient in slots.gradients(arithmetic))


def trained_activation(scale):
    return lambda pre: F.silu(pre[0] * scale) * pre[1]


def in_place(pre):
    return F.silu(pre[0], inplace=True) * pre[1]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_auto_takes_the_plain_formula_where_an_activation_is_trained_or_works_in_place(top_k, monkeypatch):
    slots = Slots(top_k)
    plain = slots.gradients("autograd")
    monkeypatch.setitem(globals(), "gated", in_place)
    for one, other in zip(slots.gradients("auto"), plain, strict=True):
        torch.testing.assert_close(one, other)
    scale = torch.ones(INNER, dtype=torch.float64, requires_grad=True)
    monkeypatch.setitem(globals(), "gated", trained_activation(scale))
    for one, other in zip(slots.gradients("auto"), plain, strict=True):
        torch.testing.assert_close(one, other)
    assert scale.grad.abs().sum() > 0


@pytest.mark.parametrize("arithmetic", HAND_MADE)
def test_ways_by_hand_refuse_an_activation_that_is_trained_or_works_in_place_unless_no_gradient_is_wanted(
    arithmetic, monkeypatch
):
    slots = Slots()
    plain = slots("autograd")
    for activation, problem in [
        (trained_activation(torch.ones((), requires_grad=True)), "has parameters that are trained"),
        (in_place, "works in place"),
    ]:
        monkeypatch.setitem(globals(), "gated", activation)
        with pytest.raises(ValueError, match=f"'{arithmetic}': the activation {problem}; use 'autograd' or 'auto'"):
            slots(arithmetic)
        with torch.no_grad():
            for one, other in zip(slots(arithmetic), plain, strict=True):
                torch.testing.assert_close(one, other)


def test_sorted_slots_of_two_dtypes_are_refused():
    with pytest.raises(ValueError, match="needs one dtype for all, got bfloat16 and float32"):
        Slots(base=torch.bfloat16, adapter=torch.float32)("sorted")


def test_distributed_data_parallel_gets_the_same_gradients(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = mixture(dtype=torch.float64)
        plain = gradients_of(model)
        wrapped = gradients_of(nn.parallel.DistributedDataParallel(model))
        for name, gradient in wrapped.items():
            torch.testing.assert_close(gradient, plain[name.removeprefix("module.")])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_training_layer_compiles_without_a_graph_break_and_gets_the_same_gradients(backend):
    model = mixture(dtype=torch.float64).train()
    layer = next(module for module in model.modules() if isinstance(module, FfnMixture))
    hidden = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    trained = [p for p in layer.parameters() if p.requires_grad]

    def gradients(forward) -> list[torch.Tensor]:
        with record_routing(model) as routing:
            output = forward(hidden)
        loss = output.sin().sum() + sum(one.kept.sum(-1).square().sum() for one in routing.layers)
        return [output, *torch.autograd.grad(loss, [hidden, *trained])]

    torch._dynamo.reset()
    try:
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        for one, other in zip(gradients(compiled), gradients(layer), strict=True):
            torch.testing.assert_close(one, other)
    finally:
        torch._dynamo.reset()
