"""Split the uncertainty of several forward passes into what they share and where they disagree."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np


class Decomposition(NamedTuple):
    """Uncertainty of the averaged distribution = mean uncertainty of the passes + their disagreement; (n,) each."""

    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray


def decompose(members: np.ndarray, form: Literal["entropy", "gini"] = "entropy") -> Decomposition:
    """Return total, aleatoric and epistemic uncertainty of probabilities (..., pass, choice).

    ``entropy``: H(mean p), mean H(p), and their difference, the mutual information of answer and pass, in nats.
    ``gini``: the same with 1 - sum_k p_k^2. The split is a convention, not a law of nature: parts may contaminate each
    other (Wimmer et al. 2023), so that results show behaviour and do not argue from the name.

    >>> [round(float(part), 6) for part in decompose(np.array([[0.9, 0.1], [0.1, 0.9]]))]
    [0.693147, 0.325083, 0.368064]
    >>> [round(float(part), 6) for part in decompose(np.array([[0.9, 0.1], [0.1, 0.9]]), "gini")]
    [0.5, 0.18, 0.32]
    """
    members = np.asarray(members, dtype=np.float64)
    measure = _entropy if form == "entropy" else _gini
    total, aleatoric = measure(members.mean(axis=-2)), measure(members).mean(axis=-1)
    return Decomposition(total, aleatoric, np.maximum(total - aleatoric, 0.0))  # rounding may leave -1e-17


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    return -(probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum(axis=-1)


def _gini(probabilities: np.ndarray) -> np.ndarray:
    return 1.0 - (probabilities**2).sum(axis=-1)
