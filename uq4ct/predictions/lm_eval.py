"""Sample files of lm-evaluation-harness (``--log_samples``): log-likelihoods of continuations to probabilities.

``samples_<task>_<date>.jsonl`` holds one document a line: ``arguments`` (context and continuation of each request),
``filtered_resps`` (log-likelihood and whether greedy decoding gives it, as text), ``target``, hashes, and the metrics
of the document. What the harness says of its own ``acc`` and ``acc_norm`` is compared with what is read here: a file
whose choices or answers would be read in another way than it was scored is refused.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uq4ct.data.files import RawRow
from uq4ct.errors import UserError, did_you_mean
from uq4ct.predictions.writing import Row
from uq4ct.types import position_names

# Metric of the harness -> length by which it divides the log-likelihood of a choice, and how people say it.
LIKELIHOODS: Mapping[str, tuple[Callable[[str], int], str]] = {
    "acc": (lambda text: 1, "the summed log-likelihood of each continuation"),
    "acc_norm": (len, "the log-likelihood of each continuation by its length in characters"),
    "acc_bytes": (lambda text: len(text.encode()), "the log-likelihood of each continuation by its length in bytes"),
}
_NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+))?\.jsonl")
_FIELDS = {"doc_id", "arguments", "target", "filtered_resps"}


class NoChoices(UserError):
    """Samples of a task without choices, such as generated text."""


class _Document(NamedTuple):
    """One document as the harness scored it; ``gold`` maps a way to read ``target`` to the choice it then means."""

    place: str
    values: Mapping[str, Any]
    likelihoods: list[float]
    texts: list[str]
    gold: dict[str, int]
    in_context: bool  # choices stand in the contexts, as in Winogrande, and the continuation is always the same


def recognise(raws: Sequence[RawRow]) -> bool:
    """Tell samples of the harness from other rows."""
    return bool(raws) and all(set(raw.values) >= _FIELDS for raw in raws)


def sample_files(folder: Path) -> list[Path]:
    """Return the sample files of a results folder, or of the folders of models in it.

    Raises UserError where there are none, or two of one task: they are two evaluations.
    """
    files = sorted(folder.glob("samples_*.jsonl")) or sorted(folder.glob("*/samples_*.jsonl"))
    if not files and ((folder / "uq4ct.json").is_file() or (folder / "evaluations").is_dir()):
        raise UserError(
            f"{folder}: is a run; name {folder}/evaluations/<task>/predictions.jsonl, or use `uq4ct report {folder}`"
        )
    if not files:
        raise UserError(f"{folder}: no samples_<task>_<date>.jsonl; lm-eval writes them with --log_samples")
    twice = Counter((path.parent, _task(path)) for path in files)
    problems = [
        f"{place}: {count} sample files of task '{task}', of several evaluations; name the one that is meant"
        for (place, task), count in twice.items()
        if count > 1
    ]
    if problems:
        raise UserError(problems)
    return files


def read_samples(
    path: Path, raws: Sequence[RawRow], likelihood: str, problems: list[str]
) -> tuple[list[Row], str]:
    """Return prediction rows with their places, and how they were read; add what is wrong to the problems.

    Probabilities are the softmax of the log-likelihoods, divided by the length that ``likelihood`` names. Raises
    NoChoices where the task has none, UserError for an unknown ``likelihood``.
    """
    if likelihood not in LIKELIHOODS:
        near = did_you_mean(likelihood, list(LIKELIHOODS))
        raise UserError(f"--likelihood: '{likelihood}' is not one of {', '.join(LIKELIHOODS)}.{near}")
    if all(not _pairs(raw.values) for raw in raws):
        raise NoChoices(f"{path}: no log-likelihoods of choices: the task generates text, or scores one continuation")
    documents = [found for raw in raws if (found := _document(raw, problems)) is not None]
    reading, remark = _reading_of_target(path, documents, problems)
    task, model = _task(path), _model(path)
    rows = []
    for document in documents:
        if why := _refusal(document, reading, likelihood):
            problems.append(f"{document.place}: {why}")
        else:
            row = _row(document, reading, likelihood)
            rows.append(row | {"task": task} | ({"method": model} if model else {}) | {"place": document.place})
    hashes = Counter(str(document.values.get("doc_hash") or document.place) for document in documents)
    again = sum(count - 1 for count in hashes.values())
    how = f"samples of lm-eval, task '{task}'; probabilities are the softmax of {LIKELIHOODS[likelihood][1]}"
    return rows, "; ".join([f"{how} ({likelihood})", remark, *([f"{again} documents repeat others"] if again else [])])


def _task(path: Path) -> str:
    found = _NAME.fullmatch(path.name)
    return found["task"] if found else path.stem


def _model(path: Path) -> str | None:
    """Return the model's name from the results file of the same evaluation, None where that is not there."""
    found = _NAME.fullmatch(path.name)
    results = path.with_name(f"results_{found['date']}.json") if found and found["date"] else None
    if results is None or not results.is_file():
        return None
    try:
        name = json.loads(results.read_text(encoding="utf-8")).get("model_name")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{results}: not readable as JSON ({error})") from error
    if not name:
        return None
    return Path(name).name if Path(name).is_absolute() else str(name)


def _pairs(values: Mapping[str, Any]) -> list[float]:
    """Return the log-likelihood of each request, empty where the responses are something else."""
    found = []
    for response in values["filtered_resps"] if isinstance(values["filtered_resps"], list) else []:
        if not isinstance(response, list) or len(response) != 2:
            return []
        try:
            found.append(float(response[0]))
        except (TypeError, ValueError):
            return []
    return found if len(found) > 1 else []


def _arguments(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (context, continuation) of each request, as versions 0.4.3 and later write them, or the ones before."""
    given = values["arguments"]
    if isinstance(given, Mapping):
        given = [list(one.values()) if isinstance(one, Mapping) else one for one in given.values()]
    if not isinstance(given, list) or not all(isinstance(one, list) and len(one) >= 2 for one in given):
        return []
    return [(str(one[0]), str(one[1])) for one in given]


def _document(raw: RawRow, problems: list[str]) -> _Document | None:
    """Return a row's choices, their log-likelihoods and the answer, or add its problem and return None."""
    values, likelihoods, arguments = raw.values, _pairs(raw.values), _arguments(raw.values)
    if not likelihoods:
        problems.append(f"{raw.place}: 'filtered_resps' are not two or more pairs of log-likelihood and is_greedy")
        return None
    if len(arguments) != len(likelihoods):
        problems.append(f"{raw.place}: {len(arguments)} arguments, but {len(likelihoods)} responses")
        return None
    half = len(arguments) // 2
    if len(arguments) == 2 * half and half > 1 and _is_unconditional(arguments[half:], arguments[:half]):
        arguments, likelihoods = arguments[:half], likelihoods[:half]  # acc_mutual_info scored each choice alone, too
    wrong = [x for x in likelihoods if not math.isfinite(x) or x > 1e-6]
    if wrong:
        problems.append(f"{raw.place}: a log-likelihood is {wrong[0]}, expected a finite number of at most 0")
        return None
    contexts, continuations = zip(*arguments, strict=True)
    in_context = len(set(continuations)) == 1 and len(set(contexts)) > 1
    texts = list(contexts) if in_context else [text.lstrip() for text in continuations]
    return _Document(raw.place, values, likelihoods, texts, _gold(values["target"], texts), in_context)


def _is_unconditional(alone: Sequence[tuple[str, str]], with_context: Sequence[tuple[str, str]]) -> bool:
    pairs = zip(alone, with_context, strict=True)
    return all(context == "" != other and text == same for (context, text), (other, same) in pairs)


def _gold(target: Any, texts: Sequence[str]) -> dict[str, int]:
    """Read ``target``, which the harness saves as text, as a position counted from 0 and as the text of a choice."""
    found: dict[str, int] = {}
    word = str(target).strip()
    if one := re.fullmatch(r"\[(\d+)\]", word):
        word = one[1]
    if word.isdecimal() and int(word) < len(texts):
        found["a position counted from 0"] = int(word)
    if list(texts).count(word) == 1:
        found["the text of a choice"] = list(texts).index(word)
    return found


def _reading_of_target(path: Path, documents: Sequence[_Document], problems: list[str]) -> tuple[str, str]:
    """Return how the targets of a file are read: as what fits every document, and its own ``acc`` where two do."""
    if documents and all(document.in_context for document in documents):
        return "acc", "choices stand in the contexts; the right one of the two is known from acc"
    kinds = ("a position counted from 0", "the text of a choice")
    fitting = {kind: sum(kind in document.gold for document in documents) for kind in kinds}
    best = [kind for kind in kinds if fitting[kind] == max(fitting.values())]
    agreeing = [kind for kind in best if all(_agrees(document, kind) for document in documents)]
    if len(best) > 1 and len(agreeing) != 1:
        different = any(document.gold.get(best[0]) != document.gold.get(best[1]) for document in documents)
        if different:
            problems.append(
                f"{path}: every target could be a position counted from 0 or the text of a choice, and 'acc' does not "
                "tell which"
            )
    kind = (agreeing or best)[0]
    return kind, f"target is {kind}"


def _agrees(document: _Document, kind: str) -> bool:
    acc = document.values.get("acc")
    predicted = int(np.argmax(document.likelihoods))
    return acc is None or kind not in document.gold or acc == float(predicted == document.gold[kind])


def _answer(document: _Document, reading: str) -> int | None:
    return _gold_from_acc(document) if document.in_context else document.gold.get(reading)


def _scaled(document: _Document, likelihood: str) -> np.ndarray:
    lengths = [LIKELIHOODS[likelihood][0](text) or 1 for text in document.texts]
    return np.array(document.likelihoods) / lengths


def _refusal(document: _Document, reading: str, likelihood: str) -> str | None:
    """Say why a document cannot be read as one right answer among choices, None where it can."""
    if document.in_context != (reading == "acc"):
        return "choices stand in the contexts here, and not in other rows of the file"
    if document.in_context and likelihood != "acc":
        return f"{likelihood} needs the choices' lengths, and the choices stand in the contexts; use --likelihood acc"
    gold = _answer(document, reading)
    if gold is None:
        return _no_answer(document, reading)
    predicted, said = int(_scaled(document, likelihood).argmax()), document.values.get(likelihood)
    if said is None or said == float(predicted == gold):
        return None
    return (
        f"'{likelihood}' is {said}, but the likeliest choice is {document.texts[predicted]!r:.60} and the target "
        f"{document.texts[gold]!r:.60}; the task was not scored as one right answer among its continuations"
    )


def _row(document: _Document, reading: str, likelihood: str) -> Row:
    """Return the prediction row of one document."""
    texts, scaled, gold = document.texts, _scaled(document, likelihood), _answer(document, reading) or 0
    labels = position_names(len(texts))
    predicted, weights = int(scaled.argmax()), np.exp(scaled - scaled.max())
    probabilities = dict(zip(labels, (weights / weights.sum()).tolist(), strict=True))
    return {
        "id": str(document.values["doc_id"]),
        "question": _question(document),
        "choices": texts,
        "prediction": labels[predicted],
        "confidence": probabilities[labels[predicted]],
        "probabilities": probabilities,
        "feu": None,
        "uncertainty": {"total": None, "aleatoric": None, "epistemic": None},
        "label": labels[gold],
        "correct": predicted == gold,
        "abstained": False,
        "logits": scaled.tolist(),
    }


def _gold_from_acc(document: _Document) -> int | None:
    acc = document.values.get("acc")
    predicted = int(np.argmax(document.likelihoods))
    if acc not in (0, 1) or len(document.texts) != 2:
        return None
    return predicted if acc == 1 else 1 - predicted


def _no_answer(document: _Document, reading: str) -> str:
    target = document.values["target"]
    if document.in_context:
        return "choices stand in the contexts, and 'acc' does not tell the right one of two"
    try:
        several = isinstance(ast.literal_eval(str(target)), list)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        several = False
    if several:
        return f"target {str(target)[:60]} names several right answers; metrics need one"
    shown = ", ".join(repr(text)[:40] for text in document.texts)
    return f"target {str(target)[:60]!r} is not {reading} of {shown}"


def _question(document: _Document) -> str:
    """Return what stands before the choices, without the examples before it."""
    context = _arguments(document.values)[0][0]
    return context.rstrip().rpartition("\n\n")[2]
