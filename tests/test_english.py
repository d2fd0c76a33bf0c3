"""The small English model: what it reads, that made questions are answered rightly, and that it is a hub folder."""

import gzip
import json
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.english.__main__ import prepare, train
from benchmarks.english.pretraining import Recipe, _Rows, make_model, pretrain
from benchmarks.english.questions import Maker, asked
from benchmarks.english.texts import read_corpus
from benchmarks.english.tokens import ANSWER, BODY, of_questions, of_text

FIRST = ("stone", "cloud", "river", "copper", "glass", "willow", "amber", "ash", "moss", "frost")
LAST = ("fish", "moth", "ant", "crab", "vole", "wren", "newt", "toad", "finch", "slug", "carp", "hare", "lynx", "mole")
THINGS = [f"{first}{last}" for first in FIRST for last in LAST]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A dictionary, a book, and a file that gives a benchmark away."""
    draw, folder = random.Random(1), tmp_path_factory.mktemp("corpus")
    dictionary = [
        f"{thing}: a small being with {number} spots on it. {thing} is a kind of {THINGS[number // 2]}."
        for number, thing in enumerate(THINGS)
    ]
    book = [
        " ".join([f"The quick {draw.choice(THINGS)} of the old {draw.choice(THINGS)} forest sees", *draw.sample(THINGS, draw.randint(2, 5)), THINGS[n]]) + "."
        for n in range(len(THINGS))
        for _ in range(12)
    ]
    for name, lines in {
        "open_english_wordnet": dictionary,
        "book": [*book[:700], "", *book[700:]],
        "worldtree_sentences": ["an answer is given away here"],
    }.items():
        with gzip.open(folder / f"{name}.txt.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(corpus, folder, questions=300, processes=1, seed=1)
    return folder


def test_files_that_give_a_benchmark_away_are_not_read(corpus, tmp_path):
    read = read_corpus(corpus)
    assert set(read) == {"open_english_wordnet", "book"}
    assert len(read["book"]) == 2
    with pytest.raises(FileNotFoundError, match=r"no \*\.txt\.gz here"):
        read_corpus(tmp_path)


def test_a_made_question_has_the_answer_that_its_text_gives(corpus):
    meant = {line.split(":")[0]: line for (line,) in ([x] for x in read_corpus(corpus)["open_english_wordnet"][0])}
    told = 0
    for question, letter in asked(read_corpus(corpus), 400, seed=3):
        answer = question.choices["ABCDE".index(letter)]
        assert len({choice.lower() for choice in question.choices}) == len(question.choices) in (3, 4, 5)
        if question.question.startswith("Which of these means: "):
            assert question.question.removeprefix("Which of these means: ").rstrip("?") in meant[answer]
            told += 1
        if question.context:
            assert answer in question.context
    assert told > 20


def test_the_same_seed_makes_the_same_questions_and_letters_are_even(corpus):
    read = read_corpus(corpus)
    assert list(asked(read, 50, seed=5)) == list(asked(read, 50, seed=5)) != list(asked(read, 50, seed=6))
    maker = Maker(read, 1)
    of_four = [letter for question, letter in (maker.question() for _ in range(1500)) if len(question.choices) == 4]
    counts = [of_four.count(letter) / len(of_four) for letter in "ABCD"]
    assert max(counts) - min(counts) < 0.1


def test_answers_are_marked_at_their_first_token(prepared, corpus):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(prepared)
    tokens, kinds = of_questions(tokenizer, corpus, 40, seed=2, processes=1)
    starts = np.flatnonzero(tokens == tokenizer.bos_token_id)
    assert len(starts) == (kinds == ANSWER).sum() == 40
    for place in np.flatnonzero(kinds == ANSWER):
        assert tokenizer.decode(tokens[place - 2 : place]) == "Answer:"
    letters = [tokenizer.decode([token]) for token in tokens[kinds == ANSWER]]
    assert sum(letter.strip() in "ABCDE" for letter in letters) == 30
    assert set(np.unique(kinds)) == {BODY, ANSWER}
    text, kinds = of_text(tokenizer, ["one document", "another"])
    assert tokenizer.decode(text) == "<s>one document<s>another"
    assert not kinds.any()


def test_rows_of_questions_begin_where_a_question_does(prepared):
    with np.load(prepared / "questions.npz") as file:
        rows = _Rows(file["tokens"], file["kinds"], 32, torch.device("cpu"))
    rows.begin_at(0)
    tokens, kinds = rows.batch(16, torch.Generator().manual_seed(1))
    assert tokens.shape == kinds.shape == (16, 33)
    assert tokens[:, 0].eq(0).all()


def test_training_lowers_the_loss_and_ends_in_time(prepared):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(prepared)
    recipe = Recipe(hidden=32, feed_forward=64, layers=1, heads=2, row=32, batch=16, warm_up=5, compiled=False)
    model = make_model(recipe, tokenizer)
    rows = []
    for name in ("text", "questions"):
        with np.load(prepared / f"{name}.npz") as file:
            rows.append((file["tokens"], file["kinds"]))
    ids = torch.from_numpy(rows[0][0][:64].astype("int64"))[None]
    before = model(ids, labels=ids).loss.item()
    made = pretrain(model, *rows, recipe, minutes=0.1, say=lambda told: None)
    assert model(ids, labels=ids).loss.item() < before - 1
    assert 0.1 <= made["minutes"] < 0.3
    assert made["steps"] > 20
    assert not model.model.layers[0].mlp.down_proj._forward_hooks


def test_what_is_written_is_a_hub_folder(prepared, tmp_path):
    train(prepared, tmp_path / "model", minutes=0.005, eager=True, hidden=16, feed_forward=16, layers=1, heads=2, batch=2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert tokenizer("Answer: A")["input_ids"][0] == tokenizer.bos_token_id
    assert len({tokenizer(f"Answer: {letter}")["input_ids"][-1] for letter in "ABCDE"}) == 5
    assert json.loads((tmp_path / "model" / "made.json").read_text())["recipe"]["hidden"] == 16
