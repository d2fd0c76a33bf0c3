"""The abstain threshold keeps its promise over repetitions, and says so when it cannot make one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from uq4ct.errors import UserError
from uq4ct.posthoc import abstain
from uq4ct.posthoc.abstain import AbstainRule, find_threshold


def rows(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, object]]:
    return [{"confidence": float(c), "correct": bool(a)} for c, a in zip(confidence, correct, strict=True)]


def world(generator: np.random.Generator, n: int, offset: float, digits: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """Confidences whose true accuracy is confidence + offset."""
    confidence = 0.4 + 0.6 * generator.beta(3, 1, n)
    correct = generator.random(n) < np.clip(confidence + offset, 0, 1)
    return confidence.round(digits), correct.astype(float)


@pytest.mark.parametrize(
    ("n", "offset", "digits"), [(150, 0.0, 17), (400, -0.1, 17), (400, -0.05, 1), (1500, -0.04, 17)]
)
def test_answers_kept_fall_short_of_the_target_in_at_most_5_percent_of_repetitions(
    n: int, offset: float, digits: int
) -> None:
    """400 calibration sets; the accuracy kept is known from 400,000 answers. More than 31 failures have chance 1 %."""
    generator = np.random.default_rng(n)
    confidence, correct = world(generator, 400_000, offset, digits)
    order = np.argsort(confidence)
    from_here_up = np.cumsum(correct[order][::-1])[::-1] / np.arange(len(order), 0, -1)
    failures = found = 0
    for _ in range(400):
        threshold = find_threshold(*world(generator, n, offset, digits), target_accuracy=0.85).threshold
        if threshold is not None:
            found += 1
            failures += from_here_up[np.searchsorted(confidence[order], threshold)] < 0.85
    assert binom.sf(31, 400, 0.05) < 0.01
    assert failures <= 31
    assert found >= 40, "a rule that is never found is valid, but useless"


def test_reading_the_threshold_off_the_accuracy_curve_would_break_the_promise() -> None:
    generator = np.random.default_rng(0)
    truth_confidence, truth = world(generator, 400_000, -0.1)
    failures = 0
    for _ in range(200):
        confidence, correct = world(generator, 400, -0.1)
        order = np.argsort(-confidence)
        curve = np.cumsum(correct[order]) / np.arange(1, 401)
        lowest = confidence[order][np.flatnonzero(curve >= 0.85).max(initial=0)]
        failures += truth[truth_confidence >= lowest].mean() < 0.85
    assert failures > 60


def test_a_perfect_ranking_finds_nearly_all_answers_that_can_be_kept() -> None:
    confidence = np.arange(1, 1001) / 1000
    found = find_threshold(confidence, confidence > 0.3, target_accuracy=0.9)
    assert 0.9 < 700 / found.kept < 0.95
    assert (confidence >= found.threshold).sum() == found.kept


def test_tied_confidences_are_kept_or_left_out_together() -> None:
    confidence = np.repeat([1.0, 0.5], [200, 100])
    correct = np.concatenate([np.ones(200), np.tile([1.0, 0.0], 50)])
    found = find_threshold(confidence, correct, target_accuracy=0.95)
    assert found.kept == 200
    assert 0.5 < found.threshold <= 1.0
    assert find_threshold(confidence, np.ones(300), target_accuracy=0.95)[:2] == (0.0, 300)


def test_order_of_the_rows_changes_nothing() -> None:
    generator = np.random.default_rng(3)
    confidence, correct = world(generator, 500, 0.0, digits=2)
    shuffled = generator.permutation(500)
    assert find_threshold(confidence, correct, 0.85) == find_threshold(confidence[shuffled], correct[shuffled], 0.85)


def test_the_error_budget_is_spent_once() -> None:
    assert sum(abstain.BUDGET.values()) == 1


def test_without_a_threshold_there_is_a_reason() -> None:
    few = find_threshold(np.ones(20), np.ones(20), 0.9)
    assert few.threshold is None
    assert "20 calibration answers are too few: even if all are right, 42 are needed" in few.reason
    bad = find_threshold(np.linspace(0, 1, 200), np.tile([1.0, 0.0], 100), 0.9)
    assert bad.threshold is None
    assert bad.reason.startswith("no threshold shows 90 % with 95 % confidence")
    with pytest.raises(UserError, match="lower the target, or keep more questions"):
        AbstainRule.fit(rows(np.ones(20), np.ones(20)), 0.9)
    for target in (0.0, 1.0, 90):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            find_threshold(np.ones(20), np.ones(20), target)


def test_a_rule_fitted_on_groups_says_that_it_takes_answers_as_independent(tmp_path: Path) -> None:
    """One answer told ten times over is no ten answers: the promise of 95 % then fails more often."""
    calibration = rows(*world(np.random.default_rng(1), 1000, 0.0))
    grouped = [row | {"group": f"passage {number // 10}"} for number, row in enumerate(calibration)]
    grouped[-1]["group"] = None  # alone
    rule = AbstainRule.fit(grouped, target_accuracy=0.9)
    assert rule.groups == 101
    assert rule.describe().endswith("answers are taken as independent, although the 1000 questions form 101 groups)")
    rule.save(tmp_path / "abstain.json")
    assert AbstainRule.load(tmp_path / "abstain.json") == rule
    apart = AbstainRule.fit([row | {"group": str(n)} for n, row in enumerate(calibration)], target_accuracy=0.9)
    assert apart == AbstainRule.fit(calibration, target_accuracy=0.9)
    assert "independent" not in apart.describe()
    assert "groups" not in apart.to_dict()  # rules saved before have none: an evaluation made under one is kept


def test_a_target_is_told_with_all_its_digits_and_no_share_is_rounded_to_all() -> None:
    assert "to show 99.96 % with 95 %" in str(find_threshold(np.ones(20), np.ones(20), 0.9996).reason)
    assert "to show 91.23 % with" in str(find_threshold(np.ones(20), np.ones(20), 0.9123).reason)
    correct = np.ones(20_000)
    correct[::2500] = 0
    reason = str(find_threshold(np.ones(20_000), correct, 0.9997).reason)
    assert reason.startswith("no threshold shows 99.97 % with 95 % confidence")
    assert reason.endswith("the surest are 99.96 % right")
    rule = AbstainRule(0.5, 0.99995, 0.95, n=200_000, kept=150_000, accuracy=0.99998)
    assert "at least 99.995 % right" in rule.describe()
    assert "99.998 % right)" in rule.describe()
    assert "75.3 % right)" in AbstainRule(0.5, 0.7, 0.95, n=200, kept=150, accuracy=0.7533).describe()
    assert " 100 % right)" in AbstainRule(0.5, 0.7, 0.95, n=200, kept=150, accuracy=1.0).describe()


def test_a_fitted_rule_is_saved_loaded_and_applied(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    calibration = rows(*world(generator, 1000, 0.0))
    rule = AbstainRule.fit([*calibration, {"confidence": 0.1, "correct": None}], target_accuracy=0.9)
    assert (rule.n, rule.target_accuracy, rule.level) == (1000, 0.9, 0.95)
    rule.save(tmp_path / "abstain.json")
    assert AbstainRule.load(tmp_path / "abstain.json") == rule
    applied = rule.apply(calibration)
    assert sum(not row["abstained"] for row in applied) == rule.kept
    assert all(row["abstained"] == (row["confidence"] < rule.threshold) for row in applied)
    assert "at least 90 % right with 95 % confidence" in rule.describe()
    assert "chosen by hand" in AbstainRule(0.5).describe()


@pytest.mark.parametrize(
    "content", ["{oops", "[]", "{}", '{"threshold": "high"}', '{"threshold": 0.5, "x": 1}', '{"threshold": 2}']
)
def test_a_file_that_is_no_rule_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "abstain.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"abstain\.json: .*choose the threshold again"):
        AbstainRule.load(path)


def test_a_lower_target_never_keeps_fewer() -> None:
    confidence, correct = world(np.random.default_rng(5), 2000, 0.0)
    kept = [find_threshold(confidence, correct, target).kept for target in (0.8, 0.85, 0.9, 0.95)]
    assert all(more >= fewer for more, fewer in itertools.pairwise(kept))
