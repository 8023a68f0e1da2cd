"""Which checkpoint a run goes on from."""

from pathlib import Path

import pytest

from zs_nemo.cluster.checkpoints import CheckpointFolder, locate_policy


def write(path: Path) -> None:
    """Stand for the workers."""
    (path / "weights").write_text("w")


def test_the_newest_whole_checkpoint_is_found_with_its_state(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    folder.save(4, {"wall_s": 1.5}, write)
    folder.save(8, {"wall_s": 3.0}, write)
    path, state = folder.latest()
    assert state == {"step": 8, "wall_s": 3.0}
    assert (path / "weights").read_text() == "w"


def test_a_crash_while_writing_leaves_the_older_checkpoint_in_charge(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(4, {}, write)

    def crash(path: Path) -> None:
        write(path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.save(8, {}, crash)
    (tmp_path / "step_000012").mkdir()
    assert folder.latest()[1]["step"] == 4
    folder.save(8, {}, write)
    assert folder.latest()[1]["step"] == 8


def test_only_the_newest_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (2, 4, 10):
        folder.save(step, {}, write)
    assert folder.whole() == [4, 10]


def test_a_new_folder_has_nothing_to_resume(tmp_path):
    assert CheckpointFolder(tmp_path / "new", keep=1).latest() is None


def test_the_policy_of_a_run_is_found_newest_first_and_by_step(tmp_path):
    (tmp_path / "config.yaml").write_text("policy:\n  model: some/model\n  precision: fp32\n")
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=3)
    for step in (0, 8, 16):
        folder.save(step, {}, lambda path: (path / "policy").mkdir())
    newest, settings = locate_policy(tmp_path)
    assert newest == tmp_path / "checkpoints" / "step_000016" / "policy" and newest.is_dir()
    assert settings == {"model": "some/model", "precision": "fp32"}
    assert locate_policy(tmp_path, 8)[0].parent.name == "step_000008"
    with pytest.raises(ValueError, match=r"a checkpoint of step 9; it has those of steps \[0, 8, 16\]"):
        locate_policy(tmp_path, 9)
    with pytest.raises(ValueError, match="is no run directory"):
        locate_policy(tmp_path / "nowhere")
