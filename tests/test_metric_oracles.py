"""Metrics against stored values that two other implementations agree on: every number of the file, and tables of literature."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uq4ct.metrics import Answers, Undefined, proper_scores, summarize
from uq4ct.metrics.brier_parts import corp, murphy
from uq4ct.metrics.calibration_error import (
    classwise_ece,
    ece,
    ece_equal_mass,
    ece_sweep,
    mce,
    over_under,
    rms_calibration_error,
    signed_gap,
)
from uq4ct.metrics.conformal import ConformalSets
from uq4ct.metrics.null_band import ece_null
from uq4ct.metrics.paired import standard_error
from uq4ct.metrics.sampling import decompose
from uq4ct.metrics.selective import accuracy_at_coverage, augrc, aupr, aurc, auroc, eaurc, prr
from uq4ct.metrics.smooth_error import smooth_ece

ORACLES = json.loads((Path(__file__).parent / "data" / "calibration_oracles.json").read_text())
VECTORS = ORACLES["vectors"]
HALVED = ("D_ones", "J_zero")  # the package behind smECE halves items at exactly 0 and 1: tests/test_metrics.py


def answers_of(fixture: str, temperature: float = 1.0, part: slice = slice(None)) -> Answers:
    logits = np.array(ORACLES[fixture]["logits"])[part] / temperature
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return Answers(np.exp(log_probs), log_probs, np.ones(logits.shape, bool), np.array(ORACLES[fixture]["labels"])[part])


def auroc_or_null(confidence: np.ndarray, correct: np.ndarray) -> float | None:
    try:
        return auroc(confidence, correct)
    except Undefined:
        return None


def left_closed(confidence: np.ndarray, correct: np.ndarray) -> float:
    """ECE of those libraries that close bins on the left, 1.0 in the last bin (netcal)."""
    index = np.minimum(np.searchsorted(np.linspace(0, 1, 16), confidence, side="right") - 1, 14)
    return float(np.abs(np.bincount(index, weights=confidence - correct)).sum() / len(correct))


PAIR: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "ece": ece,
    "ece5": lambda c, a: ece(c, a, 5),
    "ece10": lambda c, a: ece(c, a, 10),
    "ece20": lambda c, a: ece(c, a, 20),
    "ece30": lambda c, a: ece(c, a, 30),
    "mce": mce,
    "over": lambda c, a: over_under(c, a)[0],
    "under": lambda c, a: over_under(c, a)[1],
    "rms": lambda c, a: rms_calibration_error(c, a, debias=False),
    "rms_debiased": rms_calibration_error,
    "brier_top": lambda c, a: np.mean((c - a) ** 2),
    "smece": smooth_ece,
    "auroc": auroc_or_null,
    "signed_gap": signed_gap,
    "gap": signed_gap,
    "aurc": aurc,
    "augrc": augrc,
    "acc": lambda c, a: a.mean(),
    "null_mean": lambda c, a: ece_null(c, a, draws=4000)["mean"],
    "null_p95": lambda c, a: ece_null(c, a, draws=4000)["p95"],
}
TOLERANCE = {"smece": 1e-3, "null_mean": 6e-4, "null_p95": 1.5e-3}  # the rest to what the file prints


@pytest.mark.parametrize("name", VECTORS)
def test_every_stored_value_of_the_ten_vectors(name: str) -> None:
    confidence, correct = np.array(VECTORS[name]["confidence"]), np.array(VECTORS[name]["correct"], dtype=float)
    for key, expected in VECTORS[name]["expected"].items():
        if key == "ece15_left_closed":
            found: Any = left_closed(confidence, correct)
        elif key == "smece" and name in HALVED:
            continue
        else:
            found = PAIR[key](confidence, correct)
        assert found == (None if expected is None else pytest.approx(expected, abs=TOLERANCE.get(key, 1e-8))), key


@pytest.mark.parametrize(
    ("fixture", "key", "temperature", "part"),
    [
        ("F200", "expected", 1.0, slice(None)),
        ("F300", "expected", 1.0, slice(None)),
        ("F300", "expected_at_T", ORACLES["F300"]["T_insample"], slice(None)),
        ("F300", "raw_last150", 1.0, slice(150, 300)),
        ("F300", "TS_last150", ORACLES["F300"]["T_first150"], slice(150, 300)),
    ],
)
def test_every_stored_value_of_made_answers(fixture: str, key: str, temperature: float, part: slice) -> None:
    answers = answers_of(fixture, temperature, part)
    for name, expected in ORACLES[fixture][key].items():
        if name in ("nll", "brier"):
            assert getattr(proper_scores, name)(answers).mean() == pytest.approx(expected, abs=1e-9), name
        elif name == "accuracy_at":
            for coverage, accuracy in expected.items():
                found = accuracy_at_coverage(answers.confidence, answers.correct, float(coverage))
                assert found == pytest.approx(accuracy, abs=1e-6)
        else:
            found = PAIR[name](answers.confidence, answers.correct)
            assert found == pytest.approx(expected, abs=TOLERANCE.get(name, 1e-6)), name


@pytest.mark.parametrize(("key", "first", "scaled"), [("raw_minus_TS", 0, "T_insample"), ("last150", 150, "T_first150")])
def test_paired_differences_have_their_known_standard_errors(key: str, first: int, scaled: str) -> None:
    part, expected = slice(first, 300), ORACLES["F300"][f"paired_nll_{key}"]
    after = proper_scores.nll(answers_of("F300", ORACLES["F300"][scaled], part))
    difference = proper_scores.nll(answers_of("F300", part=part)) - after
    assert difference.mean() == pytest.approx(expected["mean"], abs=1e-9)
    assert standard_error(difference) == pytest.approx(expected["se"], abs=1e-9)


def test_200_answers_have_the_values_of_the_reference_table() -> None:
    answers = answers_of("F200")
    c, a = answers.confidence, answers.correct
    entropy = -(answers.probabilities * answers.log_probs).sum(axis=1)
    ordered = np.sort(answers.probabilities, axis=1)
    table = {
        "equal mass": (ece_equal_mass(c, a), 0.073020),
        "classwise": (classwise_ece(answers), 0.093977),
        "sweep": (ece_sweep(c, a), 0.056495),
        "by entropy": (auroc(-entropy, a), 0.758063),
        "by margin": (auroc(ordered[:, -1] - ordered[:, -2], a), 0.742336),
        "precision of right": (aupr(c, a), 0.874725),
        "precision of wrong": (aupr(c, a, "wrong"), 0.562442),
        "excess": (eaurc(c, a), 0.095101),
        "rejection": (prr(c, a), 0.640441),
        "brier of the confidence": (proper_scores.brier_top(answers).mean(), 0.184093),
    }
    for name, (found, expected) in table.items():
        assert found == pytest.approx(expected, abs=6e-7), name
    assert corp(c, a) == pytest.approx((0.011584, 0.046866, 0.219375), abs=6e-7)
    parts = murphy(c, a)
    assert parts[:3] == pytest.approx((0.008702, 0.044661, 0.219375), abs=1e-6)
    three = parts.reliability - parts.resolution + parts.uncertainty
    assert three == pytest.approx(0.183415, abs=1e-6), "without the terms within bins the sum is not the score"
    assert three + parts.within_variance - parts.within_covariance == pytest.approx(0.184093, abs=6e-7)


def test_300_overconfident_answers_have_the_values_of_the_reference_table() -> None:
    answers = answers_of("F300")
    c, a = answers.confidence, answers.correct
    assert ece_equal_mass(c, a) == pytest.approx(0.148413, abs=6e-7)
    assert classwise_ece(answers) == pytest.approx(0.085598, abs=6e-7)
    assert rms_calibration_error(c, a) == pytest.approx(0.123968, abs=6e-7)
    assert standard_error(c - a) == pytest.approx(0.0253, abs=6e-5)
    two = answers_of("F300", 2.0)
    assert ece(two.confidence, two.correct) == pytest.approx(0.069031, abs=6e-7)
    assert rms_calibration_error(two.confidence, two.correct) == pytest.approx(0.019572, abs=6e-7)
    assert summarize(answers, resamples=100)["verdict"] == "overconfident by 14.3 points"
    assert summarize(two, resamples=100)["verdict"] == "not distinguishable from calibrated"


@pytest.mark.parametrize(
    ("kind", "alpha", "threshold", "coverage", "size"),
    [
        ("lac", 0.1, 0.959332, 0.92, 2.1133),
        ("lac", 0.2, 0.848721, 0.8533, 1.48),
        ("aps", 0.1, 0.998862, 0.92, 2.36),
        ("aps", 0.2, 0.993322, 0.8467, 1.86),
    ],
)
def test_conformal_sets_are_those_of_the_reference_libraries(
    kind: Any, alpha: float, threshold: float, coverage: float, size: float
) -> None:
    sets = ConformalSets.fit(answers_of("F300", part=slice(0, 150)), alpha, kind)
    found = sets.measure(answers_of("F300", part=slice(150, 300)))
    assert sets.threshold == pytest.approx(threshold, abs=6e-7)
    assert (found["coverage"], found["size"]) == (pytest.approx(coverage, abs=6e-5), pytest.approx(size, abs=6e-5))


@pytest.mark.parametrize(
    ("members", "entropy", "gini"),
    [
        ([[0.9, 0.1], [0.1, 0.9]], (0.693147, 0.325083, 0.368064), (0.5, 0.18, 0.32)),
        ([[0.7, 0.3], [0.7, 0.3]], (0.610864, 0.610864, 0.0), None),
        ([[1.0, 0.0], [0.0, 1.0]], (0.693147, 0.0, 0.693147), None),
        (
            [[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.25] * 4],
            (1.286281, 1.202199, 0.084082),
            (0.694444, 0.643333, 0.051111),
        ),
    ],
)
def test_uncertainty_of_several_passes_has_its_known_parts(members: Any, entropy: Any, gini: Any) -> None:
    assert decompose(np.array(members)) == pytest.approx(entropy, abs=6e-7)
    if gini:
        assert decompose(np.array(members), "gini") == pytest.approx(gini, abs=6e-7)


def test_rows_with_samples_give_the_parts_and_rows_with_one_pass_none() -> None:
    passes = np.log([[0.9, 0.1], [0.1, 0.9]]).tolist()
    row = {"probabilities": {"A": 0.5, "B": 0.5}, "label": "A", "samples": passes}
    result = summarize([row, row], resamples=100)
    assert (result["total_uncertainty"], result["epistemic"]) == pytest.approx((0.693147, 0.368064), abs=1e-6)
    assert result["uncertainty"]["gini"] == pytest.approx({"total": 0.5, "aleatoric": 0.18, "epistemic": 0.32})
    alone = summarize([row, {**row, "samples": None}], resamples=100)
    assert (alone["epistemic"], alone["uncertainty"]) == (None, None)
    assert "one forward pass" in alone["reasons"]["epistemic_tests"]
