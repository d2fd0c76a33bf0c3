"""Snapshots of a training are all there, and the same, however often it was interrupted and whoever asked for them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import peft
import pytest
from training_runs import At
from training_toys import llama, questions

from uq4ct.adapting import ADAPTER, Bench, TrainConfig, load_adapter, train_adapter, training_key
from uq4ct.losses.objective import Objective
from uq4ct.scoring import score_all
from uq4ct.snapshots import save_adapter, snapshot_folder
from uq4ct.training import CalibratedTrainer, Interrupted

LORA = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj"])
FRACTIONS = (0.25, 0.5)  # after 2 and 4 of 8 steps; a checkpoint is sealed after every second


def bench(folder: Path, store: Path) -> Bench:
    train = TrainConfig(max_steps=8, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=2)
    return Bench(llama(), 0, questions(16), [], train, seed=3, folder=folder, store=store)


def adapters(snapshots: dict[float, Path]) -> list[bytes]:
    return [(snapshots[fraction] / "adapter_model.safetensors").read_bytes() for fraction in FRACTIONS]


def interrupted(step: int, **options):
    """Return a trainer that is sent SIGTERM when so many steps are done."""
    stop = At(step, lambda _: os.kill(os.getpid(), 15))
    return CalibratedTrainer(**{**options, "callbacks": [*options["callbacks"], stop]})


def test_a_training_by_another_kind_of_objective_is_another_training(tmp_path):
    """Even if it has the same fields with the same values: what it computes is in its class."""

    class Other(Objective):
        pass

    own, other = (training_key(bench(tmp_path, tmp_path), LORA, kind(1.0), {}) for kind in (Objective, Other))
    assert own == training_key(bench(tmp_path, tmp_path), LORA, Objective(1.0), {})
    assert own != other != training_key(bench(tmp_path, tmp_path), LORA, Other(0.5), {})


@pytest.mark.parametrize("step", [1, 3, 6])
def test_snapshots_asked_for_after_an_interruption_are_those_of_an_undisturbed_training(step, tmp_path):
    whole = train_adapter(bench(tmp_path / "a", tmp_path / "whole"), LORA, Objective(), snapshots=FRACTIONS)
    cut = bench(tmp_path / "b", tmp_path / "cut")
    with pytest.raises(Interrupted):
        train_adapter(cut, LORA, Objective(), trainer=partial(interrupted, step))
    later = train_adapter(replace(cut, model=llama()), LORA, Objective(), snapshots=FRACTIONS)
    assert adapters(later.snapshots) == adapters(whole.snapshots)


def test_a_training_goes_on_from_its_checkpoint_where_no_snapshot_is_missing(tmp_path):
    cut = bench(tmp_path / "run", tmp_path / "store")
    with pytest.raises(Interrupted):
        train_adapter(cut, LORA, Objective(), snapshots=(0.25,), trainer=partial(interrupted, 3))
    seen: list[int] = []

    def watched(**options):
        first = At(4, lambda _: seen.append(4))
        again = At(1, lambda _: seen.append(1))
        return CalibratedTrainer(**{**options, "callbacks": [*options["callbacks"], first, again]})

    later = train_adapter(replace(cut, model=llama()), LORA, Objective(), snapshots=FRACTIONS, trainer=watched)
    assert seen == [4]
    assert all(later.snapshots[fraction] == snapshot_folder(later.snapshots[0.5].parents[1], fraction) for fraction in FRACTIONS)


def test_a_training_that_is_done_again_changes_no_file_of_a_finished_run(tmp_path):
    finished = bench(tmp_path / "run", tmp_path / "store")
    train_adapter(finished, LORA, Objective())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished.folder.iterdir()}
    later = replace(finished, model=llama(), folder=tmp_path / "later")
    train_adapter(later, LORA, Objective(), snapshots=FRACTIONS)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished.folder.iterdir()} == before
    for name in ADAPTER:
        assert (later.folder / name).read_bytes() == before[finished.folder / name][0]
        assert not (later.folder / name).samefile(finished.folder / name)


def test_the_same_adapter_is_saved_as_the_same_bytes_in_every_process(tmp_path):
    names = ["v_proj", "gate_proj", "q_proj", "down_proj", "k_proj"]  # PEFT makes a set of them
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=names)
    save_adapter(peft.get_peft_model(llama(), config), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"] == sorted(names)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(ADAPTER)


def test_a_model_trained_with_autocast_answers_as_it_does_when_loaded(tmp_path):
    """Autocast is for the updates: what is saved with a run must come out of the run that is opened later."""
    own = bench(tmp_path / "run", tmp_path / "store")
    own = replace(own, train=own.train.model_copy(update={"bf16": True, "learning_rate": 0.05}))
    trained = train_adapter(own, LORA, Objective()).model
    loaded = load_adapter(llama(), tmp_path / "run")
    found, expected = (score_all(model, questions(6), 0, 3)[0] for model in (trained, loaded))
    np.testing.assert_array_equal(found, expected)
