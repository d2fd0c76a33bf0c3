"""Questions as an encoder reads them: pairs or one text, with the tokenizer's own separators, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from encoder_toys import CLASSES, encoder, tokenizer

from uq4ct.errors import UserError
from uq4ct.prompts import PromptConfig
from uq4ct.sequences import SequenceEncoder, classes_of
from uq4ct.types import Question

MELTS = Question("melts", "which melts first ?", ("ice", "salt and sand", "iron"), ("1", "2", "3"), 2, place="q.jsonl:7")
HOT = Question("hot", "which melts first ?", ("ice", "iron"), ("A", "B"), 0, context="it is a very hot day and not good")
FILM = Question("film", "the film is good", CLASSES, ("A", "B", "C"), 1)


def reader(kind="multiple_choice", family="bert", **prompt):
    base = SimpleNamespace(
        tokenizer=tokenizer(family),
        kind=kind,
        classes=CLASSES if kind == "classification" else (),
        context_length=48,
        model=encoder(family, kind),
    )
    return SequenceEncoder(base, PromptConfig(**prompt))


def rows(example):
    return [[*example["input_ids"], *option] for option in example["option_ids"]]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_choice_is_the_pair_that_the_tokenizer_itself_makes(family):
    encoded, own = reader(family=family).encode(MELTS), tokenizer(family)
    assert rows(encoded) == [own(MELTS.question, choice)["input_ids"] for choice in MELTS.choices]
    assert encoded["answer"] == 2


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_with_a_context_question_and_choice_are_the_second_text(family):
    encoded, own = reader(family=family).encode(HOT), tokenizer(family)
    assert rows(encoded) == [own(HOT.context, f"{HOT.question} {choice}")["input_ids"] for choice in HOT.choices]


def test_the_second_segment_is_what_bert_s_tokenizer_says():
    for question, first in ((MELTS, MELTS.question), (HOT, HOT.context)):
        encoded = reader().encode(question)
        choice = question.choices[0] if question is MELTS else f"{question.question} {question.choices[0]}"
        expected = tokenizer()(first, choice, return_token_type_ids=True)["token_type_ids"]
        assert [0] * len(encoded["input_ids"]) + [1] * len(encoded["option_ids"][0]) == expected


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_classifier_reads_one_text_or_context_and_question(family):
    own = tokenizer(family)
    plain = reader("classification", family).encode(FILM)
    assert plain["input_ids"] == own(FILM.question)["input_ids"]
    with_context = Question("f", FILM.question, CLASSES, ("A", "B", "C"), 1, context="it is a hot day")
    encoded, joint = reader("classification", family).encode(with_context), own(
        "it is a hot day", FILM.question, return_token_type_ids=True
    )
    assert encoded["input_ids"] == joint["input_ids"]
    assert encoded.get("segment_ids", joint["token_type_ids"]) == joint["token_type_ids"]
    assert ("segment_ids" in encoded) == (family == "bert")


def test_the_order_of_a_row_s_choices_does_not_move_the_classes():
    turned = Question("film", FILM.question, ("not", "bad", "good"), ("A", "B", "C"), 2)
    first, second = reader("classification").encode_all([FILM, turned])
    assert first["choice_ids"] == [0, 1, 2]
    assert second["choice_ids"] == [2, 0, 1]
    assert first["choice_ids"][first["answer"]] == second["choice_ids"][second["answer"]] == CLASSES.index("good")


def test_other_choices_than_the_classes_are_refused_row_by_row():
    odd = [Question(str(n), "the film", ("bad", "good"), ("A", "B"), 0, place=f"q.jsonl:{n}") for n in (3, 4)]
    with pytest.raises(UserError) as caught:
        reader("classification").encode_all([FILM, *odd])
    assert list(caught.value.problems) == [
        f"q.jsonl:{n}: choices bad, good, but a classifier's are the same for every question, in any order: bad, good, "
        "not; correct the row, name them with data.choices, or set model.kind: multiple_choice"
        for n in (3, 4)
    ]
    with pytest.raises(UserError, match=r"q.jsonl:4: choices bad, good, but"):
        classes_of([FILM, odd[1]])


def test_a_text_cannot_bring_separators_of_its_own():
    trick = Question("t", "which [SEP] melts [CLS] ?", ("ice [SEP]", "iron"), ("A", "B"), 0)
    for row in rows(reader().encode(trick)):
        assert row.count(3) == 2
        assert row.count(2) == 1


def test_only_the_context_is_shortened_and_in_evaluation_only_where_asked():
    short = reader(max_length=14)
    (example,), notes = short.encode_training([HOT])
    (whole,) = short.encode_all([HOT])
    assert max(map(len, rows(example))) == 14
    assert rows(example)[0][0] == 2
    lost = len(whole["input_ids"]) - len(example["input_ids"])
    assert example["input_ids"][:-1] == whole["input_ids"][: -1 - lost]
    assert example["option_ids"] == whole["option_ids"]
    assert notes == (
        "1 of 1 questions have their context shortened from its end, to the training cut-off of 14 tokens",
    )
    ((evaluated,), said) = reader(evaluation_max_length=14).encode_evaluation([HOT])
    assert evaluated == example
    assert said == (notes[0].replace("training", "evaluation"),)


def test_where_no_context_is_left_the_question_stands_as_if_there_had_been_none():
    (example,), _ = reader(max_length=8).encode_training([HOT])
    bare = Question("hot", HOT.question, HOT.choices, HOT.labels, 0)
    assert example == reader().encode(bare)
    with pytest.raises(UserError, match=r"question 'hot': the longest sequence has 9 tokens without its context, o"):
        reader(max_length=8).encode_training([Question("hot", HOT.question + " not", HOT.choices, ("A", "B"), 0)])


def test_a_sequence_longer_than_the_model_s_context_is_an_error_at_evaluation():
    with pytest.raises(UserError, match=r"q.jsonl:7: the longest sequence has \d+ tokens, the model's context holds 48"):
        reader().encode_all([Question("m", "ice " * 60, ("ice", "iron"), ("A", "B"), place="q.jsonl:7")])
    with pytest.raises(UserError, match=r"holds 48; train with prompt.max_length and prompt.evaluation_max_length of at most 48,"):
        reader().encode_all([Question("m", "ice", ("ice", "iron"), ("A", "B"), 0, context="iron " * 60)])


@pytest.mark.parametrize("kind", ["multiple_choice", "classification"])
def test_a_context_of_white_space_is_none(kind):
    question = HOT if kind == "multiple_choice" else replace(FILM, context="It is hot.")
    bare = reader(kind).encode(replace(question, context=""))
    assert reader(kind).encode(replace(question, context=" \n")) == bare != reader(kind).encode(question)


def test_a_choice_without_a_token_is_an_error_and_choices_alike_are_a_remark():
    with pytest.raises(UserError, match=r"has no token for '\\u200b'"):
        reader().encode(Question("z", "which ?", ("ice", "\u200b"), ("A", "B"), 0))
    _, notes = reader().encode_training([Question("z", "which ?", ("Ice", "ice"), ("A", "B"), 0)])
    assert notes == (
        "1 of 1 questions have choices that are the same tokens, so that the model cannot tell them apart",
    )


def test_options_of_prompts_for_causal_models_are_refused_together():
    with pytest.raises(UserError) as caught:
        reader(pack="chat", scoring="options")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["prompt.pack", "prompt.scoring"]


def test_the_hash_follows_layout_classes_and_tokenizer():
    hashes = {reader().hash, reader("classification").hash, reader(family="roberta").hash}
    assert len(hashes) == 3
    assert reader().hash == reader(max_length=20).hash
    assert len(reader().hash) == 64


def test_it_shows_what_the_model_sees():
    assert reader().render(MELTS).splitlines()[0] == "[CLS] which melts first ? [SEP] ice [SEP]"
    assert reader("classification").render(FILM) == "[CLS] the film is good [SEP]"
    assert reader().description == {"pack": "pairs", "scoring": "head", "hash": reader().hash, "letters": {}}


def test_a_tokenizer_that_joins_two_texts_without_a_separator_is_refused():
    from toy_tokenizers import byte_level

    base = SimpleNamespace(
        tokenizer=byte_level(), kind="multiple_choice", classes=(), context_length=48, model=encoder("bert")
    )
    with pytest.raises(UserError, match="puts no separator between two texts"):
        SequenceEncoder(base)
