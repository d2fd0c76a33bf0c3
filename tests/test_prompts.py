"""Prompts are worded exactly, and the answer's token is what the tokenizer makes of prompt and letter together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_tokenizers import CORPUS, MELTS, byte_level, merging, metaspace, wrapped

from uq4ct.errors import UserError
from uq4ct.prompts import PACKS, Encoder, PromptConfig
from uq4ct.types import Question


@pytest.fixture(scope="module")
def gpt() -> Any:
    return byte_level()


@pytest.fixture(scope="module")
def llama() -> Any:
    return metaspace("first")


@pytest.fixture(scope="module")
def bare() -> Any:
    return metaspace("never")


# Wording


def test_plain_is_what_the_bundled_model_was_trained_on():
    assert PACKS["plain"].render(MELTS) == (
        "It is a hot day in the kitchen, and the sun shines on the table.\n"
        "Question: Which melts first?\nA. ice\nB. iron\nC. salt.\nAnswer:"
    )
    assert PACKS["plain"].render(replace(MELTS, context="")) == (
        "Question: Which melts first?\nA. ice\nB. iron\nC. salt.\nAnswer:"
    )


def test_moe_peft_shows_no_passage():
    assert PACKS["moe_peft"].render(MELTS) == (
        "Choose the correct answer to the question: Which melts first?\n(A) ice (B) iron (C) salt.\nAnswer:"
    )


def test_laplace_lora_is_one_line_with_capitals_and_full_stops():
    assert PACKS["laplace_lora"].render(replace(MELTS, context="Hot.")) == (
        "Select the choice that answers this question: Which melts first? Passage: Hot. "
        "Choices: A. Ice. B. Iron. C. Salt. Answer:"
    )


def test_prompts_show_letters_whatever_the_labels_are():
    for pack in PACKS.values():
        assert "A" in pack.render(MELTS)
        assert "1" not in pack.render(MELTS)


# Letters


@pytest.mark.parametrize("tokenizer", ["gpt", "llama", "bare"])
@pytest.mark.parametrize("pack", ["plain", "moe_peft", "laplace_lora"])
def test_a_letter_is_the_token_that_follows_the_prompt(tokenizer, pack, request):
    tokenizer = request.getfixturevalue(tokenizer)
    encoder = Encoder(tokenizer, PromptConfig(pack=pack))
    assert "".join(encoder.letters) == ascii_uppercase
    assert len(set(encoder.letters.values())) == 26
    example = encoder.encode(MELTS)
    text = encoder.render(MELTS)
    for index, letter in enumerate("ABC"):
        joint = tokenizer(f"{text} {letter}")["input_ids"]
        assert joint == [*example["input_ids"], example["choice_ids"][index]]
    assert example["answer"] == 2
    assert encoder.encode(replace(MELTS, answer=None))["answer"] == -100


@pytest.mark.parametrize("tokenizer", ["gpt", "llama", "bare"])
def test_there_is_exactly_one_beginning_of_text(tokenizer, request):
    tokenizer = request.getfixturevalue(tokenizer)
    ids = Encoder(tokenizer).encode(MELTS)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids


def test_an_end_of_text_token_that_the_tokenizer_appends_is_left_out():
    from tokenizers import processors

    tokenizer = byte_level()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    ids = Encoder(tokenizer).encode(MELTS)["input_ids"]
    assert ids[0] == 0
    assert 1 not in ids


def test_control_tokens_in_a_question_are_plain_text(gpt):
    question = replace(MELTS, question="What does </s> mean, and <s>?")
    ids = Encoder(gpt).encode(question)["input_ids"]
    assert gpt.eos_token_id not in ids
    assert ids.count(gpt.bos_token_id) == 1
    assert "</s>" in gpt.decode(ids)


def test_a_tokenizer_that_merges_the_answer_into_the_prompt_is_refused_with_the_tokens_and_the_fix():
    with pytest.raises(UserError) as caught:
        Encoder(merging())
    assert str(caught.value) == (
        "prompt.scoring: letters needs each letter to be one token of its own after the prompt, but the tokenizer of "
        "'toy' gives ' A' -> ['Answer: A'], ' B' -> ['Answer: B'], 'A' -> ['Answer:A'], 'B' -> ['Answer:B']; set "
        "prompt.scoring: options, which scores the text of the choices"
    )


def test_where_the_letter_with_a_space_is_two_tokens_the_letter_alone_is_taken():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", " ", *sorted(set("".join(CORPUS)) - {" "})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # every character is a token
    encoder = Encoder(wrapped(tokenizer))
    assert encoder.letters["A"] == words.index("A")
    assert encoder.encode(MELTS)["input_ids"][-1] == words.index(":")


def test_a_letter_that_the_tokenizer_does_not_know_is_none():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", *"ABCDE"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert "".join(Encoder(wrapped(tokenizer, unk_token="<unk>")).letters) == "ABCDE"


def test_more_choices_than_letters_is_an_error_of_the_row(gpt):
    encoder = Encoder(gpt)
    encoder.letters = dict(list(encoder.letters.items())[:2])
    with pytest.raises(UserError) as caught:
        encoder.encode(MELTS)
    assert str(caught.value) == (
        "q.jsonl:7: 3 choices, but only A, B are single tokens of the tokenizer of 'toy'; set prompt.scoring: options"
    )


def test_a_prompt_after_which_the_letter_changes_is_found(gpt, monkeypatch):
    encoder = Encoder(gpt)
    usual = encoder._prompt_ids

    def odd(texts):
        return [
            [*ids[:-1], 5, 6] if text.endswith(" A") and "odd" in text else ids
            for text, ids in zip(texts, usual(texts), strict=True)
        ]

    monkeypatch.setattr(encoder, "_prompt_ids", odd)
    encoder.encode_all([MELTS])
    with pytest.raises(
        UserError, match=r"^q\.jsonl:9: ' A' is not one token after this prompt but \[.*\]; set prompt\.scoring"
    ):
        encoder.encode_all([MELTS, replace(MELTS, question="An odd one", place="q.jsonl:9")])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=st.text(max_size=40), choices=st.lists(st.text(max_size=12), min_size=2, max_size=6))
def test_any_text_is_encoded_so_that_the_prompt_ends_right_before_the_letter(gpt, question, choices):
    try:
        (question + "".join(choices)).encode()
    except UnicodeEncodeError:
        return
    asked = Question("x", question, tuple(choices), tuple(ascii_uppercase[: len(choices)]), 0)
    encoder = Encoder(gpt)
    example = encoder.encode(asked)
    assert gpt.decode(example["input_ids"][1:]) == encoder.render(asked)
    assert example["choice_ids"] == [encoder.letters[letter] for letter in ascii_uppercase[: len(choices)]]


# Options


@pytest.mark.parametrize("tokenizer", ["gpt", "llama", "bare"])
def test_options_are_the_tokens_by_which_a_choice_continues_the_prompt(tokenizer, request):
    tokenizer = request.getfixturevalue(tokenizer)
    encoder = Encoder(tokenizer, PromptConfig(scoring="options"))
    assert encoder.letters == {}
    example = encoder.encode(MELTS)
    for choice, ids in zip(MELTS.choices, example["option_ids"], strict=True):
        assert ids
        assert [*example["input_ids"], *ids] == tokenizer(f"{encoder.render(MELTS)} {choice}")["input_ids"]


def test_options_that_join_with_the_prompt_are_refused():
    question = replace(MELTS, choices=("A", "B"), labels=("A", "B"), answer=0, context="")
    with pytest.raises(
        UserError, match=r"^q\.jsonl:7: the tokenizer of 'toy' joins the end of the prompt with the choice 'A' "
    ):
        Encoder(merging(), PromptConfig(scoring="options")).encode(question)


# Shortening


def test_only_the_context_is_shortened_and_from_its_end(gpt):
    encoder = Encoder(gpt, PromptConfig(max_length=40))
    tail = encoder.render(replace(MELTS, context=""))
    need = len(encoder.encode(replace(MELTS, context=""))["input_ids"])
    long = replace(MELTS, context="Heat melts things. " * 200)
    whole = encoder.encode(long)["input_ids"]
    for room in (need, need + 5, need + 23, need + 200):
        short = encoder.encode(long, max_length=room)["input_ids"]
        text = gpt.decode(short[1:])
        assert text.endswith(tail)
        assert len(short) <= room
        assert room - len(short) <= 12
        kept = text.removesuffix(tail).rstrip("\n")
        assert long.context.startswith(kept)
        assert kept == "" or kept.endswith(("Heat", "melts", "things."))
    assert len(whole) > 600


def test_shortening_is_for_training_alone_and_counted(gpt):
    long = replace(MELTS, context="Heat melts things. " * 200, id="long")
    encoder = Encoder(gpt, PromptConfig(max_length=200))
    examples, notes = encoder.encode_training([MELTS, long])
    assert [len(example["input_ids"]) <= 200 for example in examples] == [True, True]
    assert notes == (
        "1 of 2 questions have their context shortened from its end, to the training cut-off of 200 tokens",
    )
    assert len(encoder.encode_all([long])[0]["input_ids"]) > 600
    assert Encoder(gpt, PromptConfig(max_length=None)).encode_training([long])[1] == ()


def test_evaluation_shortens_contexts_where_asked_and_scores_what_has_none_in_full(gpt):
    long = replace(MELTS, context="Heat melts things. " * 200, id="long")
    bare = replace(MELTS, context="", question="Which melts first " * 80, id="bare")
    encoder = Encoder(gpt, PromptConfig(evaluation_max_length=200))
    (cut, full, as_it_is), notes = encoder.encode_evaluation([long, bare, MELTS])
    assert cut == encoder.encode(long, max_length=200)
    assert len(cut["input_ids"]) <= 200 < len(full["input_ids"])
    assert as_it_is == Encoder(gpt).encode(MELTS)
    assert notes == (
        "1 of 3 questions have their context shortened from its end, to the evaluation cut-off of 200 tokens",
    )
    assert Encoder(gpt).encode_evaluation([long, bare])[1] == ()


def test_a_training_question_too_long_without_its_context_is_a_bad_row(gpt):
    encoder = Encoder(gpt, PromptConfig(max_length=16))
    length = len(encoder.encode(replace(MELTS, context=""))["input_ids"])
    with pytest.raises(UserError) as caught:
        encoder.encode_training([MELTS, replace(MELTS, place="q.jsonl:8")])
    assert caught.value.problems[0] == (
        f"q.jsonl:7: the prompt has {length} tokens without its context, over the training cut-off of 16; shorten the "
        "question or raise prompt.max_length"
    )
    assert len(caught.value.problems) == 2


def test_options_leave_room_for_the_longest_choice(gpt):
    encoder = Encoder(gpt, PromptConfig(scoring="options"))
    long = replace(MELTS, context="Heat melts things. " * 200, choices=("ice", "iron and nickel and cobalt", "salt"))
    example = encoder.encode(long, max_length=150)
    assert 135 < len(example["input_ids"]) + max(map(len, example["option_ids"])) <= 150


def test_prompts_beyond_the_models_context_are_refused(gpt):
    encoder = Encoder(gpt, context_length=20)
    length = len(Encoder(gpt).encode(MELTS)["input_ids"])
    held, way = f"{length} tokens, the model's context holds 20", "prompt.evaluation_max_length of at most 20"
    with pytest.raises(UserError, match=rf"^q\.jsonl:7: the prompt has {held}; train with prompt.max_length and {way}"):
        encoder.encode(MELTS)


def test_a_pack_without_passages_says_so(gpt):
    encoder, said = Encoder(gpt, PromptConfig(pack="moe_peft")), "prompt.pack: moe_peft does not show the context of a question"
    assert encoder.encode_training([MELTS])[1] == (said,)
    assert encoder.encode_evaluation([replace(MELTS, context=""), MELTS])[1] == (said,)
    assert encoder.encode_evaluation([replace(MELTS, context="")])[1] == ()


# Chat

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<user>{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<model>\n{% endif %}"
)


def test_the_chat_pack_uses_the_tokenizers_template_with_one_beginning_of_text():
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATE
    encoder = Encoder(tokenizer, PromptConfig(pack="chat"))
    assert encoder.render(replace(MELTS, context="")) == (
        "<s><user>Question: Which melts first?\nA. ice\nB. iron\nC. salt.\n"
        "Reply with the letter of the correct answer and nothing else.</s>\n<model>\n"
    )
    example = encoder.encode(MELTS)
    assert example["input_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id in example["input_ids"]
    assert tokenizer.convert_ids_to_tokens(example["choice_ids"]) == ["A", "B", "C"]
    tokenizer.chat_template = TEMPLATE.removeprefix("{{ bos_token }}")
    assert Encoder(tokenizer, PromptConfig(pack="chat")).encode(MELTS)["input_ids"] == example["input_ids"]
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    assert Encoder(tokenizer, PromptConfig(pack="chat")).encode(MELTS)["input_ids"] == example["input_ids"]


def test_a_template_with_todays_date_does_not_change_overnight():
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} " + TEMPLATE
    assert Encoder(tokenizer, PromptConfig(pack="chat")).render(MELTS).startswith("26 Jul 2024 <s><user>It is a hot")


def test_control_tokens_in_a_chat_question_are_an_error():
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATE
    encoder = Encoder(tokenizer, PromptConfig(pack="chat"))
    with pytest.raises(
        UserError, match=r"^q\.jsonl:7: the text contains the control token '</s>' of the chat template"
    ):
        encoder.encode(replace(MELTS, question="What is </s>?"))


def test_chat_without_a_template_is_an_error(gpt):
    with pytest.raises(UserError) as caught:
        Encoder(gpt, PromptConfig(pack="chat"))
    assert str(caught.value) == (
        "prompt.pack: chat needs a tokenizer with a chat template, and that of 'toy' has none; use prompt.pack: plain"
    )


# Identity


def test_the_hash_names_pack_scoring_and_letters(gpt, llama):
    configs = [
        PromptConfig(pack=pack, scoring=scoring) for pack in ("plain", "moe_peft") for scoring in ("letters", "options")
    ]
    hashes = [Encoder(gpt, config).hash for config in configs] + [Encoder(llama).hash]
    assert len(set(hashes)) == 5
    assert Encoder(byte_level()).hash == Encoder(gpt).hash
    assert Encoder(gpt, PromptConfig(max_length=99)).hash == Encoder(gpt).hash


def test_the_bundled_tokenizers_letters_and_hash_are_stable():
    from transformers import AutoTokenizer

    import uq4ct

    encoder = Encoder(AutoTokenizer.from_pretrained(Path(uq4ct.__file__).parent / "tiny" / "model"))
    assert "".join(encoder.letters) == ascii_uppercase
    assert len(encoder.hash) == 64
    assert encoder.tokenizer.decode([encoder.letters["C"]]) == " C"


@pytest.mark.parametrize(
    ("make", "expected"),
    [(lambda: byte_level(), 1), (lambda: byte_level(pad_token="<s>"), 0), (lambda: byte_level(eos_token=None), 0)],
)
def test_padding_is_the_end_of_text_where_there_is_no_padding_token(make: Callable[[], Any], expected: int):
    tokenizer = make()
    before = len(tokenizer)
    assert Encoder(tokenizer).pad_token_id == expected
    assert len(tokenizer) == before


def test_five_thousand_questions_are_encoded_in_five_seconds(gpt):
    import time

    questions = [replace(MELTS, question=f"Which of these melts first in case {n}?", id=str(n)) for n in range(5000)]
    started = time.process_time()
    assert len(Encoder(gpt).encode_all(questions)) == 5000
    assert time.process_time() - started < 5
