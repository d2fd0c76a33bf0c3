"""Question to the token sequences of an encoder: a pair for every choice, or one text for a classifier."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from uq4ct.encoders import has_segments
from uq4ct.errors import UserError
from uq4ct.prompts import SAMPLE, Encoder, PromptConfig, answer_of, capped, name_of, padding_of, shortening, way_out
from uq4ct.types import Question

if TYPE_CHECKING:
    from uq4ct.backbone import Backbone, Outline

_DEFAULTS = {name: PromptConfig.model_fields[name].default for name in ("pack", "scoring")}


def encoder_for(base: Backbone | Outline, config: PromptConfig) -> Encoder | SequenceEncoder:
    """Return what turns questions into tokens for a base model."""
    if base.kind == "causal":
        return Encoder(base.tokenizer, config, context_length=base.context_length)
    return SequenceEncoder(base, config)


def classes_of(questions: Sequence[Question]) -> tuple[str, ...]:
    """Return the choices that all questions have in common, in the order of the first question.

    Raises UserError naming every question with other ones.

    >>> rows = [Question("1", "Good!", ("neg", "pos"), ("A", "B")), Question("2", "Bad!", ("pos", "neg"), ("A", "B"))]
    >>> classes_of(rows)
    ('neg', 'pos')
    """
    classes = tuple(choice.strip() for choice in questions[0].choices) if questions else ()
    if problems := [problem for question in questions if (problem := _foreign(question, classes))]:
        raise UserError(capped(problems))
    return classes


class _Tokens(NamedTuple):
    """A question in tokens: what may be shortened, what follows it, and each choice (one, empty, for a classifier)."""

    question: Question
    context: list[int]
    text: list[int]
    options: list[list[int]]


class SequenceEncoder:
    """Encode questions for an encoder's head.

    Multiple choice: one sequence per choice, the question as first text and the choice as second; with a context, that
    is the first text and question and choice are the second. Classification: the question alone, or context and
    question as two texts. Separators are those that the tokenizer itself puts between two texts; a text never contains
    one. Only the context is ever shortened, from its end, and in evaluation only where asked.
    """

    letters: dict[str, int] = {}  # noqa: RUF012, an encoder answers without letters

    def __init__(self, base: Backbone | Outline, config: PromptConfig | None = None):
        self.tokenizer, self.kind, self.classes = base.tokenizer, base.kind, base.classes
        self.config = config or PromptConfig()
        self.context_length = base.context_length
        self.pad_token_id = padding_of(self.tokenizer)
        self._segments = has_segments(base.model.config)
        if changed := [name for name, usual in _DEFAULTS.items() if getattr(self.config, name) != usual]:
            raise UserError(
                [
                    f"prompt.{name}: {getattr(self.config, name)} words a question for a causal language model; an "
                    f"encoder reads the texts as they are, leave prompt.{name} out"
                    for name in changed
                ]
            )
        self._before, self._between, self._after = self._template()

    @property
    def reading(self) -> str:
        """How an answer is read."""
        if self.kind == "classification":
            return f"none: the head scores the classes {', '.join(self.classes)}"
        return "none: the head scores every pair of question and choice"

    @property
    def description(self) -> dict[str, Any]:
        """What a run records of its prompts."""
        pack = "text" if self.kind == "classification" else "pairs"
        return {"pack": pack, "scoring": "head", "hash": self.hash, "letters": {}}

    @property
    def hash(self) -> str:
        """SHA-256 over layout, classes and tokens; equal on every machine with the same tokenizer."""
        sample = SAMPLE
        if self.classes:
            sample = replace(SAMPLE, choices=self.classes, labels=SAMPLE.labels[: len(self.classes)])
        encoded = [self._encode([question], None, None)[0] for question in (sample, replace(sample, context=""))]
        facts = [self.kind, self.classes, self._segments, encoded]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def render(self, question: Question) -> str:
        """Return the sequences of a question as text, separators included, one a line."""
        example = self.encode(question)
        sequences = [[*example["input_ids"], *option] for option in example.get("option_ids", [[]])]
        return "\n".join(self.tokenizer.decode(sequence) for sequence in sequences)

    def encode(self, question: Question, max_length: int | None = None) -> dict[str, Any]:
        """Encode one question; with ``max_length`` its context is shortened from its end until every sequence fits.

        Raises UserError where a sequence is too long without its context, or the choices are not the classes.
        """
        examples, problems, _ = self._encode([question], max_length, max_length)
        if problems:
            raise UserError(problems)
        return examples[0]

    def encode_all(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """Encode questions for evaluation: every item is scored, and in full where no cut-off is set for it.

        Raises UserError listing every question that cannot be encoded.
        """
        return self.encode_evaluation(questions)[0]

    def encode_evaluation(self, questions: Sequence[Question]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Encode questions like `encode_all`; return examples and remarks.

        Raises UserError listing every question that cannot be encoded.
        """
        cut_off = self.config.evaluation_max_length
        examples, problems, shortened = self._encode(questions, cut_off, None)
        if problems:
            raise UserError(capped(problems))
        return examples, tuple(shortening(shortened, len(questions), "evaluation", cut_off))

    def encode_training(self, questions: Sequence[Question]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Encode questions for training, with the cut-off of the configuration; return examples and remarks.

        Raises UserError listing every question that cannot be encoded.
        """
        examples, problems, shortened = self._encode(questions, self.config.max_length, self.config.max_length)
        if problems:
            raise UserError(capped(problems))
        notes = shortening(shortened, len(questions), "training", self.config.max_length)
        alike = sum(len(set(map(tuple, options))) < len(options) for example in examples
                    if (options := example.get("option_ids")))  # fmt: skip
        if alike:
            notes.append(
                f"{alike} of {len(questions)} questions have choices that are the same tokens, so that the model "
                "cannot tell them apart"
            )
        return examples, tuple(notes)

    def _encode(
        self, questions: Sequence[Question], cut_off: int | None, max_length: int | None
    ) -> tuple[list[dict[str, Any]], list[str], int]:
        """Return examples, problems, and how many contexts were shortened to the cut-off.

        A sequence that stays over ``max_length`` is a problem.
        """
        examples, problems, shortened = [], [], 0
        for found in self._tokens(questions):
            tokens = found if cut_off is None else self._shortened(found, cut_off)
            shortened += len(tokens.context) < len(found.context)
            if problem := self._refusal(tokens, max_length):
                problems.append(problem)
            elif not problems:
                examples.append(self._example(tokens))
        return examples, problems, shortened

    def _tokens(self, questions: Sequence[Question]) -> list[_Tokens]:
        """Tokenise the texts of questions, all of a kind in one call; a context without a token is none."""
        contexts = self._tokenize([question.context for question in questions])
        questions = [
            question if context else replace(question, context="")
            for question, context in zip(questions, contexts, strict=True)
        ]
        if self.kind == "classification":
            texts = self._tokenize([question.question for question in questions])
            every = zip(questions, contexts, texts, strict=True)
            return [_Tokens(question, context, text, [[]]) for question, context, text in every]
        texts = self._tokenize(["" if question.context else question.question for question in questions])
        options = iter(self._tokenize([
            f"{question.question} {choice}" if question.context else choice
            for question in questions for choice in question.choices
        ]))  # fmt: skip
        return [
            _Tokens(question, context, text, [next(options) for _ in question.choices])
            for question, context, text in zip(questions, contexts, texts, strict=True)
        ]

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise without adding anything; what looks like a separator in a text is read as plain characters."""
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]

    def _template(self) -> tuple[list[int], list[int], list[int]]:
        """Return the tokens that the tokenizer puts before, between and after two texts."""
        (first, second), joint = self._tokenize(["a", "b"]), self.tokenizer("a", "b")["input_ids"]
        for start in range(len(joint)) if first and second else ():
            for middle in range(start + len(first), len(joint)):
                parts = joint[start : start + len(first)], joint[middle : middle + len(second)]
                if parts == (first, second) and joint[start + len(first) : middle]:
                    return joint[:start], joint[start + len(first) : middle], joint[middle + len(second) :]
        raise UserError(
            f"model.name: the tokenizer of {name_of(self.tokenizer)} puts no separator between two texts "
            f"({self.tokenizer.convert_ids_to_tokens(joint)}), which an encoder needs; copy its tokenizer files again"
        )

    def _example(self, tokens: _Tokens) -> dict[str, Any]:
        question, answer = tokens.question, answer_of(tokens.question)
        if self.kind == "multiple_choice":
            first = [*self._before, *(tokens.context or tokens.text), *self._between]
            options = [[*option, *self._after] for option in tokens.options]
            return {"input_ids": first, "option_ids": options, "answer": answer}
        first = [*self._before, *tokens.context, *self._between] if tokens.context else list(self._before)
        second = [*tokens.text, *self._after]
        classes = [self.classes.index(choice.strip()) for choice in question.choices]
        example = {"input_ids": [*first, *second], "choice_ids": classes, "answer": answer}
        if self._segments:
            example["segment_ids"] = [0] * len(first) + [int(bool(tokens.context))] * len(second)
        return example

    def _length(self, tokens: _Tokens) -> int:
        separators = len(self._before) + len(self._after)
        separators += len(self._between) if self.kind == "multiple_choice" or tokens.context else 0
        return separators + len(tokens.context) + len(tokens.text) + max(map(len, tokens.options))

    def _shortened(self, tokens: _Tokens, max_length: int) -> _Tokens:
        """Cut the context from its end until every sequence fits, or there is none left."""
        over = self._length(tokens) - max_length
        if over <= 0 or not tokens.context:
            return tokens
        if over < len(tokens.context):
            return tokens._replace(context=tokens.context[:-over])
        (bare,) = self._tokens([replace(tokens.question, context="")])
        return bare

    def _refusal(self, tokens: _Tokens, max_length: int | None) -> str:
        """Return why a question cannot be used, or an empty string."""
        question, length = tokens.question, self._length(tokens)
        place = _place(question)
        if self.kind == "classification" and (problem := _foreign(question, self.classes)):
            return problem
        if (empty := self._without_tokens(tokens)) is not None:
            return f"{place}: the tokenizer of {name_of(self.tokenizer)} has no token for {empty!r:.60}"
        if max_length and length > max_length:
            without = " without its context" if question.context == "" else ""
            return (
                f"{place}: the longest sequence has {length} tokens{without}, over the training cut-off of "
                f"{max_length}; shorten the question or raise prompt.max_length"
            )
        if self.context_length and length > self.context_length:
            held = f"{place}: the longest sequence has {length} tokens, the model's context holds {self.context_length}"
            return held + way_out(question.context, self.context_length)
        return ""

    def _without_tokens(self, tokens: _Tokens) -> str | None:
        """Return the first text that would be seen as nothing, or None."""
        if not (tokens.context or tokens.text):
            return tokens.question.question
        every = zip(tokens.question.choices, tokens.options, strict=False)
        return next((choice for choice, option in every if self.kind == "multiple_choice" and not option), None)



def _place(question: Question) -> str:
    return question.place or f"question '{question.id}'"


def _foreign(question: Question, classes: Sequence[str]) -> str:
    """Return what is wrong with the choices of a question for a classifier, or an empty string."""
    own = [choice.strip() for choice in question.choices]
    if sorted(own) == sorted(classes):
        return ""
    return (
        f"{_place(question)}: choices {', '.join(own)}, but a classifier's are the same for every question, in any "
        f"order: {', '.join(classes)}; correct the row, name them with data.choices, or set model.kind: multiple_choice"
    )
