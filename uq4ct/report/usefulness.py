"""What uncertainties are good for: telling shifted questions, and saying more of correctness than the confidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from uq4ct.metrics.added_value import AddedValue, added_value, confidence_logit
from uq4ct.metrics.answers import Settings, Undefined, feu_of
from uq4ct.metrics.detection import fpr_at_recall, ood_auroc, ood_auroc_draws
from uq4ct.metrics.intervals import bootstrap_weights
from uq4ct.metrics.paired import over_seeds
from uq4ct.metrics.selective import auroc
from uq4ct.report.answered import Answered, Asked, Json

Row = dict[str, Any]

SHUFFLES = 200
AT_ONCE = 64  # resamples


def shift_detection(asked: Asked, inside: str | None, settings: Settings) -> list[Row]:
    """Return how well each score tells every shifted task from the one that was trained on, over paired seeds.

    Scores are read as uncertainties: 1 - maximum probability, the entropy of the answer, minus FEU, mutual information
    over samples, and as controls that need no model the length of a question and the share of its tokens that the
    training has not, which any shift of wording may change. ``auroc`` and ``fpr95`` are means over seeds; a score that
    a method does not have is null, with a reason. Empty where nothing like the training questions was evaluated.
    """
    if inside is None:
        return []
    found = []
    own = _weights(asked, inside, settings, 0)
    task = _task(asked, inside)
    for shifted in (name for name in asked if _task(asked, name) != task):
        told = _Told((own, _weights(asked, shifted, settings, 1)))
        for method, runs in asked[inside].items():
            others = {run.run.seed: run for run in asked[shifted].get(method, ())}
            pairs = [(run, others[run.run.seed]) for run in runs if run.run.seed in others]
            found += [_detection(method, pairs, score, told, settings) for score in SCORES if pairs]
    return found


def _task(asked: Asked, name: str) -> str:
    return next(iter(asked[name].values()))[0].metrics["task"]


def _weights(asked: Asked, name: str, settings: Settings, side: int) -> np.ndarray:
    """Return how often each question of a task is drawn, (resample, n); the two sides are drawn on their own."""
    n = next(iter(asked[name].values()))[0].answers.n
    return np.concatenate(list(bootstrap_weights(n, settings.resamples, settings.seed + side)))


def max_probability(run: Answered) -> np.ndarray:
    """Return 1 - confidence of each answer."""
    return 1.0 - run.answers.confidence


def entropy(run: Answered) -> np.ndarray:
    """Return the entropy of each answer's distribution, in nats."""
    p = run.answers.probabilities
    return -(p * np.where(p > 0, run.answers.log_probs, 0.0)).sum(axis=1)


def feu(run: Answered) -> np.ndarray:
    """Return minus FEU, which is a confidence; raises Undefined for methods without a router."""
    return -feu_of(run.answers)


def epistemic(run: Answered) -> np.ndarray:
    """Return the mutual information of answer and sample; raises Undefined where answers have one sample."""
    if run.samples < 2 or np.isnan(run.epistemic).any():
        raise Undefined("one distribution per answer: nothing that samples could differ in")
    return run.epistemic


def length(run: Answered) -> np.ndarray:
    """Return the characters of passage, question and choices; raises Undefined where the rows do not keep them."""
    if np.isnan(run.length).any():
        raise Undefined("the rows do not carry the questions")
    return run.length


def unseen(run: Answered) -> np.ndarray:
    """Return the share of tokens that the questions fitted on have not; raises Undefined where the rows have none."""
    if np.isnan(run.seen).any():
        raise Undefined("the rows do not say which of their tokens were seen in training")
    return 1.0 - run.seen


SCORES: Mapping[str, Callable[[Answered], np.ndarray]] = {
    "max_probability": max_probability,
    "entropy": entropy,
    "feu": feu,
    "epistemic": epistemic,
    "length": length,
    "unseen": unseen,
}


class _Told:
    """The AUROC of drawn questions of two tasks, each pair of scores once: FEU has no suffix, and length no method."""

    def __init__(self, weights: tuple[np.ndarray, np.ndarray]):
        self._weights = weights  # how often each question is drawn, (resample, n)
        self._known: dict[bytes, np.ndarray] = {}

    def draws(self, scores: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Return the AUROC of each resample, (resample,)."""
        key = b"|".join(side.tobytes() for side in scores)
        if key not in self._known:
            blocks = [slice(begin, begin + AT_ONCE) for begin in range(0, len(self._weights[0]), AT_ONCE)]
            drawn = [ood_auroc_draws(*scores, *(side[block] for side in self._weights)) for block in blocks]
            self._known[key] = np.concatenate(drawn)
        return self._known[key]


def _detection(
    method: str,
    pairs: Sequence[tuple[Answered, Answered]],
    score: str,
    told: _Told,
    settings: Settings,
) -> Row:
    row: Row = {
        "method": method,
        "in_distribution": pairs[0][0].metrics["task"],
        "shifted": pairs[0][1].metrics["task"],
        "score": score,
        "auroc": None,
        "interval": None,
        "fpr95": None,
        "seeds": [run.run.seed for run, _ in pairs],
    }
    try:
        scores = [(SCORES[score](inside), SCORES[score](shifted)) for inside, shifted in pairs]
        values = np.array([ood_auroc(*both) for both in scores])
        draws = np.stack([told.draws(both) for both in scores], axis=1)
    except Undefined as reason:
        return {**row, "reason": str(reason)}
    found = over_seeds(values, draws, level=settings.level, seed=settings.seed)
    fpr95 = float(np.mean([fpr_at_recall(*both) for both in scores]))
    return {**row, "auroc": found.mean, "interval": np.clip(found.interval, 0, 1).tolist(), "fpr95": fpr95}


def of_feu(asked: Asked, results: Sequence[Json], controls: Mapping[str, str], settings: Settings) -> list[Row]:
    """Return per task and method with a router whether FEU says more of correctness than the confidence does.

    ``added_value`` is the likelihood-ratio test of FEU beside the confidence's logit: the median over seeds of the
    statistic and of the coefficient, and twice the median p-value, which holds however seeds depend on each other.
    ``shuffled_auroc`` is FEU's AUROC with answers exchanged, the mean of 200 shuffles, and ``shuffled_interval`` where
    95 % of these lie. ``controls`` names the same mixture trained without the calibration loss.
    """
    found = []
    by_name = {(row["task"], row["split"], row["method"]): row for row in results}
    for methods in asked.values():
        for method, runs in methods.items():
            facts = runs[0].metrics
            key = facts["task"], facts["split"]
            row = by_name[(*key, method)]
            if any(run.answers.feu is None for run in runs):
                continue
            control = controls.get(method)
            plain = by_name.get((*key, control)) if control else None
            shuffled, interval = _shuffled(runs, settings)
            found.append(
                {
                    "task": row["task"],
                    "split": row["split"],
                    "method": method,
                    "seeds": row["seeds"],
                    "feu_auroc": row["feu_auroc"],
                    "interval": row["intervals"].get("feu_auroc"),
                    "max_probability_auroc": row["auroc"],
                    "added_value": _added_value(runs),
                    "shuffled_auroc": shuffled,
                    "shuffled_interval": interval,
                    "beta_zero_method": control if plain else None,
                    "beta_zero_feu_auroc": plain["feu_auroc"] if plain else None,
                }
            )
    return found


def _added_value(runs: Sequence[Answered]) -> Row:
    try:
        tests: list[AddedValue] = [
            added_value(confidence_logit(run.answers), feu_of(run.answers), run.answers.correct) for run in runs
        ]
    except Undefined as reason:
        return {"lr_statistic": None, "p": None, "coefficient": None, "reason": str(reason)}
    statistic, p, coefficient = (float(np.median(part)) for part in zip(*tests, strict=True))
    return {"lr_statistic": statistic, "p": p if len(tests) == 1 else min(1.0, 2 * p), "coefficient": coefficient}


def _shuffled(runs: Sequence[Answered], settings: Settings) -> tuple[float | None, list[float] | None]:
    generator = np.random.default_rng([settings.seed, SHUFFLES])
    try:
        means = [
            np.mean([auroc(generator.permutation(feu_of(run.answers)), run.answers.correct) for run in runs])
            for _ in range(SHUFFLES)
        ]
    except Undefined:
        return None, None
    ends = np.quantile(means, [0.5 - settings.level / 2, 0.5 + settings.level / 2])
    return float(np.mean(means)), ends.tolist()
