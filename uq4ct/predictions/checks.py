"""One row of somebody's predictions: read, checked for everything that can be wrong with it, and completed."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from uq4ct.predictions.columns import POSITIVE, Layout
from uq4ct.types import position_names

Complain = Callable[[str], None]

SUM_TOLERANCE = 0.005  # probabilities printed with three digits need not sum to exactly one
LOGIT_TOLERANCE = 0.02  # logits stored in half precision give slightly other probabilities


def distribution(layout: Layout, row: Mapping[str, Any], complain: Complain) -> tuple[dict[str, float], Any]:
    """Return {label: p} and the logits behind it (a list, or None), of a row that gives either or both.

    The dictionary is empty where there is something to complain of. Values outside [0, 1] are never read as logits,
    and what does not sum to one is never rescaled.
    """
    scores = next((kind for kind in ("logits", "log_probabilities") if kind in layout.kinds), None)
    if POSITIVE in layout.kinds:
        return _of_class_one(layout.value(row, POSITIVE), layout.single[POSITIVE], complain), None
    if "probabilities" in layout.kinds:
        name = layout.single.get("probabilities", "probabilities")
        probabilities = _probabilities(layout.value(row, "probabilities"), name, complain)
        given = layout.value(row, scores) if scores else None
        if not probabilities or scores is None or given is None:
            return probabilities, None
        logits = _scores(given, scores, complain, list(probabilities))
        if logits and (gap := _gap(list(logits.values()), list(probabilities.values()))) > LOGIT_TOLERANCE:
            complain(f"softmax of '{scores}' differs from 'probabilities' by {gap:.3g}; leave out the wrong one")
        return probabilities, list(logits.values()) or None
    assert scores is not None
    logits = _scores(layout.value(row, scores), scores, complain)
    if not logits:
        return {}, None
    values = np.array(list(logits.values()))
    weights = np.exp(values - values.max())
    total = float(np.exp(values).sum()) if scores == "log_probabilities" else 1.0
    if abs(total - 1) > SUM_TOLERANCE:
        complain(
            f"log-probabilities whose probabilities sum to {total:.6g}, expected 1; if they are of a larger vocabulary "
            "and softmax over the choices is meant, say so: --columns logits=..."
        )
        return {}, None
    return dict(zip(logits, (weights / weights.sum()).tolist(), strict=True)), values.tolist()


def _of_class_one(value: Any, name: str, complain: Complain) -> dict[str, float]:
    if is_number(value) and 0 <= value <= 1:
        return {"0": 1.0 - value, "1": float(value)}
    complain(f"'{name}' must be the probability of class 1, in [0, 1], got {shown(value)}")
    return {}


def _probabilities(value: Any, name: str, complain: Complain) -> dict[str, float]:
    values = _by_label(value, name, complain)
    wrong = {label: p for label, p in values.items() if not is_number(p) or not 0 <= p <= 1 + 1e-9}
    if wrong:
        label, p = next(iter(wrong.items()))
        hint = "; if these are logits, say so: --columns logits=..." if is_number(p) else ""
        complain(f"probability of '{label}' must lie in [0, 1], got {shown(p)}{hint}")
        return {}
    total = math.fsum(values.values())
    if values and abs(total - 1) > SUM_TOLERANCE:
        complain(f"probabilities sum to {total:.6g}, expected 1; give every choice of the question")
        return {}
    return {label: float(p) for label, p in values.items()}


def _scores(value: Any, name: str, complain: Complain, labels: Sequence[str] | None = None) -> dict[str, float]:
    """Return {label: finite number}; a log-probability may be -inf. With ``labels``, exactly these."""
    if labels is not None and not (isinstance(value, (list, Mapping)) and len(value) == len(labels)):
        complain(f"'{name}' must be a list of {len(labels)} numbers, one per choice, got {shown(value)}")
        return {}
    if labels is not None and isinstance(value, list):
        value = dict(zip(labels, value, strict=True))
    values = _by_label(value, name, complain)
    if labels is not None and values and set(values) != set(labels):
        complain(f"'{name}' is of the choices {', '.join(values)}, 'probabilities' of {', '.join(labels)}")
        return {}
    lowest = -math.inf if name == "log_probabilities" else None
    for label, x in values.items():
        if not is_number(x) and not (isinstance(x, float) and x == lowest):
            complain(f"'{name}' of '{label}' must be a finite number, got {shown(x)}")
            return {}
        if lowest is not None and x > 1e-6:
            complain(
                f"log-probability of '{label}' is {shown(x)}, expected at most 0; if these are logits, say so: "
                "--columns logits=..."
            )
            return {}
    if values and max(values.values()) == -math.inf:
        complain(f"'{name}' gives every choice probability 0")
        return {}
    return {label: float(values[label]) for label in (labels or values)}


def _by_label(value: Any, name: str, complain: Complain) -> dict[str, Any]:
    """Return {label: value} of an object or a list; a list's choices are A, B, C, ..., or 0, 1, 2, ... above 26."""
    if value is None:
        complain(f"no '{name}'; a prediction has them as an object {{label: p}} or a list")
        return {}
    if isinstance(value, list):
        value = dict(zip(position_names(len(value)), value, strict=True))
    if not isinstance(value, Mapping) or len(value) < 2:
        complain(f"expected '{name}' as an object {{label: p}} or a list, of two or more choices, got {shown(value)}")
        return {}
    return {str(label): x for label, x in value.items()}


def confidence_and_correct(
    layout: Layout, row: Mapping[str, Any], complain: Complain
) -> tuple[float | None, bool | None]:
    """Return the confidence in [0, 1] and whether the answer was right, None where that is not known."""
    confidence = unit_number(layout.value(row, "confidence"), "confidence", complain)
    if confidence is None and layout.value(row, "confidence") is None:
        complain("no 'confidence'")
    correct = as_bool(layout.value(row, "correct"), "correct", complain)
    label, given = layout.value(row, "label"), layout.value(row, "prediction")
    if word(label) is not None and word(given) is not None:
        same = word(label) == word(given)
        if correct is not None and correct != same:
            complain(f"'correct' is {correct}, but prediction is {shown(given)} and label {shown(label)}")
        correct = same
    return confidence, correct


def word(value: Any) -> str | None:
    """Return the form in which a prediction and a label are compared; None where there is no answer.

    >>> word(" Paris") == word("paris"), word(1) == word("1.0"), word(True) == word("true"), word("nan"), word("")
    (True, True, True, None, None)
    """
    text = unicodedata.normalize("NFC", "" if value is None else str(value)).strip().casefold()
    whole = re.fullmatch(r"(-?\d+)\.0*", text)
    return None if text in ("", "nan") else whole[1] if whole else text


def as_bool(value: Any, name: str, complain: Complain) -> bool | None:
    """Read true, false, 1, 0, and these as text."""
    if value is None or value == "":
        return None
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    found = known.get(str(value).strip().lower())
    if found is None:
        complain(
            f"'{name}' must be true or false, got {shown(value)}; "
            "if it is the right answer, say so: --columns label=" + name
        )
    return found


def unit_number(value: Any, name: str, complain: Complain) -> float | None:
    """Read a number in [0, 1]; None where there is none."""
    if value is None:
        return None
    if is_number(value) and 0 <= value <= 1 + 1e-6:
        return float(value)
    complain(f"'{name}' must be a number in [0, 1], got {shown(value)}")
    return None


def count(value: Any, name: str, complain: Complain) -> int | None:
    """Read a whole number from 0; None where there is none."""
    if value is None:
        return None
    if is_number(value) and value >= 0 and value == int(value):
        return int(value)
    complain(f"'{name}' must be a whole number from 0, got {shown(value)}")
    return None


def vector(value: Any, name: str, length: int, complain: Complain) -> list[float] | None:
    """Read a list of so many finite numbers; None where there is none."""
    if value is None:
        return None
    if isinstance(value, list) and len(value) == length and all(map(is_number, value)):
        return [float(x) for x in value]
    complain(f"'{name}' must be a list of {length} numbers, one per choice, got {shown(value)}")
    return None


def samples(value: Any, length: int, complain: Complain) -> list[list[float]] | None:
    """Read the logits of several passes; None where there are none."""
    if value is None:
        return None
    if isinstance(value, list) and value and all(isinstance(one, list) and len(one) == length for one in value):
        return [vector(one, "samples", length, complain) or [] for one in value]
    complain(f"'samples' must be a list of lists of {length} logits, got {shown(value)}")
    return None


def agree(given: Mapping[str, Any], row: Mapping[str, Any], complain: Complain) -> None:
    """Check that what a file says twice is the same: the most probable choice, correctness, confidence."""
    best = max(row["probabilities"], key=row["probabilities"].__getitem__)
    if row["probabilities"][row["prediction"]] < row["probabilities"][best]:
        complain(
            f"prediction '{row['prediction']}' is not the most probable choice '{best}'; "
            "leave it out to have it computed"
        )
    if given["correct"] is not None and row["correct"] is not None and given["correct"] != row["correct"]:
        complain(f"'correct' is {given['correct']}, but prediction is '{row['prediction']}' and label '{row['label']}'")
    said = given["confidence"]
    if said is not None and abs(said - row["confidence"]) > SUM_TOLERANCE:
        complain(f"'confidence' is {said}, but '{row['prediction']}' has probability {row['confidence']:.6g}")
    truth = row["true_probabilities"]
    if truth is not None and (min(truth) < 0 or abs(math.fsum(truth) - 1) > SUM_TOLERANCE):
        complain(f"'true_probabilities' must be at least 0 and sum to 1, got {shown(truth)}")


def _gap(logits: Sequence[float], probabilities: Sequence[float]) -> float:
    weights = np.exp(np.array(logits) - max(logits))
    return float(np.abs(weights / weights.sum() - probabilities).max())


def is_number(value: Any) -> bool:
    """Tell a finite number; true and false are none, nor is a whole number that no float can hold."""
    return math.isfinite(value) if type(value) is float else type(value) is int and abs(value) < 2**1023


def shown(value: Any) -> str:
    """Print a value in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
