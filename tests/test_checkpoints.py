"""A checkpoint is used only if every byte of it is the one that was written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from uq4ct.checkpoints import checkpoints, discard, keep_newest, last_good_checkpoint, refuse_other_run, seal
from uq4ct.errors import UserError
from uq4ct.manifest import MANIFEST, CorruptFolder, verify_manifest

FILES = (
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "sub/more.bin",
)


def write(folder: Path, step: int, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    for name in FILES:
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(f"{name} of step {step}".encode() * 40)
    if sealed:
        seal(checkpoint, {"config_hash": "a"})
    return checkpoint


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def one_bit_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_step(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"step 2", b"step 7"))


@pytest.mark.parametrize("damage", [missing, empty, truncated, one_bit_flipped, zeroed, of_another_step])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, name, damage):
    older, newer, said = write(tmp_path, 1), write(tmp_path, 2), []
    damage(newer / name)
    with pytest.raises(CorruptFolder, match=name):
        verify_manifest(newer)
    assert last_good_checkpoint(tmp_path, said.append) == older
    (line,) = said
    assert line.startswith(f"{newer}: not used, it is damaged: {newer / name}: ")


@pytest.mark.parametrize("damage", [empty, cut_in_half, zeroed])
def test_a_damaged_manifest_is_named(tmp_path, damage):
    older, newer, said = write(tmp_path, 1), write(tmp_path, 2), []
    damage(newer / MANIFEST)
    assert last_good_checkpoint(tmp_path, said.append) == older
    assert said[0].startswith(f"{newer}: not used, it is damaged: {newer / MANIFEST}")


def test_one_without_a_manifest_was_never_finished_and_is_ignored_with_a_line(tmp_path):
    older, newer, said = write(tmp_path, 1), write(tmp_path, 2, sealed=False), []
    assert last_good_checkpoint(tmp_path, said.append) == older
    assert said == [f"{newer}: ignored, it was never finished"]


def test_a_checkpoint_under_another_name_is_not_mistaken_for_that_step(tmp_path):
    older, said = write(tmp_path, 1), []
    shutil.copytree(older, tmp_path / "checkpoint-9")
    assert last_good_checkpoint(tmp_path, said.append) == older
    assert said == [f"{tmp_path / 'checkpoint-9'}: not used, its manifest is that of step 1"]


def test_without_any_good_checkpoint_there_is_none(tmp_path):
    assert last_good_checkpoint(tmp_path / "nowhere") is None
    missing(write(tmp_path, 1) / FILES[0])
    said: list[str] = []
    assert last_good_checkpoint(tmp_path, said.append) is None
    assert len(said) == 1


def test_ten_comes_after_nine(tmp_path):
    for step in (10, 9, 100):
        write(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


def test_pruning_keeps_the_newest_finished_ones_and_never_counts_an_unfinished_one(tmp_path):
    for step in (1, 2, 3, 5):
        write(tmp_path, step)
    write(tmp_path, 4, sealed=False)
    keep_newest(tmp_path / "checkpoint-5", 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-5"]


def test_pruning_spares_later_steps_and_the_protected_one(tmp_path):
    for step in (1, 2, 3, 9):
        write(tmp_path, step)
    keep_newest(tmp_path / "checkpoint-3", 1, protected=str(tmp_path / "checkpoint-1"))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-3", "checkpoint-9"]
    keep_newest(tmp_path / "checkpoint-9", None)
    assert len(checkpoints(tmp_path)) == 3


def test_a_crash_while_deleting_leaves_an_unfinished_checkpoint_and_no_damaged_one(tmp_path, monkeypatch):
    write(tmp_path, 1)
    newer, said = write(tmp_path, 2), []
    monkeypatch.setattr(shutil, "rmtree", lambda path: (path / FILES[0]).unlink())
    discard(newer)
    assert last_good_checkpoint(tmp_path, said.append) == tmp_path / "checkpoint-1"
    assert said == [f"{newer}: ignored, it was never finished"]


def test_a_full_disk_leaves_the_checkpoint_before_untouched(tmp_path, monkeypatch):
    older, newer = write(tmp_path, 1), write(tmp_path, 2, sealed=False)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        seal(newer, {})
    assert last_good_checkpoint(tmp_path, lambda line: None) == older


def test_every_difference_to_the_run_that_resumes_is_named(tmp_path):
    manifest = verify_manifest(write(tmp_path, 1))
    refuse_other_run(manifest, {"config_hash": "a"}, tmp_path)
    with pytest.raises(UserError) as raised:
        refuse_other_run(manifest, {"config_hash": "b", "data": "x"}, tmp_path)
    assert len(raised.value.problems) == 3
