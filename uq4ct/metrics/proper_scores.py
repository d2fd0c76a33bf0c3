"""Proper scores (accuracy beside them): what a forecaster cannot improve by anything but better probabilities."""

from __future__ import annotations

import numpy as np

from uq4ct.metrics.answers import Answers, Metric, Undefined, mean_of


def nll(answers: Answers) -> np.ndarray:
    """Return -log p(gold) of each answer in nats, over the row's own choices; (n,).

    Raises Undefined where a gold answer has probability 0: the mean would be infinite, and clipping would hide it.

    >>> nll(Answers.of([[0.5, 0.5]], answer=[0])).round(6).tolist()
    [0.693147]
    """
    values = -answers.log_probs[np.arange(answers.n), answers.answer]
    if not np.isfinite(values).all():
        zero = int((~np.isfinite(values)).sum())
        raise Undefined(f"infinite: {zero} of {answers.n} gold answers have probability 0")
    return values + 0.0  # -0.0 reads badly


def brier(answers: Answers) -> np.ndarray:
    """Return sum_k (p_k - 1[k is gold])^2 of each answer, in [0, 2]; (n,).

    >>> brier(Answers.of([[0.75, 0.25]], answer=[0])).tolist()
    [0.125]
    """
    gold = np.zeros_like(answers.probabilities)
    gold[np.arange(answers.n), answers.answer] = 1.0
    return ((answers.probabilities - gold) ** 2).sum(axis=1)


def brier_top(answers: Answers) -> np.ndarray:
    """Return (confidence - correctness)^2 of each answer: the part of Brier that concerns the answer given; (n,).

    >>> brier_top(Answers.of([[0.75, 0.25]], answer=[1])).tolist()
    [0.5625]
    """
    return (answers.confidence - answers.correct) ** 2


def truth_gap(answers: Answers) -> np.ndarray:
    """Return |confidence - true probability of the predicted choice| of each answer; (n,). Needs a world that knows it.

    >>> a = Answers.of([[0.9, 0.1]], answer=[0], true_probabilities=np.array([[0.75, 0.25]]))
    >>> truth_gap(a).round(6).tolist()
    [0.15]
    """
    truth = _truth(answers)
    return np.abs(answers.confidence - truth[np.arange(answers.n), answers.predicted])


def excess_log_loss(answers: Answers) -> np.ndarray:
    """Return the expected log-loss above the best achievable, KL(truth || prediction) in nats; (n,).

    >>> a = Answers.of([[0.5, 0.5]], answer=[0], true_probabilities=np.array([[0.5, 0.5]]))
    >>> excess_log_loss(a).tolist()
    [0.0]
    """
    truth = _truth(answers)
    possible = truth > 0
    if np.isneginf(answers.log_probs[possible]).any():
        raise Undefined("infinite: a choice that can be right has probability 0")
    ratio = np.log(np.where(possible, truth, 1.0)) - np.where(possible, answers.log_probs, 0.0)
    return (truth * ratio).sum(axis=1)


def letter_mass(answers: Answers) -> np.ndarray:
    """Return the probability of the row's letters under the whole vocabulary, of each answer; (n,)."""
    if answers.letter_mass is None:
        raise Undefined("no letter mass: answers were not scored by letter, or the rows do not carry it")
    return answers.letter_mass


def _truth(answers: Answers) -> np.ndarray:
    if answers.true_probabilities is None:
        raise Undefined("the true probabilities of these questions are not known")
    return answers.true_probabilities


METRICS = (
    Metric(
        "accuracy",
        "share of questions whose most probable choice is the gold one",
        "higher",
        lambda a, _: float(a.correct.mean()),
        lambda a, _, weights: weights @ a.correct / weights.sum(axis=1),
        interval="wilson",
    ),
    mean_of("nll", "negative log-likelihood of the gold choice, in nats", "lower", nll),
    mean_of("brier", "squared distance to the gold choice, summed over choices (0 to 2)", "lower", brier),
    mean_of("brier_top", "squared distance of the confidence to the correctness (0 to 1)", "lower", brier_top),
    mean_of("truth_gap", "mean |confidence - true probability of the chosen answer|", "lower", truth_gap),
    mean_of("excess_log_loss", "log-loss above the best achievable, in nats", "lower", excess_log_loss),
    mean_of("letter_mass", "probability of the answer letters under the whole vocabulary", "higher", letter_mass),
)
