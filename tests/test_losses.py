"""The losses are the paper's equations: each against a plain loop, numbers by hand, and its own derivative."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uq4ct.adapters.router import LayerRouting
from uq4ct.losses.answer import answer_loss, is_correct
from uq4ct.losses.balance import balance_loss, expert_counts, load_entropy
from uq4ct.losses.calibration import calibration_loss, functional_uncertainty, mixture_loss, schedule
from uq4ct.losses.objective import Objective
from uq4ct.methods.uq4ct import Uq4ct

sizes = st.tuples(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(2, 6), st.integers(1, 6), st.integers(0, 10**6)
)


def route(logits: torch.Tensor, top_k: int) -> LayerRouting:
    """Make the routing that router logits (batch, token, expert) stand for."""
    probabilities = logits.softmax(dim=-1)
    keep = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(top_k, dim=-1).indices, 1.0)
    return LayerRouting(probabilities, probabilities * keep, probabilities.argmax(dim=-1))


def random_case(batch: int, tokens: int, layers: int, experts: int, top_k: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(batch, tokens, experts, generator=generator, dtype=torch.float64) for _ in range(layers)]
    mask = torch.rand(batch, tokens, generator=generator) < 0.7
    mask[:, 0] = True
    return logits, [route(layer, min(top_k, experts)) for layer in logits], mask


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_feu_is_the_mean_over_prompt_tokens_and_layers_of_the_kept_mass(size):
    _, routing, mask = random_case(*size)
    mass, top1, vector, last = (
        functional_uncertainty(routing, mask, *reading)
        for reading in (("mass",), ("top1",), ("vector",), ("mass", "last"))
    )
    for b in range(len(mask)):
        real = [i for i in range(mask.shape[1]) if mask[b, i]]
        kept = np.array([[layer.kept[b, i].numpy() for i in real] for layer in routing])  # layer, token, expert
        assert mass[b].item() == pytest.approx(np.mean([[sum(token) for token in layer] for layer in kept]), abs=1e-12)
        assert top1[b].item() == pytest.approx(np.mean([[max(token) for token in layer] for layer in kept]), abs=1e-12)
        np.testing.assert_allclose(vector[b], kept.mean(axis=(0, 1)), atol=1e-12)
        assert last[b].item() == pytest.approx(np.mean([sum(layer[-1]) for layer in kept]), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    sizes, st.sampled_from(["first", "top_k"]), st.sampled_from(["full", "kept"]), st.sampled_from(["layer", "pooled"])
)
def test_balance_is_the_loop_over_tokens_and_experts(size, counts, probabilities, scope):
    _, routing, mask = random_case(*size)
    experts = routing[0].kept.shape[-1]
    share, mean = np.zeros((len(routing), experts)), np.zeros((len(routing), experts))
    for number, layer in enumerate(routing):
        for b, i in zip(*np.nonzero(mask.numpy()), strict=True):
            p, kept = layer.probabilities[b, i].numpy(), layer.kept[b, i].numpy()
            for expert in range(experts):
                chosen = p[expert] == max(p) if counts == "first" else kept[expert] > 0
                share[number, expert] += chosen / mask.sum().item()
                mean[number, expert] += (p if probabilities == "full" else kept)[expert] / mask.sum().item()
    if scope == "pooled":
        share, mean = share.mean(axis=0, keepdims=True), mean.mean(axis=0, keepdims=True)
    expected = np.mean([experts * sum(f * p) for f, p in zip(share, mean, strict=True)])
    assert balance_loss(routing, mask, counts, scope, probabilities).item() == pytest.approx(expected, abs=1e-10)


def even(experts: int, top_k: int) -> LayerRouting:
    """Token i prefers expert i a little, so that every expert is first equally often."""
    return route(torch.eye(experts, dtype=torch.float64)[None] * 1e-3, top_k)


@pytest.mark.parametrize(("experts", "top_k"), [(2, 1), (4, 2), (8, 2), (8, 8)])
def test_balance_is_one_when_even_n_when_collapsed_and_k_in_mixloras_form(experts, top_k):
    mask = torch.ones(1, experts, dtype=torch.bool)
    collapsed = route(torch.tensor([[[100.0] + [0.0] * (experts - 1)]] * 1).double().expand(1, experts, experts), top_k)
    assert balance_loss([even(experts, top_k)] * 3, mask).item() == pytest.approx(1.0, abs=1e-5)
    assert balance_loss([collapsed], mask).item() == pytest.approx(experts, abs=1e-9)
    rows = torch.arange(experts)  # token i keeps experts i .. i + k - 1 (mod N): even in the top-k counts
    wheel = sum(torch.eye(experts)[(rows + shift) % experts] * (1e-3 / (1 + shift)) for shift in range(top_k))
    assert balance_loss([route(wheel.double()[None], top_k)], mask, "top_k", "pooled").item() == pytest.approx(
        top_k, rel=2e-3
    )


def test_layers_that_each_prefer_another_expert_are_balanced_only_when_pooled():
    first, second = (route(torch.tensor([[[a, b]]], dtype=torch.float64), 1) for a, b in ((50.0, 0.0), (0.0, 50.0)))
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert balance_loss([first, second], mask).item() == pytest.approx(2.0)
    assert balance_loss([first, second], mask, scope="pooled").item() == pytest.approx(1.0)


def test_layers_may_differ_in_their_number_of_experts_unless_they_are_pooled():
    layers, mask = [even(2, 1), route(torch.eye(4, dtype=torch.float64)[None, :2] * 50, 1)], torch.ones(1, 2).bool()
    assert balance_loss(layers, mask).item() == pytest.approx((1 + 2) / 2, abs=1e-3)
    with pytest.raises(ValueError, match=r"equally many experts in every layer, got \[2, 4\]"):
        balance_loss(layers, mask, scope="pooled")
    with pytest.raises(ValueError, match="same number of experts"):
        functional_uncertainty(layers, mask, "vector")


def test_ranks_parts_of_the_balance_sum_to_the_loss_and_gradient_of_the_joint_batch():
    logits = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    joint = balance_loss([route(logits, 2)], mask)
    (expected,) = torch.autograd.grad(joint, logits)
    totals = [torch.cat([expert_counts([route(logits, 2)], mask)[0], mask.sum()[None].double()])]
    halves = [
        balance_loss([route(logits[rows], 2)], mask[rows], sum_over_ranks=lambda _: totals[0])
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert sum(halves).item() == pytest.approx(joint.item(), abs=1e-14)
    torch.testing.assert_close(torch.autograd.grad(sum(halves), logits)[0], expected, atol=1e-14, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 10**6))
def test_answer_loss_is_minus_log_of_the_gold_probability_among_the_items_own_choices(batch, choices, seed):
    generator = np.random.default_rng(seed)
    logits, own = generator.normal(size=(batch, choices)), generator.integers(1, choices + 1, size=batch)
    answer = np.array([generator.integers(k) for k in own])
    ragged = np.where(np.arange(choices) < own[:, None], logits, -np.inf)
    found = answer_loss(torch.tensor(ragged), torch.tensor(answer), reduction="none")
    for b in range(batch):
        mine = [math.exp(logits[b, c]) for c in range(own[b])]
        assert found[b].item() == pytest.approx(-math.log(mine[answer[b]] / sum(mine)), abs=1e-10)
        best = max(range(own[b]), key=lambda c, b=b: logits[b, c])
        assert is_correct(torch.tensor(ragged), torch.tensor(answer))[b].item() == (best == answer[b])
    vocabulary = answer_loss(torch.tensor(ragged), torch.tensor(answer), torch.full((batch,), 5.0).double(), "sum")
    assert vocabulary.item() == pytest.approx(sum(5.0 - logits[b, answer[b]] for b in range(batch)), abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.floats(0, 0.9), st.booleans(), st.integers(0, 10**6))
def test_label_smoothing_spreads_its_share_over_the_items_own_choices(choices, smoothing, vocabulary, seed):
    generator = np.random.default_rng(seed)
    logits, own = generator.normal(size=(3, choices)), generator.integers(1, choices + 1, size=3)
    answer = np.array([generator.integers(k) for k in own])
    ragged = torch.tensor(np.where(np.arange(choices) < own[:, None], logits, -np.inf), requires_grad=True)
    normalizer = torch.full((3,), 4.0).double() if vocabulary else None
    found = answer_loss(ragged, torch.tensor(answer), normalizer, "none", smoothing)
    for b in range(3):
        log_sum = 4.0 if vocabulary else math.log(sum(math.exp(logits[b, c]) for c in range(own[b])))
        losses = [log_sum - logits[b, c] for c in range(own[b])]
        expected = (1 - smoothing) * losses[answer[b]] + smoothing * sum(losses) / own[b]
        assert found[b].item() == pytest.approx(expected, abs=1e-10)
    (gradient,) = torch.autograd.grad(found.sum(), ragged)
    assert gradient.isfinite().all()
    assert (gradient[ragged.isneginf()] == 0).all()


def test_label_smoothing_is_torchs_where_all_items_have_as_many_choices():
    logits, answer = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 2])
    expected = torch.nn.functional.cross_entropy(logits, answer, label_smoothing=0.1)
    torch.testing.assert_close(answer_loss(logits, answer, label_smoothing=0.1), expected)


@pytest.mark.parametrize("answer", [-100, 2])
def test_an_unknown_answer_or_one_that_the_item_lacks_is_refused(answer):
    with pytest.raises(ValueError, match="needs an answer among its own choices"):
        answer_loss(torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([answer]))


def test_calibration_loss_by_hand_for_certain_and_uncertain_right_and_wrong():
    feu = torch.tensor([1.0, 0.25, 1.0, 0.25])
    correct = torch.tensor([True, True, False, False])
    assert calibration_loss(feu, correct, "none").tolist() == [0.0, 0.5625, 1.0, 0.0625]
    assert calibration_loss(feu, correct).item() == pytest.approx(0.40625)
    vector = torch.tensor([[0.5, 0.25, 0.0]])
    assert calibration_loss(vector, torch.tensor([True])).item() == 0.25 + 0.5625 + 1.0
    assert calibration_loss(vector, torch.tensor([False])).item() == 0.25 + 0.0625


def test_confidence_built_from_rescaled_weights_is_refused_because_it_trains_nothing():
    routing, mask = route(torch.randn(2, 3, 4, requires_grad=True), 2), torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(routing.weights.sum(dim=-1), torch.ones(2, 3))
    with pytest.raises(ValueError, match="a layer has rescaled ones"):
        functional_uncertainty([routing, routing._replace(kept=routing.weights)], mask)


def test_a_nan_in_the_routing_is_not_mistaken_for_rescaling():
    routing, mask = route(torch.full((1, 2, 4), torch.nan), 2), torch.ones(1, 2, dtype=torch.bool)
    assert functional_uncertainty([routing], mask).isnan().all()


def test_keeping_every_expert_gives_confidence_one_and_is_not_mistaken_for_rescaling():
    routing, mask = route(torch.randn(2, 3, 4), 4), torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(functional_uncertainty([routing], mask), torch.ones(2))


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_calibration_moves_the_router_at_every_k_but_all(top_k):
    logits, mask = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.ones(2, 3).bool()
    loss = calibration_loss(functional_uncertainty([route(logits, top_k)], mask), torch.tensor([True, False]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient.abs().max() > 1e-3) == (top_k < 4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda routing, mask: calibration_loss(functional_uncertainty(routing, mask), torch.tensor([True, False])),
        lambda routing, mask: calibration_loss(
            functional_uncertainty(routing, mask, "top1", "last"), torch.tensor([True, False])
        ),
        lambda routing, mask: calibration_loss(
            functional_uncertainty(routing, mask, "vector"), torch.tensor([True, False])
        ),
        lambda routing, mask: balance_loss(routing, mask),
        lambda routing, mask: balance_loss(routing, mask, "top_k", "pooled", "kept"),
    ],
    ids=["mass", "top1-last", "vector", "balance", "balance-pooled-kept"],
)
def test_router_gradients_are_the_derivatives(loss):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)  # far from ties
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda x: loss([route(x[0], 2), route(x[1], 2)], mask), (logits,))


@pytest.mark.parametrize("answer_kind", ["choices", "vocabulary"])
def test_answer_gradients_are_the_derivatives(answer_kind):
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    answer = torch.tensor([0, 3, 1])

    def loss(x):
        return answer_loss(x[:, :4], answer, x.logsumexp(-1) + 1 if answer_kind == "vocabulary" else None)

    assert torch.autograd.gradcheck(loss, (logits,))


def test_padding_and_batch_order_change_nothing():
    logits, routing, mask = random_case(3, 4, 2, 5, 2, seed=1)
    noise = torch.randn(3, 2, 5, dtype=torch.float64)
    padded = [route(torch.cat([noise, layer], dim=1), 2) for layer in logits]
    longer = torch.cat([torch.zeros(3, 2, dtype=torch.bool), mask], dim=1)
    order = torch.tensor([2, 0, 1])
    shuffled = [LayerRouting(*(part[order] for part in layer)) for layer in routing]
    feu, balance = functional_uncertainty(routing, mask), balance_loss(routing, mask)
    torch.testing.assert_close(functional_uncertainty(padded, longer), feu)
    torch.testing.assert_close(balance_loss(padded, longer), balance)
    torch.testing.assert_close(functional_uncertainty(shuffled, mask[order]), feu[order])
    torch.testing.assert_close(balance_loss(shuffled, mask[order]), balance)


def test_incremental_schedule_grows_from_zero_to_one_in_fifty_updates():
    assert [schedule("incremental", t) for t in range(0, 61, 10)] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


def scored_case():
    _, routing, mask = random_case(2, 3, 2, 4, 2, seed=3)
    choice_logits = torch.tensor([[2.0, 1.0, 0.0], [0.5, 1.5, -torch.inf]], dtype=torch.float64)
    return choice_logits, choice_logits.logsumexp(-1) + 0.5, torch.tensor([0, 0]), routing, mask


def test_objective_is_answer_plus_weighted_balance_plus_weighted_calibration():
    objective = Objective(calibration_weight=0.8, balance_weight=0.01, calibration_schedule="incremental")
    terms = objective.terms(*scored_case())
    answer, calibration = terms.answer.mean(), terms.calibration.mean()
    for step, beta in ((0, 0.0), (20, 0.32), (50, 0.8), (999, 0.8)):
        loss = objective.combine(answer, terms.balance, calibration, step)
        assert loss.item() == pytest.approx((answer + 0.01 * terms.balance + beta * calibration).item(), abs=1e-12)
    assert terms.correct.tolist() == [True, False]


def test_beta_zero_is_the_mixture_without_calibration():
    objective = Objective(calibration_weight=0.0, balance_weight=0.01)
    terms = objective.terms(*scored_case())
    loss = objective.combine(terms.answer.mean(), terms.balance, terms.calibration.mean(), 7)
    assert loss.item() == (terms.answer.mean() + 0.01 * terms.balance).item()


def test_the_recorded_confidence_is_the_mass_also_where_the_loss_compares_vectors():
    case = scored_case()
    torch.testing.assert_close(
        Objective(1.0, feu_reduction="vector").terms(*case).feu, Objective(1.0).terms(*case).feu, rtol=0, atol=1e-12
    )


def test_a_model_without_router_trains_on_the_answer_alone_and_says_what_it_cannot_do():
    choice_logits, normalizer, answer, _, mask = scored_case()
    terms = Objective().terms(choice_logits, normalizer, answer, (), mask)
    assert terms.calibration is None
    assert terms.balance is None
    assert terms.feu is None
    with pytest.raises(ValueError, match=r"need a router, but the model recorded none; use a MixLoraConfig"):
        Objective(calibration_weight=1.0).terms(choice_logits, normalizer, answer, (), mask)


def test_the_indicator_loss_on_the_answers_own_confidence_needs_no_router():
    choice_logits, normalizer, answer, _, mask = scored_case()
    choice_logits.requires_grad_()
    objective = Objective(calibration_weight=2.0, calibrated="confidence")
    assert not objective.needs_router
    assert Objective(balance_weight=0.1, calibrated="confidence").needs_router
    terms = objective.terms(choice_logits, normalizer, answer, (), mask)
    right = math.e**2 / (math.e**2 + math.e + 1)  # item 0 is right, item 1 wrong with sigmoid(1)
    wrong = 1 / (1 + math.exp(-1))
    assert terms.calibration.tolist() == pytest.approx([(1 - right) ** 2, wrong**2], abs=1e-12)
    assert (terms.balance, terms.feu) == (None, None)
    (gradient,) = torch.autograd.grad(terms.calibration.sum(), choice_logits)
    # d conf / d logit of the predicted choice is conf (1 - conf); the indicator has no gradient
    assert gradient[0, 0].item() == pytest.approx(-2 * (1 - right) * right * (1 - right), abs=1e-12)
    assert gradient[1, :2].tolist() == pytest.approx(
        [-2 * wrong * wrong * (1 - wrong), 2 * wrong * wrong * (1 - wrong)]
    )
    assert gradient[1, 2] == 0
    loss = objective.combine(terms.answer.mean(), 0.0, terms.calibration.mean(), 0)
    assert loss.item() == pytest.approx((terms.answer.mean() + 2 * terms.calibration.mean()).item())


def test_calibrating_the_confidence_leaves_the_router_alone_and_records_feu():
    choice_logits, normalizer, answer, _, mask = scored_case()
    router = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    choice_logits.requires_grad_()
    case = (choice_logits, normalizer, answer, [route(router, 2)], mask)
    terms = Objective(calibration_weight=1.0, calibrated="confidence").terms(*case)
    torch.testing.assert_close(terms.feu, Objective(1.0).terms(*case).feu)
    on_router, on_choices = torch.autograd.grad(
        terms.calibration.sum(), (router, choice_logits), allow_unused=True, materialize_grads=True
    )
    assert (on_router == 0).all()
    assert (on_choices[0] != 0).all()
    unweighted = Objective(calibrated="confidence").terms(*case)
    assert not unweighted.calibration.requires_grad


@pytest.mark.parametrize("reduction", ["mass", "top1"])
def test_feu_may_follow_the_probability_of_the_right_choice_or_mix_it_with_a_guess(reduction):
    choice_logits, normalizer, answer, _, mask = scored_case()
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    choice_logits.requires_grad_()
    case = (choice_logits, normalizer, answer, [route(logits, 2)], mask)
    feu = Objective(1.0, feu_reduction=reduction).terms(*case).feu.tolist()
    gold = [math.e**2 / (math.e**2 + math.e + 1), 1 - 1 / (1 + math.exp(-1))]
    soft = Objective(1.0, feu_reduction=reduction, calibration_target="probability").terms(*case).calibration
    assert soft.tolist() == pytest.approx([(p - f) ** 2 for p, f in zip(gold, feu, strict=True)], abs=1e-12)
    mixed = Objective(1.0, feu_reduction=reduction, calibration_target="mixture").terms(*case).calibration
    floor = 0.5 if reduction == "mass" else 0.25  # two of four experts
    shares = [(f - floor) / (1 - floor) for f in feu]
    expected = [-math.log(a * p + (1 - a) / k) for a, p, k in zip(shares, gold, (3, 2), strict=True)]
    assert mixed.tolist() == pytest.approx(expected, abs=1e-12)
    for loss in (soft, mixed):
        on_router, on_choices = torch.autograd.grad(
            loss.sum(), (logits, choice_logits), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert (on_router != 0).any()
        assert (on_choices == 0).all()  # neither may make the answer surer or less sure


def test_the_control_calibrates_feu_on_whether_another_question_was_answered_rightly():
    choice_logits, normalizer, answer, _, mask = scored_case()
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    control = Objective(1.0, calibration_target="shuffled")
    terms = control.terms(choice_logits, normalizer, answer, [route(logits, 2)], mask)
    assert terms.correct.tolist() == [True, False]
    expected = [(float(other) - f) ** 2 for other, f in zip([False, True], terms.feu.tolist(), strict=True)]
    assert terms.calibration.tolist() == pytest.approx(expected, abs=1e-12)
    assert Uq4ct(calibration_target="shuffled").objective().calibration_target == "shuffled"
    assert Uq4ct().objective().calibration_target == "indicator"
    with pytest.raises(ValueError, match="set calibration_questions to all, not apart"):
        Uq4ct(calibration_target="shuffled", calibration_questions="apart")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feu_reduction": "vector"}, "needs FEU as one number; set feu_reduction mass or top1"),
        ({"top_k": 8}, "needs more experts than top_k"),
        ({"num_experts": 1, "top_k": 1, "feu_reduction": "top1"}, "needs more experts than top_k"),
    ],
)
def test_a_target_that_feu_cannot_reach_is_refused_with_the_options_and_not_in_training(options, message):
    with pytest.raises(ValueError, match=message):
        Uq4ct(calibration_target="mixture", **options)


def test_a_wrong_answer_at_full_confidence_has_a_finite_loss_and_gradient():
    feu = torch.tensor([1.0, 1.0, 0.25], requires_grad=True)
    loss = mixture_loss(feu, torch.tensor([0.0, 1e-30, 0.0]), torch.tensor([4, 4, 4]), 0.25, "none")
    assert loss.max().item() == pytest.approx(-math.log(0.001 / 4), rel=1e-3)
    loss.sum().backward()
    assert feu.grad.isfinite().all()
    with pytest.raises(ValueError, match="FEU is 1 for all questions"):
        mixture_loss(feu, torch.tensor([0.0, 1.0, 0.0]), torch.tensor([4, 4, 4]), 1.0)


def test_label_smoothing_reaches_the_objective():
    case = scored_case()
    for kind, normalizer in (("choices", None), ("vocabulary", case[1])):
        expected = answer_loss(case[0], case[2], normalizer, "none", 0.2)
        torch.testing.assert_close(Objective(answer_loss=kind, label_smoothing=0.2).terms(*case).answer, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration_weight": -1.0}, "calibration_weight: expected a number that is not negative, got -1.0"),
        ({"balance_weight": float("nan")}, "balance_weight: expected a number"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected a number below 1, got 1.0"),
        ({"calibrated": "answer"}, "calibrated: expected one of 'feu', 'confidence', got 'answer'"),
        ({"feu_reduction": "sum"}, "feu_reduction: expected one of 'mass', 'top1', 'vector', got 'sum'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Objective(**options)


def test_load_entropy_is_one_when_even_and_zero_when_collapsed():
    assert load_entropy([torch.full((8,), 3.0)]) == pytest.approx(1.0)
    assert load_entropy([torch.eye(8)[0] * 5]) == 0.0
