"""A fitted model that answers questions with a confidence: base model, adapter, prompts and abstain rule together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uq4ct import data, predictions, vocabulary
from uq4ct.config import Config
from uq4ct.errors import Note, UserError
from uq4ct.posthoc.abstain import AbstainRule
from uq4ct.posthoc.base import Calibrator
from uq4ct.runs import Run
from uq4ct.types import Prediction, Question

if TYPE_CHECKING:
    from uq4ct.prompts import Encoder
    from uq4ct.sequences import SequenceEncoder

# Probabilities of these are saved with a run and computed again when it is loaded: an adapter that is silently not
# applied, or applied to another base, shows at once.
FINGERPRINT_QUESTIONS = tuple(
    Question(id=f"fingerprint-{number}", question=question, choices=choices, labels=tuple("ABCDE"[: len(choices)]))
    for number, (question, choices) in enumerate(
        (
            ("Which melts first?", ("ice", "iron", "salt", "sand")),
            ("Which is the largest?", ("a town", "a river", "a planet")),
            ("What do plants need?", ("light", "coins", "paper", "glass", "sound")),
            ("Is water wet?", ("no", "yes")),
            ("Which day follows Monday?", ("Sunday", "Friday", "Tuesday", "Saturday")),
            ("What is two plus two?", ("three", "four", "five")),
            ("Which animal can fly?", ("a horse", "an eagle", "a snake", "a whale")),
            ("Which of these is a metal?", ("copper", "wood", "wool", "water")),
        )
    )
)
FINGERPRINT_TOLERANCE = {"float32": 1e-3, "float64": 1e-3}  # half precision differs between machines
HALF_PRECISION_TOLERANCE = 0.05


class Answer(NamedTuple):
    """The answer to one question. ``feu`` (Eq. 9) is a confidence despite its name: large means certain."""

    choice: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    feu: float | None
    uncertainty: dict[str, float]
    abstained: bool | None


@dataclass(frozen=True)
class UQModel:
    """A fitted model that answers questions with a confidence.

    ``UQModel.load("runs/obqa-uq4ct").predict(question="Which melts first?", choices=["ice", "iron"]).confidence``
    """

    config: Config
    model: Any
    encoder: Encoder | SequenceEncoder
    rule: AbstainRule | None = None
    calibrator: Calibrator | None = None
    known: frozenset[int] | None = field(default=None, repr=False)  # tokens of the questions fitted on, if kept

    @classmethod
    def load(cls, run: Run | Path | str, *, base: str | None = None) -> UQModel:
        """Load a run: base model, adapter, prompt pack and abstain rule.

        ``base`` names the base model's new place where it moved. Raises UserError where a file of the run has changed,
        the base is another model, or the fixed prompts get other probabilities than when the run was written.
        """
        from uq4ct import backbone as backbones
        from uq4ct.sequences import encoder_for

        run = run if isinstance(run, Run) else Run.open(run)
        config, expected = run.config, run.facts["base"]
        named: dict[str, Any] = {
            "name": base or config.model.name,
            "kind": expected.get("kind", "causal"),  # there was no other once
        }
        if config.model.dtype == "auto":
            named["dtype"] = expected["dtype"]  # what it meant where the run was fitted
        if config.model.device and not backbones.is_there(config.model.device):
            warnings.warn(
                f"{run.folder}: fitted on {config.model.device}, which is not here; it is read on another device",
                Note,
                stacklevel=2,
            )
            named["device"] = None
        backbone = backbones.load(config.model.model_copy(update=named), expected.get("classes", ()))
        if backbone.fingerprint != expected["fingerprint"]:
            raise UserError(
                f"{run.folder}: fitted on base model '{expected['name']}', fingerprint "
                f"{expected['fingerprint'][:12]}, but '{backbone.name}' has fingerprint {backbone.fingerprint[:12]}; "
                "give the right base with --base"
            )
        encoder = encoder_for(backbone, config.prompt)
        if encoder.hash != run.facts["prompt"]["hash"]:
            raise UserError(
                f"{run.folder}: its prompts had hash {run.facts['prompt']['hash'][:12]}, now {encoder.hash[:12]}; "
                "use the tokenizer and the version of uq4ct that wrote the run"
            )
        model = config.method.load(backbone.model, run.folder)
        loaded = cls(config, model, encoder, run.rule, run.calibrator, vocabulary.read(run.folder))
        loaded.check_fingerprint(run)
        return loaded

    def predict(self, question: str, choices: Sequence[str], context: str = "") -> Answer:
        """Answer one question, read as a row of a file is: without outer white space.

        What its prompt leaves out of a context is said by a warning (`Note`). Raises UserError for an empty text, fewer
        than two or more than 26 choices, and choices that are not the classes of a classifier.
        """
        asked = data.one_question(question, choices, context)
        encoded, remarks = self.encoder.encode_evaluation([asked])
        for remark in remarks:
            warnings.warn(Note(remark), stacklevel=2)
        (row,) = self.rows([asked], self.predict_questions([asked], examples=encoded), encoded)
        return Answer(
            choice=asked.choices[asked.labels.index(row["prediction"])],
            label=row["prediction"],
            confidence=row["confidence"],
            probabilities=row["probabilities"],
            feu=row["feu"],
            uncertainty=row["uncertainty"],
            abstained=row["abstained"],
        )

    def predict_questions(
        self,
        questions: Sequence[Question],
        *,
        examples: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Return the predictive distribution over questions, in order; ``examples`` are they, if encoded already."""
        raw = self.predict_raw(questions, examples=examples, batch_size=batch_size, progress=progress)
        return raw if self.calibrator is None else self.calibrator.apply(raw)

    def predict_raw(
        self,
        questions: Sequence[Question],
        *,
        examples: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Return what the method itself predicts, before its post-hoc calibration.

        Raises UserError naming the questions to whose choices the model gives scores that are no finite numbers.
        """
        prediction = self.config.method.predict(
            self.model,
            self.encoder.encode_all(questions) if examples is None else examples,
            ids=[question.id for question in questions],
            pad_token_id=self.encoder.pad_token_id,
            batch_size=batch_size or self.config.eval.batch_size,
            progress=progress,
        )
        if unusable := prediction.not_finite:
            raise UserError(
                f"{len(unusable)} of {len(prediction.ids)} questions have scores that are not finite, the first "
                f"'{unusable[0]}': half precision overflows in this model, or its weights are damaged; set "
                "model.dtype to float32 or bfloat16"
            )
        return prediction

    def rows(
        self, questions: Sequence[Question], prediction: Prediction, examples: Sequence[Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Return prediction rows, with the abstain rule applied where there is one.

        ``examples`` are the questions, if encoded already.
        """
        seen = None
        if self.known is not None:
            encoded = self.encoder.encode_all(questions) if examples is None else examples
            seen = vocabulary.shares(encoded, self.known)
        method, seed = self.config.method.label, self.config.output.seed
        rows = predictions.rows(questions, prediction, seen=seen, method=method, seed=seed)
        return rows if self.rule is None else self.rule.apply(rows)

    def fingerprint(self) -> list[list[float]]:
        """Probabilities of the fixed questions, rounded to six digits."""
        questions = [self._with_own_choices(question) for question in FINGERPRINT_QUESTIONS]
        prediction = self.predict_questions(questions)
        return [
            [round(float(p), 6) for p in row[: len(question.choices)]]
            for question, row in zip(questions, prediction.probabilities, strict=True)
        ]

    def _with_own_choices(self, question: Question) -> Question:
        """Give a question the choices of a classifier, which knows no others."""
        if not (classes := self.encoder.classes):
            return question
        return replace(question, choices=classes, labels=tuple(ascii_uppercase[: len(classes)]))

    def check_fingerprint(self, run: Run) -> None:
        """Raise UserError where the fixed questions get other probabilities than when the run was written."""
        found, expected = self.fingerprint(), run.facts["fingerprint"]
        gap = max(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(found, expected, strict=True))
        tolerance = FINGERPRINT_TOLERANCE.get(run.facts["base"]["dtype"], HALF_PRECISION_TOLERANCE)
        if not gap <= tolerance:
            raise UserError(
                f"{run.folder}: fixed prompts get probabilities up to {gap:.4f} away from those saved with the run "
                f"(tolerance {tolerance}); the base model, the adapter or a library behaves differently here; use the "
                "versions that its environment.json names, or restore the run from a copy"
            )
