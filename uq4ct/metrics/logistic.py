"""Logistic regression by Newton's method, enough to ask whether one more column says anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uq4ct.metrics.answers import Undefined

STEPS = 50


@dataclass(frozen=True)
class LogisticFit:
    """Hold the maximum of the likelihood: coefficients, intercept first, and their covariances."""

    coefficients: np.ndarray  # (column + 1,)
    log_likelihood: float
    covariance: np.ndarray  # inverse of the information
    scores: np.ndarray  # (n, column + 1): gradient of each item's log-likelihood at the maximum

    def clustered_covariance(self, groups: np.ndarray) -> np.ndarray:
        """Return the sandwich covariance that lets items of a group depend, with the factor G / (G - 1)."""
        units = np.unique(groups, return_inverse=True)[1]
        sums = np.zeros((units.max() + 1, self.scores.shape[1]))
        np.add.at(sums, units, self.scores)
        return self.covariance @ (sums.T @ sums) @ self.covariance * len(sums) / (len(sums) - 1)


def fit_logistic(columns: np.ndarray, outcome: np.ndarray, start: np.ndarray | None = None) -> LogisticFit:
    """Fit P(outcome = 1) = 1 / (1 + exp(-(b0 + columns @ b))), columns (n, column), without any penalty.

    Raises Undefined where there is no maximum: outcomes that a threshold parts without error, or columns that depend
    on each other.

    >>> fit_logistic(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([1, 0, 1, 0])).coefficients.round(6).tolist()
    [0.0, 0.0]
    """
    design = np.column_stack([np.ones(len(outcome)), columns])
    beta = np.zeros(design.shape[1]) if start is None else start.astype(np.float64)
    value = _log_likelihood(design @ beta, outcome)
    for _ in range(STEPS):
        p = _sigmoid(design @ beta)
        gradient = design.T @ (outcome - p)
        information = (design * (p * (1 - p))[:, None]).T @ design
        try:
            step = np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            break
        if gradient @ step < 1e-9:  # what one more step would gain
            return LogisticFit(beta, value, np.linalg.inv(information), design * (outcome - p)[:, None])
        ahead = _log_likelihood(design @ (beta + step), outcome)
        while ahead < value and np.abs(step).max() > 1e-12:
            step = step / 2
            ahead = _log_likelihood(design @ (beta + step), outcome)
        beta, value = beta + step, ahead
        if value > -1e-6 * len(outcome):
            break
    raise Undefined("the logistic regression has no maximum: right and wrong answers are parted without error")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _log_likelihood(x: np.ndarray, outcome: np.ndarray) -> float:
    return float((outcome * x - np.logaddexp(0.0, x)).sum())
