"""Metrics against other people's libraries, live, where these are installed: `pip install 'uq4ct[oracle]'`.

On confidences without ties, borders or ones all must agree. Where a library is known to differ, the difference is pinned,
so that a new version that behaves otherwise shows.
"""

from __future__ import annotations

import numpy as np
import pytest

from uq4ct.metrics import Answers, proper_scores
from uq4ct.metrics.brier_parts import corp
from uq4ct.metrics.calibration_error import (
    bin_index,
    classwise_ece,
    ece,
    ece_equal_mass,
    mce,
    over_under,
    rms_calibration_error,
)
from uq4ct.metrics.conformal import ConformalSets, conformal_scores
from uq4ct.metrics.detection import ood_auroc
from uq4ct.metrics.selective import aupr, auroc
from uq4ct.metrics.smooth_error import smooth_ece

EDGES = np.array([0.95, 1.0]), np.array([1, 0])  # ours: 0.475


def drawn(seed: int, n: int = 400, k: int = 4) -> Answers:
    """Draw answers of an overconfident model whose confidences keep clear of every border."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(n, k))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.exp(logits / 1.5) / np.exp(logits / 1.5).sum(axis=1, keepdims=True)
    answer = (truth.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1).clip(0, k - 1)
    return Answers.of(p, answer)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_errors_are_those_of_torchmetrics(seed: int) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    import torch

    answers = drawn(seed)
    p, y = torch.tensor(answers.probabilities), torch.tensor(answers.answer)
    ours = {"l1": ece, "l2": lambda c, a: rms_calibration_error(c, a, debias=False), "max": mce}
    for norm, metric in ours.items():
        theirs = torchmetrics.classification.MulticlassCalibrationError(num_classes=4, n_bins=15, norm=norm)
        assert metric(answers.confidence, answers.correct) == pytest.approx(float(theirs(p, y)), abs=1e-5), norm


def test_torchmetrics_has_a_phantom_bin_for_ones_and_closes_bins_on_the_left() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    import torch

    metric = torchmetrics.classification.MulticlassCalibrationError(num_classes=2, n_bins=15)
    c, a = EDGES
    p = torch.tensor(np.stack([1 - c, c], axis=1))
    assert float(metric(p, torch.tensor(a))) == pytest.approx(0.525), "1.0 has a bin of its own there"
    assert ece(c, a) == pytest.approx(0.475)
    border = torch.tensor([[0.4, 0.6], [0.42, 0.58]], dtype=torch.float64)  # 0.6 = 9/15: ours puts both in (8/15, 9/15]
    assert float(metric(border, torch.tensor([1, 0]))) == pytest.approx((0.4 + 0.58) / 2, abs=1e-6)
    assert ece([0.6, 0.58], [1, 0]) == pytest.approx(0.09)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_errors_are_those_of_netcal(seed: int) -> None:
    metrics = pytest.importorskip("netcal.metrics")
    answers = drawn(seed)
    pair = answers.confidence, answers.correct
    binary = answers.confidence, answers.correct.astype(int)
    assert ece(*pair) == pytest.approx(metrics.ECE(15).measure(answers.probabilities, answers.answer), abs=1e-9)
    assert mce(*pair) == pytest.approx(metrics.MCE(15).measure(answers.probabilities, answers.answer), abs=1e-9)
    assert ece(*pair, 10) == pytest.approx(metrics.ECE(10).measure(*binary), abs=1e-9)


def test_netcal_closes_bins_on_the_left_but_for_the_last() -> None:
    metrics = pytest.importorskip("netcal.metrics")
    c, a = EDGES
    assert metrics.ECE(15).measure(c, a) == pytest.approx(0.475)
    assert metrics.ECE(15).measure(np.array([0.6, 0.58]), np.array([1, 0])) == pytest.approx(0.49)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_errors_are_those_of_uncertainty_calibration(seed: int) -> None:
    calibration = pytest.importorskip("calibration")
    answers = drawn(seed)
    counts = np.bincount(bin_index(answers.confidence, 15))
    several = counts[bin_index(answers.confidence, 15)] > 1  # it divides by zero for an answer alone in its bin
    answers = answers.take(np.flatnonzero(several))
    p, y, pair = answers.probabilities, answers.answer, (answers.confidence, answers.correct)
    equal_width = calibration.utils.get_equal_prob_bins
    assert ece(*pair) == pytest.approx(calibration.get_ece(p, y, num_bins=15), abs=1e-9)
    divides = answers.take(np.arange(390))  # 15 bins of 26: its borders lie elsewhere when n does not divide
    pair_390 = divides.confidence, divides.correct
    found = calibration.get_ece_em(divides.probabilities, divides.answer, num_bins=15)
    assert ece_equal_mass(*pair_390) == pytest.approx(found, abs=1e-9)
    same = {"num_bins": 15, "binning_scheme": equal_width}
    marginal = calibration.utils.lower_bound_scaling_ce(p, y, p=1, debias=False, mode="marginal", **same)
    assert classwise_ece(answers) == pytest.approx(marginal, abs=1e-9)
    for debias in (False, True):
        found = calibration.utils.lower_bound_scaling_ce(p, y, p=2, debias=debias, mode="top-label", **same)
        assert rms_calibration_error(*pair, debias=debias) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_smooth_error_is_that_of_relplot_but_for_exact_ones(seed: int) -> None:
    relplot = pytest.importorskip("relplot")
    answers = drawn(seed)
    pair = answers.confidence, answers.correct
    assert smooth_ece(*pair) == pytest.approx(relplot.smECE(*pair), abs=1e-3)
    ones = np.ones(10), np.r_[np.zeros(3), np.ones(7)]
    assert smooth_ece(*ones) == pytest.approx(0.3, abs=2e-3)
    c, a = np.array([1, 1, 1, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.5]), np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    assert relplot.smECE(c, a) == pytest.approx(0.175161, abs=1e-4), "relplot halves items at exactly 1"
    assert smooth_ece(c, a) == pytest.approx(0.254331, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn_and_brier_is_the_sum_form(seed: int) -> None:
    from sklearn.isotonic import IsotonicRegression
    from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

    answers = drawn(seed)
    c, a = np.round(answers.confidence, 2), answers.correct  # with ties
    assert auroc(c, a) == pytest.approx(roc_auc_score(a, c))
    assert aupr(c, a) == pytest.approx(average_precision_score(a, c))
    assert aupr(c, a, "wrong") == pytest.approx(average_precision_score(1 - a, -c))
    assert ood_auroc(c[a == 1], c[a == 0]) == pytest.approx(roc_auc_score(1 - a, c))
    fitted = IsotonicRegression().fit(c, a).predict(c)
    mcb, dsc, _ = corp(c, a)
    assert mcb == pytest.approx(np.mean((c - a) ** 2) - np.mean((fitted - a) ** 2), abs=1e-9)
    assert dsc == pytest.approx(a.var() - np.mean((fitted - a) ** 2), abs=1e-9)
    ours = proper_scores.brier(answers).mean()
    whole = {"labels": range(4), "scale_by_half": False}
    assert ours == pytest.approx(brier_score_loss(answers.answer, answers.probabilities, **whole))
    half = brier_score_loss(answers.answer, answers.probabilities, labels=range(4), scale_by_half=True)
    assert half == pytest.approx(ours / 2), "a factor of two between conventions"
    binary = Answers.of(np.stack([c, 1 - c], axis=1), np.where(a == 1, 0, 1))
    assert proper_scores.brier(binary).mean() == pytest.approx(2 * brier_score_loss(a, c)), "binary is halved by default"


@pytest.mark.parametrize("seed", range(3))
def test_mapie_means_one_bin_less_and_its_sets_are_ours(seed: int) -> None:
    calibration = pytest.importorskip("mapie.metrics.calibration")
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        """A classifier whose features are its probabilities."""

        def fit(self, x: np.ndarray, y: np.ndarray) -> Given:
            self.classes_, self.n_features_in_ = np.arange(x.shape[1]), x.shape[1]
            return self

        def predict_proba(self, x: np.ndarray) -> np.ndarray:
            return x

        def predict(self, x: np.ndarray) -> np.ndarray:
            return x.argmax(axis=1)

    answers = drawn(seed)
    pair = answers.correct, answers.confidence
    theirs = calibration.expected_calibration_error(*pair, num_bins=16)
    assert ece(answers.confidence, answers.correct) == pytest.approx(theirs, abs=1e-9), "16 borders are 15 bins"
    fit, test = answers.take(np.arange(200)), answers.take(np.arange(200, 400))
    model = Given().fit(fit.probabilities, fit.answer)
    split = SplitConformalClassifier(model, confidence_level=0.9, prefit=True, conformity_score="lac")
    split.conformalize(fit.probabilities, fit.answer)
    assert (split.predict_set(test.probabilities)[1][:, :, 0] == ConformalSets.fit(fit, 0.1).sets(test)).all()


@pytest.mark.parametrize("seed", range(3))
def test_lac_sets_are_those_of_crepes(seed: int) -> None:
    crepes = pytest.importorskip("crepes")
    answers = drawn(seed)
    fit, test = answers.take(np.arange(200)), answers.take(np.arange(200, 400))
    predictor = crepes.ConformalClassifier()
    predictor.fit(1 - fit.probabilities[np.arange(200), fit.answer])
    sets = predictor.predict_set(conformal_scores(test), confidence=0.9, smoothing=False)
    assert (np.asarray(sets, bool) == ConformalSets.fit(fit, 0.1).sets(test)).all()


def test_over_and_under_are_the_two_halves_of_what_any_library_sums() -> None:
    metrics = pytest.importorskip("netcal.metrics")
    answers = drawn(9)
    assert sum(over_under(answers.confidence, answers.correct)) == pytest.approx(
        metrics.ECE(15).measure(answers.probabilities, answers.answer), abs=1e-9
    )
