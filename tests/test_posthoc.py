"""Calibrators: each fit against another way to the same numbers, and what a fit must never change."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import approx_fprime, minimize

from uq4ct.errors import UserError
from uq4ct.posthoc import base, calibrator, feu, names, vector
from uq4ct.posthoc.familiarity import Familiarity
from uq4ct.posthoc.feu import FeuScaling
from uq4ct.posthoc.temperature import Temperature
from uq4ct.posthoc.vector import Vector
from uq4ct.types import Prediction

ORACLES = json.loads((Path(__file__).parent / "data" / "calibration_oracles.json").read_text(encoding="utf-8"))


def predict(logits: list | np.ndarray, feu: np.ndarray | None = None) -> Prediction:
    """Make a prediction from ragged (item, choice) or (item, sample, choice) logits."""
    rows = [np.atleast_2d(np.asarray(row, dtype=np.float64)) for row in logits]
    choices = max(row.shape[1] for row in rows)
    full = np.full((len(rows), rows[0].shape[0], choices), -np.inf)
    for number, row in enumerate(rows):
        full[number, :, : row.shape[1]] = row
    mask = np.arange(choices) < np.array([row.shape[1] for row in rows])[:, None]
    return Prediction(tuple(map(str, range(len(rows)))), full, mask, feu, np.linspace(0.5, 1, len(rows)))


def nll(prediction: Prediction, answer: np.ndarray) -> float:
    """Loop over the questions; shares no code with the fits."""
    return -math.fsum(math.log(p[k]) for p, k in zip(prediction.probabilities, answer, strict=True)) / len(answer)


def ragged(n: int, seed: int, samples: int = 1) -> tuple[Prediction, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.choice([2, 3, 4, 5], n, p=[0.2, 0.2, 0.55, 0.05])
    logits = [rng.normal(0, 2, (samples, size)) for size in sizes]
    answer = np.array([rng.choice(row.shape[1], p=softmax(row.mean(axis=0) / 2)) for row in logits])
    return predict(logits, feu=rng.uniform(0.3, 0.9, n)), answer


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max())
    return e / e.sum()


def every() -> list[type[base.Calibrator]]:
    return [calibrator(name) for name in names()]


# ------------------------------------------------------------------------------------------------- temperature


def test_the_temperature_is_the_published_one():
    f300 = ORACLES["F300"]
    prediction, answer = predict(f300["logits"]), np.array(f300["labels"])
    fitted = Temperature.fit(prediction, answer)
    assert fitted.temperature == pytest.approx(f300["T_insample"], abs=1e-6)
    assert nll(fitted.apply(prediction), answer) == pytest.approx(f300["expected_at_T"]["nll"], abs=1e-6)
    first = Temperature.fit(predict(f300["logits"][:150]), answer[:150])
    assert first.temperature == pytest.approx(1.927726, abs=1e-6)


def test_with_two_choices_it_is_logistic_regression_without_intercept():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (400, 2))
    margin = logits[:, 1] - logits[:, 0]
    answer = (rng.random(400) < 1 / (1 + np.exp(-margin / 2.5))).astype(int)
    other = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12).fit(margin[:, None], answer)
    assert Temperature.fit(predict(logits), answer).temperature == pytest.approx(1 / other.coef_[0, 0], rel=1e-5)


def test_no_temperature_of_a_fine_grid_is_better():
    prediction, answer = ragged(300, seed=1, samples=3)
    fitted = Temperature.fit(prediction, answer)
    found = nll(fitted.apply(prediction), answer)
    for t in np.exp(np.linspace(-3, 3, 601)):
        assert found <= nll(Temperature(items=1, temperature=t).apply(prediction), answer) + 1e-12
    assert not fitted.at_bound


def test_samples_are_averaged_before_they_are_scaled():
    prediction = predict([np.log([[0.9, 0.1], [0.3, 0.7]])])
    scaled = Temperature(items=1, temperature=2.0).apply(prediction).probabilities[0]
    expected = np.sqrt([0.6, 0.4]) / np.sqrt([0.6, 0.4]).sum()
    np.testing.assert_allclose(scaled, expected, rtol=1e-12)


def test_a_temperature_of_one_changes_nothing():
    prediction, _ = ragged(50, seed=2, samples=2)
    same = Temperature(items=1, temperature=1.0).apply(prediction)
    np.testing.assert_allclose(same.probabilities, prediction.probabilities, rtol=1e-12, atol=0)
    np.testing.assert_allclose(same.total, prediction.total, atol=1e-12)


def test_uniform_predictions_leave_the_temperature_at_one():
    fitted = Temperature.fit(predict(np.zeros((5, 3))), np.array([0, 1, 2, 0, 1]))
    assert (fitted.temperature, fitted.at_bound) == (1.0, False)


@pytest.mark.parametrize(("right", "expected"), [(True, math.exp(-3)), (False, math.exp(3))])
def test_all_right_or_all_wrong_reaches_a_bound_and_says_so(right, expected):
    prediction = predict(np.random.default_rng(3).normal(0, 1, (30, 4)))
    answer = prediction.logits[:, 0].argmax(-1) if right else prediction.logits[:, 0].argmin(-1)
    for kind in (Temperature, FeuScaling):
        fitted = kind.fit(predict(prediction.logits[:, 0], feu=np.linspace(0.3, 0.9, 30)), answer)
        assert fitted.at_bound
        assert "cannot tell" in fitted.describe()
    assert Temperature.fit(prediction, answer).temperature == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------- vector scaling


def plain_penalised_nll(values: np.ndarray, prediction: Prediction, answer: np.ndarray) -> float:
    """The objective as its docstring says it, question by question."""
    a, b = np.split(values, 2)
    total = 0.0
    for p, own, k in zip(prediction.probabilities, prediction.mask, answer, strict=True):
        scores = [a[j] * math.log(p[j]) + b[j] for j in range(own.sum())]
        total += math.log(math.fsum(map(math.exp, scores))) - scores[k]
    return total / len(answer) + (((a - 1) ** 2).sum() + (b**2).sum()) / (2 * len(answer))


def test_vector_scaling_is_the_optimum_that_a_plain_loop_finds():
    prediction, answer = ragged(220, seed=4)
    fitted = Vector.fit(prediction, answer)
    ours = np.concatenate([fitted.scale, fitted.shift])
    other = minimize(plain_penalised_nll, np.r_[np.ones(5), np.zeros(5)], (prediction, answer), method="BFGS")
    np.testing.assert_allclose(ours, other.x, atol=2e-4)
    assert plain_penalised_nll(ours, prediction, answer) <= other.fun + 1e-10


@pytest.mark.parametrize("zero", [False, True])
def test_gradients_are_the_derivatives(zero):
    prediction, answer = ragged(40, seed=5)
    logits = prediction.log_probabilities.copy()
    if zero:
        logits[np.arange(40), (answer + 1) % prediction.mask.sum(axis=1)] = -np.inf
    rng = np.random.default_rng(6)
    at = np.concatenate([rng.uniform(0.5, 1.5, 5), rng.normal(0, 0.3, 5)])
    numeric = approx_fprime(at, lambda v: vector.objective(v, logits, answer)[0], 1e-7)
    np.testing.assert_allclose(vector.objective(at, logits, answer)[1], numeric, atol=1e-5)
    z = rng.normal(0, 3, 40)
    for at in ([0.4, -0.6], [0.0, 2.0]):  # the second clips some items
        numeric = approx_fprime(at, lambda v: feu.objective(v, logits, answer, z)[0], 1e-7)
        np.testing.assert_allclose(feu.objective(np.array(at), logits, answer, z)[1], numeric, atol=1e-5)


def test_vector_scaling_takes_away_a_liking_for_one_letter():
    rng = np.random.default_rng(7)
    truth = rng.normal(0, 1.5, (4000, 4))
    answer = np.array([rng.choice(4, p=softmax(row)) for row in truth])
    liking = np.array([1.5, 0.0, 0.0, -0.5])
    fitted = Vector.fit(predict(truth + liking), answer)
    # log p differs from the logits by a constant per item, which cancels as the scales agree
    np.testing.assert_allclose(fitted.scale, 1, atol=0.15)
    np.testing.assert_allclose(np.subtract(fitted.shift, np.mean(fitted.shift)), liking.mean() - liking, atol=0.2)
    restored = fitted.apply(predict(truth + liking)).probabilities
    np.testing.assert_allclose(restored, predict(truth).probabilities, atol=0.06)


def test_vector_scaling_refuses_few_questions_with_the_number():
    prediction, answer = ragged(250, seed=8)
    answer[:51] = -1
    with pytest.raises(UserError, match=r"at least 200 .* got 199"):
        Vector.fit(prediction, answer)


def test_a_letter_that_was_never_seen_gets_the_mean_of_the_others():
    fitted = Vector(items=200, scale=(1.0, 2.0), shift=(0.0, 1.0))
    logits = np.log([[0.2, 0.3, 0.5]])
    expected = softmax(np.array([math.log(0.2), 2 * math.log(0.3) + 1, 1.5 * math.log(0.5) + 0.5]))
    np.testing.assert_allclose(fitted.apply(predict(logits)).probabilities[0], expected, rtol=1e-12)


def test_a_letter_hardly_seen_stays_as_it_is():
    prediction, answer = ragged(300, seed=9)
    wide = predict([*[row[0, : m.sum()] for row, m in zip(prediction.logits, prediction.mask, strict=True)], [0.0] * 8])
    fitted = Vector.fit(wide, np.append(answer, 0))
    assert np.abs(np.subtract(fitted.scale[5:], 1)).max() < 0.5
    assert np.abs(fitted.shift[5:]).max() < 0.5


# ------------------------------------------------------------------------------------------------- by FEU


def test_feu_scaling_recovers_the_temperatures_that_made_the_answers():
    rng = np.random.default_rng(10)
    level, z = rng.normal(0, 2, (6000, 4)), rng.normal(0, 1, 6000)
    answer = np.array([rng.choice(4, p=softmax(row / t)) for row, t in zip(level, np.exp(0.5 - 0.4 * z), strict=True)])
    fitted = FeuScaling.fit(predict(level, feu=0.6 + 0.05 * z), answer)
    assert fitted.level == pytest.approx(0.5, abs=0.06)
    assert fitted.slope == pytest.approx(-0.4, abs=0.06)
    assert fitted.feu_mean == pytest.approx(0.6, abs=0.003)


def test_no_neighbour_of_the_feu_fit_is_better():
    prediction, answer = ragged(200, seed=11)
    fitted = FeuScaling.fit(prediction, answer)
    best = nll(fitted.apply(prediction), answer)
    for level in np.linspace(-0.3, 0.3, 13) + fitted.level:
        for slope in np.minimum(np.linspace(-0.3, 0.3, 13) + fitted.slope, 0.0):
            other = fitted.model_copy(update={"level": level, "slope": slope})
            assert best <= nll(other.apply(prediction), answer) + 1e-12


def test_a_feu_that_is_higher_where_answers_are_worse_gives_one_temperature():
    rng = np.random.default_rng(15)
    level, z = rng.normal(0, 2, (2000, 4)), rng.normal(0, 1, 2000)
    answer = np.array([rng.choice(4, p=softmax(row / t)) for row, t in zip(level, np.exp(0.5 + 0.4 * z), strict=True)])
    prediction = predict(level, feu=0.6 + 0.05 * z)
    fitted, single = FeuScaling.fit(prediction, answer), Temperature.fit(prediction, answer)
    assert fitted.slope == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(fitted.apply(prediction).probabilities, single.apply(prediction).probabilities, atol=1e-6)


def test_a_constant_feu_gives_one_temperature():
    prediction, answer = ragged(100, seed=12)
    constant = predict(
        [row[0, : m.sum()] for row, m in zip(prediction.logits, prediction.mask, strict=True)], feu=np.full(100, 0.7)
    )
    fitted, single = FeuScaling.fit(constant, answer), Temperature.fit(prediction, answer)
    np.testing.assert_allclose(fitted.apply(constant).probabilities, single.apply(prediction).probabilities, rtol=1e-9)


@pytest.mark.parametrize("kind", [FeuScaling, Familiarity])
def test_a_scaling_by_feu_without_a_router_is_refused(kind):
    prediction, answer = ragged(20, seed=13)
    bare = Prediction(prediction.ids, prediction.logits, prediction.mask)
    with pytest.raises(UserError, match="needs a method with a router"):
        kind.fit(bare, answer)
    with pytest.raises(UserError, match="needs a method with a router"):
        kind.fit(prediction, answer).apply(bare)


# ------------------------------------------------------------------------------------------------- familiarity


def test_familiarity_divides_by_a_temperature_that_rises_below_the_usual_feu_alone():
    prediction, answer = ragged(80, seed=16)
    fitted = Familiarity.fit(prediction, answer)
    mean = math.fsum(prediction.feu) / 80
    sd = stats.t(79).std() * statistics.stdev(prediction.feu) * math.sqrt(1 + 1 / 80)  # of a normal value, after 80
    assert (fitted.feu_mean, fitted.feu_sd) == (pytest.approx(mean), pytest.approx(sd))
    found, raised = fitted.apply(prediction), 0
    for k in range(80):
        log_t = fitted.level
        if prediction.feu[k] < mean - sd:
            log_t, raised = log_t + (mean - sd - prediction.feu[k]) / sd, raised + 1
        row = prediction.log_probabilities[k][prediction.mask[k]] / math.exp(log_t)
        np.testing.assert_allclose(found.probabilities[k][prediction.mask[k]], softmax(row), rtol=1e-12)
    assert 5 < raised < 40


def test_no_other_level_of_familiarity_is_better():
    prediction, answer = ragged(300, seed=17)
    fitted = Familiarity.fit(prediction, answer)

    def loss(level):
        moved = fitted.model_copy(update={"level": level})
        return 300 * nll(moved.apply(prediction), answer) + level**2 / 2  # less the log of a standard normal density

    for level in (*np.linspace(-3, 3, 61), fitted.level - 0.01, fitted.level + 0.01):
        assert loss(level) > loss(fitted.level)


def test_few_questions_that_were_all_right_do_not_make_answers_certain():
    prediction = predict(np.log([[0.7, 0.2, 0.1]] * 5), feu=np.linspace(0.4, 0.5, 5))
    zeros = np.zeros(5, dtype=int)
    assert Temperature.fit(prediction, zeros).apply(prediction).probabilities[0, 0] == pytest.approx(1)
    assert 0.75 < Familiarity.fit(prediction, zeros).apply(prediction).probabilities[-1, 0] < 0.97


def test_familiarity_knows_no_limit_but_the_highest_temperature_and_a_constant_feu_gives_one_temperature():
    prediction, answer = ragged(100, seed=18)
    far = Prediction(prediction.ids, prediction.logits, prediction.mask, np.full(100, -1e6))
    hottest = Familiarity.fit(prediction, answer).apply(far)
    np.testing.assert_allclose(hottest.logits[:, 0], base.log_softmax(prediction.log_probabilities / math.exp(3)))
    constant = Prediction(prediction.ids, prediction.logits, prediction.mask, np.full(100, 0.7))
    fitted = Familiarity.fit(constant, answer)
    assert "for every question" in fitted.describe()
    expected = base.log_softmax(prediction.log_probabilities / math.exp(fitted.level))
    np.testing.assert_allclose(fitted.apply(constant).logits[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_a_handful_of_questions_says_little_of_what_is_unusual(n):
    """Up to three nothing; five that happen to be alike do not make all others strange."""
    prediction = predict(np.log([[0.7, 0.2, 0.1]] * n), feu=np.linspace(0.5, 0.501, n))
    fitted = Familiarity.fit(prediction, np.zeros(n, dtype=int))
    assert (fitted.feu_sd is None) == (n < 4)
    other = predict(np.log([[0.7, 0.2, 0.1]]), feu=np.array([0.499]))
    below = (statistics.fmean(prediction.feu) - 0.499) / (statistics.pstdev(prediction.feu) or math.inf)
    assert fitted.rise(other)[0] < max(0, below - 1) or n < 4
    assert Familiarity.from_dict(fitted.to_dict()) == fitted


def test_the_constants_of_familiarity_are_kept_with_what_was_fitted():
    fitted = Familiarity.fit(*ragged(50, seed=20))
    kept = fitted.to_dict()
    assert (kept["margin"], kept["rate"]) == (1.0, 1.0)
    earlier = Familiarity.from_dict({name: value for name, value in kept.items() if name not in ("margin", "rate")})
    assert earlier == fitted


def test_wrong_answers_alone_take_familiarity_to_its_end_and_it_says_so():
    prediction = predict(np.log([[0.98, 0.01, 0.01]] * 5000), feu=np.linspace(0.4, 0.5, 5000))
    assert Familiarity.fit(prediction, np.ones(5000, dtype=int)).at_bound
    assert not Familiarity.fit(*ragged(50, seed=21)).at_bound


@pytest.mark.parametrize("kind", [FeuScaling, Familiarity])
def test_an_feu_that_is_no_number_is_refused(kind):
    prediction, answer = ragged(50, seed=22)
    broken = prediction.feu.copy()
    broken[7] = np.nan
    broken = Prediction(prediction.ids, prediction.logits, prediction.mask, broken)
    with pytest.raises(UserError, match="the FEU of question '7' is not a number"):
        kind.fit(broken, answer)
    with pytest.raises(UserError, match="the FEU of question '7' is not a number"):
        kind.fit(prediction, answer).apply(broken)


# ------------------------------------------------------------------------------------------------- all of them


# what familiarity adds to a temperature is no fit
@pytest.mark.parametrize("kind", [kind for kind in every() if kind is not Familiarity])
@pytest.mark.parametrize("seed", range(4))
def test_a_fit_is_never_worse_than_no_fit_on_its_own_questions(kind, seed):
    prediction, answer = ragged(220, seed, samples=1 + seed % 2)
    assert nll(kind.fit(prediction, answer).apply(prediction), answer) <= nll(prediction, answer) + 1e-12


@pytest.mark.parametrize("kind", every(), ids=names())
def test_applying_keeps_everything_but_the_samples(kind):
    prediction, answer = ragged(220, seed=14, samples=3)
    fitted = kind.fit(prediction, answer)
    applied = fitted.apply(prediction)
    assert applied.logits.shape == (220, 1, 5)
    assert applied.ids == prediction.ids
    for part in ("mask", "feu", "letter_mass"):
        np.testing.assert_array_equal(getattr(applied, part), getattr(prediction, part))
    np.testing.assert_allclose(applied.probabilities.sum(axis=1), 1, rtol=1e-12)
    assert (applied.epistemic == 0).all()
    if kind is not Vector:
        np.testing.assert_array_equal(applied.predicted, prediction.predicted)
    alone = fitted.apply(Prediction(("7",), *(getattr(prediction, p)[7:8] for p in ("logits", "mask", "feu"))))
    np.testing.assert_allclose(alone.probabilities[0], applied.probabilities[7], rtol=1e-12)


@pytest.mark.parametrize("kind", every(), ids=names())
def test_a_calibrator_survives_json_bit_for_bit(kind):
    prediction, answer = ragged(220, seed=15)
    fitted = kind.fit(prediction, answer)
    again = base.Calibrator.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    assert again == fitted
    assert type(again) is kind
    assert str(fitted.items) in fitted.describe()


@pytest.mark.parametrize("kind", every(), ids=names())
def test_questions_without_an_answer_do_not_count(kind):
    prediction, answer = ragged(440, seed=16)
    known = np.where(np.arange(440) % 2 == 0, answer, -1)
    half = Prediction(prediction.ids[::2], *(getattr(prediction, p)[::2] for p in ("logits", "mask", "feu")))
    assert kind.fit(prediction, known) == kind.fit(half, answer[::2])
    with pytest.raises(UserError, match="no calibration question"):
        kind.fit(prediction, np.full(440, -1))


@pytest.mark.parametrize("kind", every(), ids=names())
def test_a_probability_of_zero_stays_zero_and_an_answer_of_probability_zero_is_refused(kind):
    prediction, answer = ragged(220, seed=17)
    other = (answer + 1) % prediction.mask.sum(axis=1)
    prediction.logits[np.arange(220), 0, other] = -np.inf
    applied = kind.fit(prediction, answer).apply(prediction)
    assert (applied.probabilities[np.arange(220), other] == 0).all()
    assert np.isfinite(applied.probabilities).all()
    with pytest.raises(UserError, match=r"219 of 220 .* probability 0"):
        kind.fit(prediction, np.where(np.arange(220) == 0, answer, other))


def test_wrong_answers_are_mistakes_of_the_caller():
    prediction, answer = ragged(20, seed=18)
    with pytest.raises(ValueError, match="one answer for each"):
        Temperature.fit(prediction, answer[:-1])
    with pytest.raises(ValueError, match="no choice"):
        Temperature.fit(prediction, np.full(20, 4))


def test_an_unknown_calibrator_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'temperature'"):
        calibrator("temprature")
    assert "abstain" not in names()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"temperature": 1.0}, "expected an object with a 'name'"),
        ({"name": "temperature", "items": 3, "temperature": -1.0}, "temperature: .*greater than 0"),
        ({"name": "temperature", "items": 3, "temperature": math.nan}, "temperature: "),
        ({"name": "temperature", "items": 3}, "temperature: Field required"),
        ({"name": "vector", "items": 200, "scale": [1.0], "shift": []}, "as many scales as shifts"),
    ],
)
def test_what_is_no_calibrator_is_refused(value, message):
    with pytest.raises(UserError, match=message):
        base.Calibrator.from_dict(value)


def test_another_calibrator_than_the_asked_one_is_refused():
    with pytest.raises(UserError, match="expected the calibrator 'vector', got 'temperature'"):
        Vector.from_dict({"name": "temperature", "items": 3, "temperature": 1.0})
