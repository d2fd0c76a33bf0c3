"""Training minimises Eq. 11 and nothing else: however a batch is cut up, wherever a run is cut off."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import shutil
import signal
import socket
import time

import peft
import pytest
import torch
import transformers
from training_runs import (
    CALIBRATED,
    IVON,
    KILLED,
    At,
    Penalised,
    arguments,
    cuts,
    digests,
    flat,
    processes,
    run,
    run_to_the_end,
    signal_twice,
    update,
    updates_of_two_processes,
)
from training_toys import llama, mixture, questions

from uq4ct.batches import EffectiveBatches, held_out
from uq4ct.checkpoints import last_good_checkpoint
from uq4ct.errors import UserError
from uq4ct.interruption import StopSignal
from uq4ct.losses.objective import Objective
from uq4ct.manifest import CorruptFolder
from uq4ct.scoring import collate, score, uq4ct_loss
from uq4ct.training import CalibratedTrainer, Diverged, Interrupted


@pytest.fixture(scope="module", autouse=True)
def _quick_garbage_collection():
    gc.freeze()  # every Trainer collects garbage before it starts, which takes longer than these runs
    yield
    gc.unfreeze()


# ---- normalisers


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The update of each effective batch in one piece, for equal and for unequal lengths."""
    return {uneven: update(tmp_path_factory.mktemp("whole"), 1, 1, uneven, False) for uneven in (False, True)}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes that train together wrote."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [processes().Process(target=updates_of_two_processes, args=(rank, port, folder)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=240)
        if rank.is_alive():
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return folder


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("accumulation", "count", "uneven", "checkpointing"), cuts(1))
def test_accumulation_and_checkpointing_do_not_change_the_update(
    whole, tmp_path, accumulation, count, uneven, checkpointing
):
    assert relative(update(tmp_path, accumulation, count, uneven, checkpointing), whole[uneven]) < 1e-6


def test_two_processes_make_the_update_of_one(whole, two_processes):
    for rank in (0, 1):
        updates = torch.load(two_processes / f"updates-{rank}.pt")
        assert set(updates) == set(cuts(2))
        for cut, found in updates.items():
            assert relative(found, whole[cut[2]]) < 1e-6, cut


def test_the_load_balance_is_that_of_a_micro_step_across_processes(two_processes, tmp_path):
    expected = update(tmp_path, 2, 1, True, False, objective=Objective(calibration_weight=1.0, balance_weight=0.5))
    for rank in (0, 1):
        assert relative(torch.load(two_processes / f"balanced-{rank}.pt"), expected) < 1e-6


def test_a_penalty_is_in_each_update_once_however_it_is_cut(whole, two_processes, tmp_path):
    expected = update(tmp_path, 1, 1, True, False, trainer=Penalised)
    assert relative(expected, whole[True]) > 0.01
    assert relative(update(tmp_path, 4, 1, True, False, trainer=Penalised), expected) < 1e-6
    for rank in (0, 1):
        assert relative(torch.load(two_processes / f"penalised-{rank}.pt"), expected) < 1e-6


def test_the_gradient_of_a_penalty_is_added_whole(tmp_path):
    with_it, without = mixture(dtype=torch.float64), mixture(dtype=torch.float64)
    before, options = flat(with_it), {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "max_steps": 1,
                                      "lr_scheduler_type": "constant"}  # fmt: skip
    penalised = run(tmp_path, with_it, trainer=Penalised, **options)
    usual = run(tmp_path, without, **options)
    torch.testing.assert_close(flat(with_it) - flat(without), -0.05 * before, rtol=1e-6, atol=1e-9)
    first, plain = penalised.state.log_history[0], usual.state.log_history[0]
    assert first["kl"] == pytest.approx((before**2).sum().item() / 2)
    assert first["loss"] == pytest.approx(plain["loss"] + first["kl"], rel=1e-5)
    assert "kl" not in plain


def test_two_processes_of_ivon_make_the_update_of_one(two_processes, tmp_path):
    expected = update(tmp_path, 1, 1, True, False, trainer=IVON)
    for rank in (0, 1):
        assert relative(torch.load(two_processes / f"ivon-{rank}.pt"), expected) < 1e-6


class MeanOfMicroBatches(CalibratedTrainer):
    """The usual mistake: each micro-batch divides by its own number of examples."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, **options):
        return super().compute_loss(model, inputs, num_items_in_batch=inputs["micro_step_examples"])


class NoDivision(MeanOfMicroBatches):
    loss_is_scaled_for_ga = True


@pytest.mark.parametrize(("wrong", "least"), [(MeanOfMicroBatches, 0.01), (NoDivision, 1.0)])
def test_a_wrong_normaliser_would_be_noticed(whole, tmp_path, wrong, least):
    assert relative(update(tmp_path, 4, 1, True, False, trainer=wrong), whole[True]) > least
    assert relative(update(tmp_path, 1, 1, True, False, trainer=wrong), whole[True]) < 1e-6  # nothing to get wrong


def test_the_first_update_is_the_gradient_of_the_bare_loss(tmp_path):
    model, reference = mixture(dtype=torch.float64), mixture(dtype=torch.float64)
    before, examples = flat(model), questions(4)
    run(
        tmp_path, model, examples, per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=1,
        optim="sgd", learning_rate=0.05, lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip
    uq4ct_loss(reference, collate(examples, 0), CALIBRATED).loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in reference.parameters() if p.requires_grad])
    assert relative((before - flat(model)) / 0.05, gradient) < 1e-9


@pytest.mark.parametrize("which", ["rotating", "apart"])
def test_questions_held_out_train_the_calibration_and_the_others_the_answer(tmp_path, which):
    """However the batch is cut up, each term is the mean over its own examples."""
    objective = Objective(1.0, 0.0, calibration_questions=which, held_out_every=4)
    examples, reference = questions(8), mixture(dtype=torch.float64)
    held = held_out(8, 4, 3, epoch=0 if which == "rotating" else None)
    terms = Objective(1.0, 0.0).terms(*_scored(reference, examples))
    (terms.answer[~held].mean() + terms.calibration[held].mean()).backward()
    gradient = torch.cat([p.grad.flatten() for p in reference.parameters() if p.requires_grad])
    for micro in (8, 2):
        model = mixture(dtype=torch.float64)
        before = flat(model)
        run(
            tmp_path / str(micro), model, examples, per_device_train_batch_size=micro, max_steps=1, seed=3,
            gradient_accumulation_steps=8 // micro, optim="sgd", learning_rate=0.05, lr_scheduler_type="constant",
            max_grad_norm=0.0, objective=objective,
        )  # fmt: skip
        assert relative((before - flat(model)) / 0.05, gradient) < 1e-9


def _scored(model, examples):
    batch = collate(examples, 0)
    scores = score(model, batch)
    return *scores[:2], batch["answer"], *scores[2:4]


def test_parts_take_turns_until_every_question_was_held_out():
    parts = torch.stack([held_out(23, 5, seed=9, epoch=epoch) for epoch in range(5)])
    assert (parts.sum(dim=0) == 1).all()
    assert parts.sum(dim=1).tolist() == [5, 5, 4, 5, 4]
    assert torch.equal(held_out(23, 5, 9, epoch=5), parts[0])
    assert torch.equal(held_out(23, 5, 9), parts[0])
    assert not torch.equal(held_out(23, 5, 10), parts[0])


def test_the_shuffled_control_needs_another_question_in_the_micro_batch(tmp_path):
    objective = Objective(1.0, 0.01, calibration_target="shuffled")
    with pytest.raises(UserError, match=r"set train\.per_device_train_batch_size: 2 or more"):
        run(tmp_path, mixture(), questions(8), objective=objective, per_device_train_batch_size=1)


def test_too_few_questions_to_hold_any_out_are_refused(tmp_path):
    objective = Objective(1.0, 0.01, calibration_questions="apart")
    with pytest.raises(UserError, match="4 training questions, too few to hold out one in 5"):
        run(tmp_path, mixture(), questions(4), objective=objective)


def test_a_loop_of_ones_own_is_told_that_it_cannot_hold_questions_out():
    objective = Objective(1.0, 0.01, calibration_questions="rotating")
    with pytest.raises(ValueError, match="calibration_questions 'rotating' needs CalibratedTrainer"):
        uq4ct_loss(mixture(), collate(questions(2), 0), objective)


def test_beta_zero_is_training_by_cross_entropy_and_balance_alone(tmp_path):
    without = Objective(calibration_weight=0.0, balance_weight=0.01)
    first = run(tmp_path / "a", mixture(), objective=without, max_steps=3)
    never_on = Objective(calibration_weight=1e-30, balance_weight=0.01)
    second = run(tmp_path / "b", mixture(), objective=never_on, max_steps=3)
    torch.testing.assert_close(flat(first.model), flat(second.model), rtol=0, atol=0)
    assert {log["beta"] for log in first.state.log_history if "beta" in log} == {0.0}


# ---- order of examples


@pytest.mark.parametrize(
    ("examples", "micro", "accumulation", "ranks"), [(19, 2, 2, 2), (16, 2, 4, 1), (5, 4, 1, 3), (1, 1, 1, 2)]
)
def test_every_example_comes_once_per_epoch_and_every_rank_has_as_many_micro_batches(
    examples, micro, accumulation, ranks
):
    dealt = [list(EffectiveBatches(examples, micro, accumulation, ranks, rank, seed=5)) for rank in range(ranks)]
    assert {len(batches) for batches in dealt} == {len(EffectiveBatches(examples, micro, accumulation, ranks))}
    assert sorted(row for batches in dealt for batch in batches for row in batch if row >= 0) == list(range(examples))
    assert all(len(batch) <= micro for batches in dealt for batch in batches)


@pytest.mark.parametrize("lengths", [None, [row * 7 % 24 for row in range(24)]])
def test_an_effective_batch_holds_the_same_examples_however_it_is_cut(lengths):
    def effective(micro, accumulation, ranks):
        dealt = [
            list(EffectiveBatches(24, micro, accumulation, ranks, rank, seed=1, lengths=lengths))
            for rank in range(ranks)
        ]
        steps = [[row for batches in dealt for row in batches[step]] for step in range(len(dealt[0]))]
        return [
            sorted(row for step in steps[i : i + accumulation] for row in step)
            for i in range(0, len(steps), accumulation)
        ]

    assert effective(8, 1, 1) == effective(2, 4, 1) == effective(1, 4, 2) == effective(2, 1, 4)


def test_an_effective_batch_of_many_micro_batches_is_dealt_by_length_and_one_of_a_single_keeps_its_order():
    lengths = [row * 7 % 24 for row in range(24)]
    cut = [lengths[row] for batch in EffectiveBatches(24, 2, 6, seed=1, lengths=lengths) for row in batch]
    assert cut == sorted(cut[:12]) + sorted(cut[12:])
    whole = [list(EffectiveBatches(24, 12, 1, seed=1, lengths=given)) for given in (lengths, None)]
    assert whole[0] == whole[1]


def test_epochs_and_seeds_shuffle_differently_and_reproducibly():
    def order(seed, epoch):
        batches = EffectiveBatches(50, 50, 1, seed=seed)
        batches.set_epoch(epoch)
        return next(iter(batches))

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


class Recording(CalibratedTrainer):
    def get_batch_samples(self, *arguments):
        batches, number = super().get_batch_samples(*arguments)
        self.seen = [*getattr(self, "seen", []), *self._rows]
        return batches, number


def test_the_data_order_depends_on_the_seed_and_not_on_the_method(tmp_path):
    plain = peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    torch.rand(17)  # whatever was drawn before does not matter either
    lora = run(tmp_path / "a", plain, objective=Objective(), trainer=Recording, num_train_epochs=2)
    mixed = run(tmp_path / "b", trainer=Recording, num_train_epochs=2)
    assert lora.seen == mixed.seen
    assert lora.seen[:22] != lora.seen[22:]
    assert sorted(lora.seen[:22]) == list(range(22))


# ---- what is logged


def test_the_logged_loss_is_the_sum_of_its_logged_terms(tmp_path):
    objective = Objective(1.0, 0.01, calibration_schedule="incremental")
    history = run(tmp_path, objective=objective, num_train_epochs=2).state.log_history
    steps = [log for log in history if "ce" in log]
    assert [log["beta"] for log in steps] == pytest.approx([t / 50 for t in range(12)])
    for log in steps:
        assert log["loss"] == pytest.approx(
            log["ce"] + 0.01 * log["balance"] + log["beta"] * log["calibration"], rel=1e-5
        )
        assert 0.5 <= log["feu"] <= 1.0
        assert 0.0 < log["expert_load_entropy"] <= 1.0
        assert log["accuracy"] in {i / n for n in (2, 4) for i in range(n + 1)}


def test_two_processes_log_what_one_logs_and_evaluate_alike(two_processes, tmp_path):
    model = mixture()
    alone = run(tmp_path, model, questions(9), num_train_epochs=1, per_device_train_batch_size=4)
    logs = [json.loads((two_processes / f"logs-{rank}.json").read_text()) for rank in (0, 1)]
    for log, *others in zip(alone.state.log_history[:-1], *logs, strict=False):
        for other in others:
            for name in ("loss", "ce", "balance", "calibration", "accuracy", "feu", "expert_load_entropy"):
                assert other[name] == pytest.approx(log[name], rel=1e-4), name
    metrics = alone.evaluate(questions(7, seed=9))
    del metrics["epoch"]
    assert set(metrics) == {"eval_loss", "eval_accuracy", "eval_feu"}
    for rank in (0, 1):
        found = json.loads((two_processes / f"evaluation-{rank}.json").read_text())
        assert [found[name] for name in metrics] == pytest.approx(list(metrics.values()), rel=1e-3)


def test_a_log_that_is_no_terminal_gets_lines_with_the_time_left(tmp_path, capsys):
    run(tmp_path, max_steps=3)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert re.fullmatch(
        r"step 3 of 3, 0:00:00 left, loss \S+, ce \S+, balance \S+, calibration \S+, .*feu \S+", lines[-1]
    )


# ---- refusals


def test_a_plain_adapter_trains_on_the_answer_alone_and_the_base_stays_frozen(tmp_path):
    model = peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    base = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = run(tmp_path, model, objective=Objective(), max_steps=3)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    assert set(trained.state.log_history[0]) >= {"loss", "ce", "accuracy"}
    assert "feu" not in trained.state.log_history[0]
    with pytest.raises(UserError, match=r"need a router, but the model has none; .*objective=Objective\(\)"):
        run(tmp_path, model, objective=CALIBRATED)


def test_a_plain_adapter_can_train_its_own_confidence_with_smoothed_labels(tmp_path):
    model = peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    objective = Objective(calibration_weight=0.5, calibrated="confidence", label_smoothing=0.1)
    trained = run(tmp_path, model, objective=objective, max_steps=2, save_strategy="steps", save_steps=2)
    log = trained.state.log_history[0]
    assert log["loss"] == pytest.approx(log["ce"] + 0.5 * log["calibration"], rel=1e-5)
    assert log["beta"] == 0.5
    assert not {"feu", "balance"} & set(log)
    other = Objective(calibration_weight=0.5, calibrated="confidence", label_smoothing=0.05)
    with pytest.raises(UserError, match="label_smoothing"):
        run(tmp_path, model, objective=other, max_steps=4, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "use_reentrant=True silently loses the gradient of the calibration loss",
        ),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True changes the experiment"),
        ({"save_only_model": True}, "leaves nothing to resume from"),
        ({"train_sampling_strategy": "group_by_length"}, "expected 'random' or 'sequential', got 'group_by_length'"),
    ],
)
def test_arguments_that_would_change_the_experiment_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        CalibratedTrainer(mixture(), arguments(tmp_path, **options), questions(2))


def test_every_example_that_cannot_be_trained_on_is_named(tmp_path):
    fine = questions(1)[0]
    examples = [
        fine,
        {**fine, "labels": [1]},
        {**fine, "answer": -100},
        {"input_ids": [1], "answer": 0},
        {**fine, "input_ids": []},
    ]
    with pytest.raises(UserError) as raised:
        CalibratedTrainer(mixture(), arguments(tmp_path), examples)
    assert [problem.split(":")[0] for problem in raised.value.problems] == [
        f"training example {i}" for i in (1, 2, 3, 4)
    ]
    with pytest.raises(UserError, match="65 tokens, but the model's context is 64"):
        CalibratedTrainer(mixture(), arguments(tmp_path), [{**fine, "input_ids": [11] * 65}])


def test_the_callers_arguments_are_not_changed(tmp_path):
    given = arguments(tmp_path, save_total_limit=1)
    trainer = CalibratedTrainer(mixture(), given, questions(2))
    assert given.remove_unused_columns
    assert given.save_total_limit == 1
    assert trainer.checkpoints_to_keep == 1


# ---- numbers that are none


def poison(model):
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))


def test_a_nan_stops_the_run_and_names_step_term_examples_and_checkpoint(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
    with pytest.raises(Diverged, match=r"step 3 \(training examples \d+, .*cross entropy is nan") as raised:
        run(tmp_path, callbacks=[At(2, poison)], **options)
    assert raised.value.checkpoint == tmp_path / "checkpoint-2"
    assert (raised.value.step, raised.value.term) == (3, "cross entropy")


def test_an_infinite_gradient_stops_the_run_before_the_weights_change(tmp_path):
    model = mixture()

    def overflow(_):
        parameter = next(p for p in model.parameters() if p.requires_grad)
        parameter.register_hook(lambda gradient: gradient * float("inf"))

    before = []
    with pytest.raises(Diverged, match=r"gradient norm is (nan|inf)"):
        run(tmp_path, model, callbacks=[At(1, overflow), At(1, lambda _: before.append(flat(model)))])
    assert torch.equal(flat(model), before[0])


class PoisonAfterStep(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step == 2:
            poison(model)


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    with pytest.raises(Diverged, match=r"step 2 .*weight base_model.* is nan"):
        run(tmp_path, callbacks=[PoisonAfterStep()], save_strategy="steps", save_steps=1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


# ---- resume

STEPS = {
    "save_strategy": "steps",
    "save_steps": 1,
    "num_train_epochs": 2,
}  # twelve updates, six an epoch; the sixth small


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(folder, **STEPS).state.global_step == 12
    return folder


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configured")
    run(folder, config_hash="a", save_strategy="steps", save_steps=1, max_steps=2)
    return folder


@pytest.mark.parametrize("step", [1, 4, 5, 6, 7, 11])
def test_a_resumed_run_ends_with_the_same_bytes(uninterrupted, tmp_path, step):
    shutil.copytree(uninterrupted / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    run(tmp_path, mixture(seed=8, dropout=0.2), resume=True, **STEPS)
    assert digests(tmp_path / "checkpoint-12") == digests(uninterrupted / "checkpoint-12")


def test_the_bytes_are_not_equal_by_chance(uninterrupted):
    ends = [digests(uninterrupted / f"checkpoint-{step}") for step in (11, 12)]
    assert all(ends[0][name] != ends[1][name] for name in ends[0])


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(uninterrupted, tmp_path, capsys):
    for step in (4, 5, 6):
        shutil.copytree(uninterrupted / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    damaged = tmp_path / "checkpoint-5" / "adapter_model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    (tmp_path / "checkpoint-6" / "manifest.json").unlink()
    with pytest.raises(CorruptFolder, match=r"adapter_model\.safetensors: SHA-256"):
        run(tmp_path, resume=str(tmp_path / "checkpoint-5"), **STEPS)
    run(tmp_path, resume=True, **STEPS)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'checkpoint-6'}: ignored, it was never finished" in said
    assert f"{tmp_path / 'checkpoint-5'}: not used, it is damaged: {damaged}: SHA-256" in said
    assert f"{tmp_path / 'checkpoint-4'}: continuing after step 4" in said
    assert digests(tmp_path / "checkpoint-12") == digests(uninterrupted / "checkpoint-12")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config_hash": "b"}, "config_hash is 'a' there and 'b' now"),
        ({"objective": Objective(0.5, 0.01)}, "objective is .*'calibration_weight': 1.0.* there and .*0.5.* now"),
        ({"examples": questions(22, seed=1)}, "data is '.*' there and '.*' now"),
        ({"gradient_accumulation_steps": 1}, "effective_batch is 4 there and 2 now"),
        ({"seed": 4}, "data_seed is 3 there and 4 now"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(configured, change, message):
    with pytest.raises(UserError, match=message):
        run(configured, resume=True, **{"config_hash": "a", "max_steps": 3, **change})


def test_the_same_run_may_go_on_with_another_cut_and_says_that_bytes_will_differ(uninterrupted, tmp_path, capsys):
    shutil.copytree(uninterrupted / "checkpoint-4", tmp_path / "checkpoint-4")
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    assert run(tmp_path, resume=True, **{**STEPS, **cut}).state.global_step == 12
    assert "micro_batch was 2 and is 4 now; the run continues, but not bit for bit" in capsys.readouterr().err


def test_a_finished_run_is_not_trained_further(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}  # in the middle of an epoch
    first = run(tmp_path, **options)
    again = run(tmp_path, mixture(seed=8, dropout=0.2), resume=True, **options)
    assert again.state.global_step == 4
    assert torch.equal(flat(again.model), flat(first.model))


def test_starting_over_an_earlier_runs_checkpoints_is_refused(uninterrupted):
    with pytest.raises(
        UserError, match="checkpoint-12: a checkpoint of an earlier run; pass resume_from_checkpoint=True"
    ):
        run(uninterrupted, **STEPS)


def test_nothing_to_resume_from_starts_at_the_beginning_and_says_so(tmp_path, capsys):
    assert run(tmp_path, resume=True, max_steps=1).state.global_step == 1
    assert f"{tmp_path}: no checkpoint to continue from, starting at step 0" in capsys.readouterr().err


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=1, max_steps=5, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_what_a_killed_save_left_behind_does_not_become_part_of_the_next_one(tmp_path):
    leftover = tmp_path / "checkpoint-1" / "rng_state_7.pth"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half a file")
    run(tmp_path, resume=True, save_strategy="steps", save_steps=1, max_steps=1)
    assert not leftover.exists()
    assert last_good_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


# ---- signals and kills


class InterruptAtTheEnd(transformers.TrainerCallback):
    def on_train_end(self, args, state, control, **_):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_finds_no_update_to_stop_is_not_swallowed(tmp_path):
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, callbacks=[InterruptAtTheEnd()], max_steps=1)
    finally:
        signal.signal(signal.SIGINT, outside)


@pytest.mark.parametrize(("signum", "code"), [(15, 143), (2, 130)])
def test_a_signal_stops_after_the_update_is_saved_and_the_run_goes_on_to_the_same_bytes(
    uninterrupted, tmp_path, signum, code
):
    options = {**STEPS, "save_steps": 100}
    handler = signal.getsignal(signum)
    with pytest.raises(Interrupted) as raised:
        run(tmp_path, callbacks=[At(4, lambda _: os.kill(os.getpid(), signum))], **options)
    assert raised.value.code == code
    assert raised.value.checkpoint == tmp_path / "checkpoint-5"
    assert signal.getsignal(signum) is handler
    run(tmp_path, mixture(seed=8, dropout=0.2), resume=True, **options)
    assert digests(tmp_path / "checkpoint-12") == digests(uninterrupted / "checkpoint-12")


def test_a_signal_that_comes_twice_at_once_is_one():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        assert stop.received == signal.SIGINT


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    process = processes().Process(target=signal_twice, args=(tmp_path,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 130
    assert not (tmp_path / "survived").exists()


def wait_for_a_new_checkpoint(folder, process):
    before = {path.name for path in folder.glob("checkpoint-*")}
    while process.is_alive() and {path.name for path in folder.glob("checkpoint-*")} <= before:
        time.sleep(0.005)


def kill_until_finished(folder, kills, seed):
    """Start the run again and again, kill it at random times; return how often, and how often during a save."""
    generator, killed, unfinished = random.Random(seed), 0, 0
    while True:
        process = processes().Process(target=run_to_the_end, args=(folder,))
        process.start()
        if killed < kills:
            started, first = time.monotonic(), len(list(folder.glob("checkpoint-*")))
            while (
                process.is_alive()
                and len(list(folder.glob("checkpoint-*"))) <= min(first, 1)
                and time.monotonic() - started < 30
            ):
                time.sleep(0.01)
            process.join(timeout=generator.uniform(0.0, 0.4))
            if process.is_alive():
                process.kill()
                process.join()
                killed += 1
                unfinished += any(not (path / "manifest.json").exists() for path in folder.glob("checkpoint-*"))
                continue
        process.join(timeout=120)
        assert process.exitcode == 0, "a killed run could not be resumed"
        return killed, unfinished


@pytest.mark.parametrize("kills", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_random_times_ends_with_the_same_bytes(tmp_path, kills):
    run(tmp_path / "whole", **KILLED)
    killed, during_a_save = kill_until_finished(tmp_path / "killed", kills, seed=kills)
    print(f"killed {killed} times, {during_a_save} of them during a save")
    assert killed >= min(kills, 3)
    assert during_a_save or kills < 60
    assert digests(tmp_path / "killed" / "checkpoint-30") == digests(tmp_path / "whole" / "checkpoint-30")
