"""Which checkpoint a run goes on from."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from zs_nemo.cluster.checkpoints import CheckpointFolder, locate_policy


def save(folder: CheckpointFolder, step: int, **state: float) -> None:
    """Write a checkpoint; the file stands for what the workers write."""
    path = folder.begin(step)
    (path / "policy").mkdir()
    (path / "weights").write_text("w")
    folder.commit(step, state)


def newest_step(folder: CheckpointFolder) -> int:
    """Return the step that a run goes on from."""
    return next(folder.newest_first())[1]["step"]


def test_the_newest_whole_checkpoint_is_found_with_its_state(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    save(folder, 4, wall_s=1.5)
    save(folder, 8, wall_s=3.0)
    (path, state), (_, older) = folder.newest_first()
    assert older.items() >= {"step": 4, "wall_s": 1.5}.items()
    assert state.items() >= {"step": 8, "wall_s": 3.0}.items()
    assert (path / "weights").read_text() == "w"


def test_a_crash_while_writing_leaves_the_older_checkpoint_in_charge(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    save(folder, 4)
    (folder.begin(8) / "half").write_text("written before the crash")
    (tmp_path / "step_000012").mkdir()
    assert newest_step(folder) == 4
    save(folder, 8)
    assert newest_step(folder) == 8
    assert not (tmp_path / "step_000008" / "half").exists()


def test_only_the_newest_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (2, 4, 10):
        save(folder, step)
    assert folder.whole() == [4, 10]


def test_an_old_one_that_cannot_be_deleted_whole_ends_no_run_and_is_none_any_more(tmp_path, monkeypatch, caplog):
    def busy(path, ignore_errors=False):
        if ignore_errors:
            return
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    folder = CheckpointFolder(tmp_path, keep=1)
    save(folder, 4)
    path = folder.begin(8)
    monkeypatch.setattr(shutil, "rmtree", busy)
    folder.commit(8, {})
    assert path.with_suffix("").is_dir() and folder.whole() == [8]
    assert (tmp_path / "step_000004" / "weights").is_file()
    assert "step_000004 is left, whole or in part, and can be deleted: " in caplog.text


@pytest.mark.parametrize(("keep", "left"), [(1, [6, 8]), (2, [4, 6, 8])])
def test_a_later_one_that_was_passed_over_takes_no_place_of_those_that_a_run_can_go_on_from(tmp_path, keep, left):
    folder = CheckpointFolder(tmp_path, keep=keep)
    for step in (2, 4, 8):
        save(CheckpointFolder(tmp_path, keep=9), step)
    # That of step 8 is damaged, so the run went back to step 4, and is asked to stop at step 6.
    save(folder, 6)
    assert folder.whole() == left


def test_a_new_folder_has_nothing_to_resume(tmp_path):
    folder = CheckpointFolder(tmp_path / "new", keep=1)
    assert folder.whole() == [] and list(folder.newest_first()) == []


def test_the_policy_of_a_run_is_found_newest_first_and_by_step(tmp_path):
    (tmp_path / "config.yaml").write_text("policy:\n  model: some/model\n  precision: fp32\n")
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=3)
    for step in (0, 8, 16):
        save(folder, step)
    newest, settings = locate_policy(tmp_path)
    assert newest == tmp_path / "checkpoints" / "step_000016" / "policy" and newest.is_dir()
    assert settings == {"model": "some/model", "precision": "fp32"}
    assert locate_policy(tmp_path, 8)[0].parent.name == "step_000008"
    with pytest.raises(ValueError, match=r"a checkpoint of step 9; it has those of steps \[0, 8, 16\]"):
        locate_policy(tmp_path, 9)
    with pytest.raises(ValueError, match="is no run directory"):
        locate_policy(tmp_path / "nowhere")


def test_a_checkpoint_of_another_format_is_refused_with_the_version_that_wrote_it(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.check()
    save(folder, 1)
    folder.check()
    save(folder, 2, format=99, version="9.9")
    with pytest.raises(ValueError, match=r"step_000002 was written by zs-nemo 9\.9 in format 99, but this is zs-nemo"):
        folder.check()


def write_shard(checkpoint: Path, *, size: int) -> None:
    """Write what the ranks do of a policy: a file, of which ``size`` bytes are left, and how long it was."""
    (checkpoint / "policy" / "__0_0.distcp").write_bytes(b"w" * size)
    (checkpoint / "policy" / "checksums.json").write_text(json.dumps({"__0_0.distcp": {"bytes": 9, "crc32": 1}}))


def test_a_run_whose_checkpoints_are_all_cut_short_is_refused_before_anything_starts(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    for step in (4, 8):
        save(folder, step)
        write_shard(tmp_path / f"step_{step:06d}", size=9)
    folder.check()
    # One of them is enough to go on from; whether its bytes are those that were written, the ranks find out.
    write_shard(tmp_path / "step_000008", size=5)
    folder.check()
    (tmp_path / "step_000004" / "policy" / "__0_0.distcp").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint under .* is as it was written \(.*__0_0.distcp has 5 bytes"):
        folder.check()
    write_shard(tmp_path / "step_000004", size=9)
    folder.check()


def test_a_state_that_is_cut_short_passes_its_checkpoint_over_by_name(tmp_path):
    folder, said = CheckpointFolder(tmp_path, keep=3), []
    for step in (4, 8):
        save(folder, step)
    (tmp_path / "step_000008" / "driver_state.json").write_text('{"step": 8, "for')
    folder.check()
    path, state = folder.newest_undamaged(lambda _folder, _state: [], said.append)
    assert path.name == "step_000004" and state["step"] == 4
    assert len(said) == 1 and "step_000008" in said[0] and "driver_state.json cannot be read" in said[0]
    (tmp_path / "step_000004" / "driver_state.json").write_text("")
    with pytest.raises(ValueError, match="put back a copy of one"):
        folder.check()
