"""Question to prompt text, and prompt text to tokens: packs of wording, and the token of each answer letter.

The letter's token is found by tokenising prompt and letter together: what follows "Answer:" in training and at test is
decided by the tokenizer, and differs between SentencePiece, byte-level BPE and chat templates.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from uq4ct.errors import UserError
from uq4ct.types import Question

SAMPLE = Question(
    id="sample",
    question="Which of these comes first?",
    choices=tuple(f"number {number}" for number in range(1, 27)),
    labels=tuple(ascii_uppercase),
    context="Numbers are counted upwards from one.",
)


class PromptConfig(BaseModel):
    """Say how a question is shown and how its answer is scored: the ``prompt`` section of a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pack: Literal["plain", "moe_peft", "laplace_lora", "chat"] = "plain"
    scoring: Literal["letters", "options"] = "letters"
    max_length: int | None = Field(default=512, ge=8, description="Training cut-off in tokens; null: none")
    evaluation_max_length: int | None = Field(
        default=None, ge=8, description="Cut-off of calibration, evaluation and prediction in tokens; null: none"
    )


@dataclass(frozen=True)
class Pack:
    """One way of wording: the text of a prompt, and what may stand between it and the answer, the first that fits."""

    name: str
    render: Callable[[Question], str]
    joiners: tuple[str, ...] = (" ", "")
    shows_context: bool = True


def plain(question: Question) -> str:
    r"""Word a question plainly.

    >>> print(plain(Question("1", "Which melts first?", ("ice", "iron"), ("1", "2"), context="It is hot.")))
    It is hot.
    Question: Which melts first?
    A. ice
    B. iron
    Answer:
    """
    context = f"{question.context}\n" if question.context else ""
    return f"{context}Question: {question.question}\n{_lines(question)}\nAnswer:"


def moe_peft(question: Question) -> str:
    """Word a question in the manner of the code base that the paper extends: one line of (A) (B), and no passage.

    That code base asks BoolQ without its passage, so this pack never shows a context.

    >>> print(moe_peft(Question("1", "Which melts first?", ("ice", "iron"), ("1", "2"), context="It is hot.")))
    Choose the correct answer to the question: Which melts first?
    (A) ice (B) iron
    Answer:
    """
    choices = " ".join(
        f"({letter}) {choice}" for letter, choice in zip(ascii_uppercase, question.choices, strict=False)
    )
    return f"Choose the correct answer to the question: {question.question}\n{choices}\nAnswer:"


def laplace_lora(question: Question) -> str:
    """Word a question in the manner of Laplace-LoRA: a single line, choices capitalised and closed with a full stop.

    >>> print(laplace_lora(Question("1", "Which melts first?", ("ice", "iron"), ("1", "2"))))
    Select the choice that answers this question: Which melts first? Choices: A. Ice. B. Iron. Answer:
    """
    context = f" Passage: {question.context}" if question.context else ""
    choices = " ".join(
        f"{letter}. {choice[:1].upper()}{choice[1:].rstrip('.')}."
        for letter, choice in zip(ascii_uppercase, question.choices, strict=False)
    )
    return f"Select the choice that answers this question: {question.question}{context} Choices: {choices} Answer:"


def chat(question: Question) -> str:
    """Word a question as the message of a user; the tokenizer's own template goes around it.

    >>> print(chat(Question("1", "Which melts first?", ("ice", "iron"), ("1", "2"))))
    Question: Which melts first?
    A. ice
    B. iron
    Reply with the letter of the correct answer and nothing else.
    """
    return f"{plain(question).removesuffix('Answer:')}Reply with the letter of the correct answer and nothing else."


def _lines(question: Question) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, question.choices, strict=False))


# After a chat template, which ends with a line break or a control token, a letter usually comes without a space.
PACKS = {
    "plain": Pack("plain", plain),
    "moe_peft": Pack("moe_peft", moe_peft, shows_context=False),
    "laplace_lora": Pack("laplace_lora", laplace_lora),
    "chat": Pack("chat", chat, joiners=("", " ")),
}


@dataclass(frozen=True)
class _Prompt:
    """A rendered question, its tokens, and the most tokens that an answer adds to them."""

    question: Question
    text: str
    ids: list[int]
    answer_tokens: int

    @property
    def length(self) -> int:
        return len(self.ids) + self.answer_tokens

    @property
    def place(self) -> str:
        return self.question.place or f"question '{self.question.id}'"


class Encoder:
    """Turn questions into token ids that end right before the answer.

    ``letters`` maps each letter that the tokenizer can answer with to its token, ``hash`` names pack, scoring and
    letters, ``pad_token_id`` is the end-of-text token where the tokenizer has no padding token (it is always masked).
    ``context_length`` is the model's: longer prompts are refused. Raises UserError where fewer than two letters are
    single tokens, or where the pack needs a chat template that the tokenizer does not have.
    """

    def __init__(self, tokenizer: Any, config: PromptConfig | None = None, *, context_length: int | None = None):
        self.tokenizer = tokenizer
        self.config = config or PromptConfig()
        self.context_length = context_length
        self.pack = PACKS[self.config.pack]
        if self.config.pack == "chat" and not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"prompt.pack: chat needs a tokenizer with a chat template, and that of {name_of(tokenizer)} has none; "
                "use prompt.pack: plain"
            )
        self._template = _undated(tokenizer.get_chat_template()) if self.config.pack == "chat" else None
        self.pad_token_id = padding_of(tokenizer)
        self._start = _start_ids(tokenizer)
        self.letters: dict[str, int] = {}
        self._joiner = self.pack.joiners[0]
        if self.config.scoring == "letters":
            self._joiner, self.letters = self._find_letters()
        self._proved: set[int] = set()  # numbers of choices for which every letter was checked in context

    classes: tuple[str, ...] = ()  # only an encoder's head is tied to a data set's choices

    @property
    def reading(self) -> str:
        """How an answer is read where it is not by letters."""
        return "scored by the text of the choices"

    @property
    def description(self) -> dict[str, Any]:
        """What a run records of its prompts."""
        letters = dict(self.letters)
        return {"pack": self.config.pack, "scoring": self.config.scoring, "hash": self.hash, "letters": letters}

    @property
    def hash(self) -> str:
        """SHA-256 over wording, scoring and letters; equal on every machine with the same tokenizer."""
        bare = replace(SAMPLE, context="")
        facts = [
            self.config.pack,
            self.config.scoring,
            self._joiner,
            self.letters,
            self.render(SAMPLE),
            self.render(bare),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def render(self, question: Question) -> str:
        """Return the text of a prompt, with the chat template where the pack is chat."""
        text = self.pack.render(question)
        if self.config.pack != "chat":
            return text
        # A prompt must not change overnight, and the answer must come right after it: no date of today, no thoughts.
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
            date_string=_DATE,
            enable_thinking=False,
        )

    def encode(self, question: Question, max_length: int | None = None) -> dict[str, Any]:
        """Encode one question; with ``max_length`` its context is shortened from its end until the prompt fits.

        Raises UserError where the prompt is too long without its context, or a letter is not one token after it.
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
        return examples, (*shortening(shortened, len(questions), "evaluation", cut_off), *self._unshown(questions))

    def encode_training(self, questions: Sequence[Question]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Encode questions for training, with the cut-off of the configuration; return examples and remarks.

        Raises UserError listing every question that is too long without its context.
        """
        examples, problems, shortened = self._encode(questions, self.config.max_length, self.config.max_length)
        if problems:
            raise UserError(capped(problems))
        notes = shortening(shortened, len(questions), "training", self.config.max_length)
        return examples, (*notes, *self._unshown(questions))

    def _unshown(self, questions: Sequence[Question]) -> list[str]:
        """Return the remark that contexts are not shown, where there are some."""
        if self.pack.shows_context or not any(question.context for question in questions):
            return []
        return [f"prompt.pack: {self.pack.name} does not show the context of a question"]

    def _encode(
        self, questions: Sequence[Question], cut_off: int | None, max_length: int | None
    ) -> tuple[list[dict[str, Any]], list[str], int]:
        """Return examples, problems, and how many contexts were shortened to the cut-off.

        A prompt that stays over ``max_length`` is a problem.
        """
        prompts, shortened = self._prompts(questions), 0
        for index, prompt in enumerate(prompts):
            if cut_off and prompt.length > cut_off and prompt.question.context and self.pack.shows_context:
                prompts[index] = self._shorten(prompt, cut_off)
                shortened += 1
        problems = [problem for prompt in prompts if (problem := self._refusal(prompt, max_length))]
        if problems:
            return [], problems, shortened
        add_answers = self._with_letters if self.config.scoring == "letters" else self._with_options
        return add_answers(prompts, problems), problems, shortened

    def _prompts(self, questions: Sequence[Question]) -> list[_Prompt]:
        texts = [self.render(question) for question in questions]
        answers = [0] * len(questions)  # a letter is never fed to the model, a choice's text is
        if self.config.scoring == "options":
            tokens = iter(
                self._tokenize([self._joiner + choice for question in questions for choice in question.choices])
            )
            answers = [max(len(next(tokens)) for _ in question.choices) for question in questions]
        return [
            _Prompt(question, text, ids, answer)
            for question, text, ids, answer in zip(questions, texts, self._prompt_ids(texts), answers, strict=True)
        ]

    def _refusal(self, prompt: _Prompt, max_length: int | None) -> str:
        """Return why a prompt cannot be used, or an empty string."""
        place, count = prompt.place, len(prompt.question.choices)
        if max_length and prompt.length > max_length:
            without = " without its context" if prompt.question.context == "" and self.pack.shows_context else ""
            return (
                f"{place}: the prompt has {prompt.length} tokens{without}, over the training cut-off of "
                f"{max_length}; shorten the question or raise prompt.max_length"
            )
        if self.context_length and prompt.length > self.context_length:
            held = f"{place}: the prompt has {prompt.length} tokens, the model's context holds {self.context_length}"
            return held + way_out(prompt.question.context if self.pack.shows_context else "", self.context_length)
        if self.config.scoring == "letters" and count > len(self.letters):
            return (
                f"{place}: {count} choices, but only {', '.join(self.letters)} are single tokens of the tokenizer of "
                f"{name_of(self.tokenizer)}; set prompt.scoring: options"
            )
        if self.config.pack == "chat" and (found := self._control_token(prompt.question)):
            return f"{place}: the text contains the control token {found!r} of the chat template; remove it"
        return ""

    def _control_token(self, question: Question) -> str | None:
        text = "\n".join((question.context, question.question, *question.choices))
        return next((token for token in self.tokenizer.all_special_tokens if token in text), None)

    def _shorten(self, prompt: _Prompt, max_length: int) -> _Prompt:
        """Cut the context from its end, at a word where there is one, until the prompt fits or the context is gone."""
        question = prompt.question

        def cut(characters: int) -> _Prompt:
            return self._prompts([replace(question, context=_cut(question.context, characters))])[0]

        low, high, best = 0, len(question.context), cut(0)
        low_length, high_length = best.length, prompt.length
        while high - low > _CUT_TOLERANCE and best.length <= max_length:
            share = (max_length - low_length) / max(1, high_length - low_length)
            middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
            tried = cut(middle)
            if tried.length <= max_length:
                low, low_length, best = middle, tried.length, tried
                if tried.length == max_length:
                    break
            else:
                high, high_length = middle, tried.length
        return best

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise without adding anything; only a chat template may contain control tokens."""
        if not texts:
            return []
        return self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=self.config.pack != "chat", verbose=False
        )["input_ids"]

    def _prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise prompts with exactly one beginning-of-text token where the tokenizer or its template uses one."""
        prompts = []
        for ids in self._tokenize(texts):
            written = 0  # by the chat template
            while written < len(ids) and ids[written] == self.tokenizer.bos_token_id:
                written += 1
            prompts.append([*(self._start or ids[: min(written, 1)]), *ids[written:]])
        return prompts

    def _find_letters(self) -> tuple[str, dict[str, int]]:
        """Return the joiner under which most letters are single, distinct tokens, and those letters' tokens."""
        prompt = self.render(SAMPLE)
        best: tuple[str, dict[str, int]] = ("", {})
        seen = []
        for joiner in self.pack.joiners:
            answers = self._prompt_ids([prompt, *(prompt + joiner + letter for letter in ascii_uppercase)])
            letters = _single_tokens(answers[0], answers[1:], self.tokenizer.unk_token_id)
            if len(letters) > len(best[1]):
                best = joiner, letters
            seen += [
                f"{joiner + letter!r} -> {self._tail(answers[0], answers[1 + i])}" for i, letter in enumerate("AB")
            ]
        if len(best[1]) < 2:
            raise UserError(
                "prompt.scoring: letters needs each letter to be one token of its own after the prompt, but the "
                f"tokenizer of {name_of(self.tokenizer)} gives {', '.join(seen)}; set prompt.scoring: options, which "
                "scores the text of the choices"
            )
        return best

    def _tail(self, prompt: Sequence[int], joint: Sequence[int]) -> str:
        """Show the tokens by which prompt and answer differ from the prompt."""
        same = next(
            (i for i, (a, b) in enumerate(zip(prompt, joint, strict=False)) if a != b), min(len(prompt), len(joint))
        )
        return str(self.tokenizer.convert_ids_to_tokens(list(joint[same:])))

    def _with_letters(self, prompts: Sequence[_Prompt], problems: list[str]) -> list[dict[str, Any]]:
        """Add the letters' tokens, checking in each prompt that the letter stays one token of its own."""
        tokens = list(self.letters.values())
        probes: list[tuple[_Prompt, int]] = []  # one letter per prompt, and every letter once per number of choices
        for prompt in prompts:
            count = len(prompt.question.choices)
            probes += [(prompt, letter) for letter in (range(1) if count in self._proved else range(count))]
            self._proved.add(count)
        joint = self._prompt_ids([prompt.text + self._joiner + ascii_uppercase[letter] for prompt, letter in probes])
        for (prompt, letter), ids in zip(probes, joint, strict=True):
            if ids != [*prompt.ids, tokens[letter]]:
                problems.append(
                    f"{prompt.place}: {self._joiner + ascii_uppercase[letter]!r} is not one token after this prompt "
                    f"but {self._tail(prompt.ids, ids)}; set prompt.scoring: options"
                )
        return [
            {
                "input_ids": prompt.ids,
                "choice_ids": tokens[: len(prompt.question.choices)],
                "answer": answer_of(prompt.question),
            }
            for prompt in prompts
        ]

    def _with_options(self, prompts: Sequence[_Prompt], problems: list[str]) -> list[dict[str, Any]]:
        """Add the tokens by which each choice's text continues the prompt."""
        joint = iter(
            self._prompt_ids([p.text + self._joiner + choice for p in prompts for choice in p.question.choices])
        )
        examples = []
        for prompt in prompts:
            options, start = [], len(prompt.ids)
            for choice in prompt.question.choices:
                ids = next(joint)
                if ids[:start] != prompt.ids or len(ids) == start:
                    problems.append(
                        f"{prompt.place}: the tokenizer of {name_of(self.tokenizer)} joins the end of the prompt with "
                        f"the choice {choice!r:.60} ({self._tail(prompt.ids, ids)}); use another prompt.pack"
                    )
                options.append(ids[start:])
            examples.append({"input_ids": prompt.ids, "option_ids": options, "answer": answer_of(prompt.question)})
        return examples


_DATE = "26 Jul 2024"  # what Llama's template writes where it is given none
_PROBLEMS_SHOWN = 20
_CUT_TOLERANCE = 16  # characters of context that may be given up to save tokenisations


def _undated(template: str) -> str:
    """Return a chat template that writes a fixed date where it would write today's."""
    macro = f"{{%- macro strftime_now(pattern) -%}}{_DATE}{{%- endmacro -%}}"
    return macro + template if "strftime_now" in template else template


def shortening(shortened: int, of: int, kind: str, cut_off: int | None) -> list[str]:
    """Return the remark that contexts were shortened, where some were."""
    if not shortened:
        return []
    return [
        f"{shortened} of {of} questions have their context shortened from its end, to the {kind} cut-off of {cut_off} "
        "tokens"
    ]


def way_out(context: str, context_length: int) -> str:
    """Return what can be done where the model does not hold a question with its context, shown as that is."""
    if not context:
        return ""
    return (
        f"; train with prompt.max_length and prompt.evaluation_max_length of at most {context_length}, which shorten "
        "passages in training and in evaluation"
    )


def answer_of(question: Question) -> int:
    """Return the index of the gold choice, -100 where it is unknown."""
    return -100 if question.answer is None else question.answer


def _single_tokens(prompt: list[int], answers: Sequence[list[int]], unknown: int | None) -> dict[str, int]:
    """Return the letters, from A on, that add exactly one token to the prompt, each its own and not the unknown one."""
    letters: dict[str, int] = {}
    for letter, ids in zip(ascii_uppercase, answers, strict=True):
        if ids[:-1] != prompt or ids[-1] == unknown or ids[-1] in letters.values():
            break
        letters[letter] = ids[-1]
    return letters


def _start_ids(tokenizer: Any) -> list[int]:
    """Return what the tokenizer puts before a text of its own accord, with a repeated beginning-of-text token once."""
    full, bare = tokenizer("A")["input_ids"], tokenizer("A", add_special_tokens=False)["input_ids"]
    at = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), 0)
    return [token for i, token in enumerate(full[:at]) if i == 0 or token != full[i - 1]]


def padding_of(tokenizer: Any) -> int:
    """Return the token to pad with; it is masked everywhere."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _cut(context: str, characters: int) -> str:
    """Return the first characters of a context, ending at a word where one ends nearby."""
    if characters >= len(context):
        return context
    kept = context[:characters]
    if not context[characters].isspace() and (space := re.search(r"\s\S{0,30}$", kept)):
        kept = kept[: space.start()]
    return kept.rstrip()


def capped(problems: list[str]) -> list[str]:
    """Return the first problems, and how many more there are."""
    more = len(problems) - _PROBLEMS_SHOWN
    return problems if more <= 0 else [*problems[:_PROBLEMS_SHOWN], f"... and {more} more prompts"]


def name_of(tokenizer: Any) -> str:
    """Return a tokenizer's name as a message shows it."""
    return f"'{getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}'"
