"""The bundled world: its files follow from the seed, tell the truth about their own probabilities, and leak nothing."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

import pytest

import uq4ct.tiny
from uq4ct.tiny.build import SEED, write_questions
from uq4ct.tiny.corpus import Corpus
from uq4ct.tiny.presets import PRESETS, TINY
from uq4ct.tiny.questions import LETTERS, ideal_reader, make_question, make_splits, render
from uq4ct.tiny.world import Fact, World, make_world

FOLDER = Path(uq4ct.tiny.__file__).parent
SPLITS = dict(TINY.size.questions)
ANSWERABLE = {"often", "rare", "contradicted"}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(TINY.size, SEED)


@pytest.fixture(scope="module")
def files() -> dict[str, list[dict]]:
    return {
        name: [json.loads(line) for line in (FOLDER / "data" / f"{name}.jsonl").open(encoding="utf-8")]
        for name in SPLITS
    }


@pytest.fixture(scope="module")
def bundled():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = FOLDER / "model"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def entities(rows: list[dict]) -> set[str]:
    return {row["group"] for row in rows}


def facts(rows: list[dict]) -> set[str]:
    return {row["id"].split("-", 1)[1].rpartition("-")[0] for row in rows}


def test_the_shipped_questions_follow_from_the_seed_byte_for_byte(world, tmp_path):
    write_questions(tmp_path, make_splits(world))
    for name in SPLITS:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (FOLDER / "data" / f"{name}.jsonl").read_bytes(), name


def test_every_file_has_its_size_and_every_row_its_schema(files):
    assert {name: len(rows) for name, rows in files.items()} == SPLITS
    for row in (row for rows in files.values() for row in rows):
        count = len(row["choices"])
        assert 3 <= count <= 5
        assert len(set(row["choices"])) == count
        assert row["answer"] in LETTERS[:count]
        assert len(row["true_probabilities"]) == count
        assert sum(row["true_probabilities"]) == pytest.approx(1, abs=1e-3)
        assert row["true_probabilities"][LETTERS.index(row["answer"])] > 0
        assert ("ideal_probabilities" in row) == (row["stratum"] == "rare")
        assert sum(row.get("ideal_probabilities", [1.0])) == pytest.approx(1, abs=1e-3)
    ids = [row["id"] for rows in files.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_strata_are_where_they_should_be(files):
    for name, rows in files.items():
        assert {row["stratum"] for row in rows} == ({"never"} if name == "unanswerable" else ANSWERABLE), name
    assert all(len(set(row["true_probabilities"])) == 1 for row in files["unanswerable"])


def test_no_entity_of_training_is_ever_tested(world, files):
    practised = {fact.entity.name for fact in world.asked("practised")}
    parts = {name: entities(files[name]) for name in ("train", "calibration", "validation", "test", "far")}
    for name, part in parts.items():
        assert part.isdisjoint(practised), name
        assert all(part.isdisjoint(other) for others, other in parts.items() if others != name), name
    for shifted in ("near", "relation", "unanswerable"):
        assert entities(files[shifted]).isdisjoint(practised | parts["train"])
        assert all(facts(files[shifted]).isdisjoint(facts(files[name])) for name in parts)


def test_the_near_shift_is_taken_apart(files):
    """Its relation in the training's phrasings, and its phrasings with the test's relations."""

    def relations(name):
        return {row["id"].split("-")[2] for row in files[name]}

    def openings(name):
        return {row["question"].split()[0] for row in files[name]}

    assert relations("relation") == relations("near")
    assert relations("wording") == relations("test")
    assert relations("near").isdisjoint(relations("train"))
    assert openings("wording") == openings("near") == {"A", "Of"}
    assert openings("relation") <= {"The", "What", "Where", "Which"}
    assert entities(files["wording"]) <= entities(files["test"])


def test_the_new_phrasings_are_longer_than_any_of_the_training_s(files, bundled):
    """So that a finding about them has to be held against the number of tokens."""
    _, tokenizer = bundled

    def lengths(name):
        return [len(ids) for ids in tokenizer([render(row) for row in files[name]])["input_ids"]]

    assert max(lengths("train")) < min(lengths("near") + lengths("wording"))
    assert min(lengths("train")) <= min(lengths("relation")) <= max(lengths("relation")) <= max(lengths("train"))


def test_pretraining_asks_about_practised_entities_and_practised_relations_only(world):
    corpus = Corpus(world)
    others = {fact.entity.name for fact in world.facts if fact.entity.purpose != "practised"}
    for number in range(400):
        document = corpus.question(open_book=bool(number % 2))
        assert others.isdisjoint(document.prompt.replace("?", " ").split())
        assert document.prompt.endswith("\nAnswer:")
        assert f"\n{document.letter}. {document.value}\n" in document.prompt


def test_gold_answers_are_drawn_with_their_true_probabilities(files):
    # Of all choices with true probability p, a share p is gold; sqrt(p (1 - p) / n) is the spread of that share.
    for name in ("test", "unanswerable"):
        drawn: dict[float, list[bool]] = defaultdict(list)
        for row in files[name]:
            for letter, p in zip(LETTERS, row["true_probabilities"], strict=False):
                drawn[p].append(row["answer"] == letter)
        for p, hits in drawn.items():
            spread = (p * (1 - p) / len(hits)) ** 0.5
            assert abs(sum(hits) / len(hits) - p) <= 3.5 * spread, (name, p)


def test_gold_letters_are_balanced(files):
    for count in (3, 4, 5):
        golds = Counter(row["answer"] for row in files["test"] if len(row["choices"]) == count)
        total = golds.total()
        chi_square = sum((golds[letter] - total / count) ** 2 / (total / count) for letter in LETTERS[:count])
        assert chi_square < 18.5  # the 99.9 % point with 4 degrees of freedom


def rare(world: World, stated: tuple[str, ...]) -> Fact:
    fact = next(fact for fact in world.facts if fact.stratum == "rare")
    return Fact(fact.entity, fact.relation, "rare", ((stated[0], 1.0),), stated)


def test_the_ideal_reader_of_one_statement_trusts_it_unless_it_was_a_slip(world):
    relation = next(fact for fact in world.facts if fact.stratum == "rare").relation
    first, second, third = relation.values[:3]
    assert ideal_reader(rare(world, (first,)), [first, second, third])[0] == pytest.approx(0.9, abs=0.04)
    assert ideal_reader(rare(world, (first, second)), [first, second, third])[:2] == pytest.approx([0.5, 0.5], abs=0.05)


def test_the_ideal_reader_is_calibrated(world):
    # Draw many worlds' rare facts: among choices believed with probability p, a share p is true.
    draw = Random(0)
    believed = true = variance = 0.0
    for seed in range(4):
        for fact in make_world(TINY.size, 100 + seed).facts:
            if fact.stratum == "rare" and len(fact.stated) == 1:
                row = make_question(fact, ("{question}",), draw)
                p = row["ideal_probabilities"][row["choices"].index(fact.stated[0])]
                believed += p
                true += fact.stated[0] == fact.values[0][0]
                variance += p * (1 - p)
    assert abs(believed - true) < 3.5 * variance**0.5


def test_another_seed_is_another_world_and_wide_is_wider(world):
    assert make_world(TINY.size, SEED + 1) != world
    wide = PRESETS["wide"]
    assert len(make_world(wide.size, SEED).facts) > 3 * len(world.facts)


def test_the_model_folder_is_small_and_can_read_long_texts(bundled):
    model, tokenizer = bundled
    assert sum(file.stat().st_size for file in (FOLDER / "model").iterdir()) <= 6_000_000
    assert sum(file.stat().st_size for file in (FOLDER / "data").iterdir()) <= 2_500_000
    assert model.config.max_position_embeddings >= 8192
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
    assert tokenizer.bos_token is not None
    assert tokenizer.eos_token is not None
    assert tokenizer.pad_token is not None


def test_letters_are_one_token_after_the_prompt_and_leave_the_prompt_as_it_was(bundled):
    _, tokenizer = bundled
    prompt = render({"question": "Where is it? ünïcode\ttoo", "choices": ["a lake", "a hill"]})
    ids = tokenizer(prompt)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    continued = [tokenizer(f"{prompt} {letter}")["input_ids"] for letter in LETTERS]
    assert all(len(with_letter) == len(ids) + 1 and with_letter[:-1] == ids for with_letter in continued)
    assert len({with_letter[-1] for with_letter in continued}) == len(LETTERS)
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt


def test_the_model_knows_part_of_its_world_and_the_card_states_its_hash(bundled, files):
    from uq4ct.manifest import sha256
    from uq4ct.tiny.zero_shot import ask

    result = ask(*bundled, files["test"][:300])
    assert 0.40 <= result.accuracy <= 0.80
    card = (FOLDER / "CARD.md").read_text(encoding="utf-8")
    assert sha256(FOLDER / "model" / "model.safetensors") in card
    assert sha256(FOLDER / "model" / "tokenizer.json") in card


def test_the_planted_attention_finds_letter_and_word(world):
    import torch

    from uq4ct.tiny.planting import LOOK_BACK
    from uq4ct.tiny.pretraining import make_model, train_tokenizer

    tokenizer = train_tokenizer(world, TINY.vocabulary)
    model = make_model(TINY, tokenizer, SEED).eval()
    model.set_attn_implementation("eager")
    corpus, looks_back, finds_word = Corpus(world), [], []
    for _ in range(20):
        document = corpus.question(open_book=False)
        ids = tokenizer(f"{document.prompt} {document.value}")["input_ids"]
        ids = ids[: len(tokenizer(document.prompt)["input_ids"]) + 1]  # up to the first token of the word
        with torch.inference_mode():
            attentions = model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
        back = attentions[0][0, 0].argmax(-1)[LOOK_BACK:] - torch.arange(LOOK_BACK, len(ids))
        looks_back.append((back == -LOOK_BACK).float().mean().item())
        offered = [line[3:] for line in document.prompt.splitlines()[1:-1]]
        first = [tokenizer(f" {choice}", add_special_tokens=False)["input_ids"][0] for choice in offered]
        looked = attentions[-1][0, :-1, -1].mean(dim=0)[[ids.index(token) for token in first]]
        finds_word.append(first[int(looked.argmax())] == ids[-1])
    assert sum(looks_back) / len(looks_back) > 0.9
    assert sum(finds_word) / len(finds_word) > 0.9  # chance is a quarter
