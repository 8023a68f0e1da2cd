import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from zs_nemo.cluster.roles import Role, RoleError
from zs_nemo.cluster.stop_causes import StopCause, cause_of, describe
from zs_nemo.rollout.collector import SearchBudgetExceeded


def role_error(name: str, cause: Exception | None = None, *, died: bool = False) -> RoleError:
    error = RoleError(f"{name} failed")
    error.role, error.cause, error.died = Role(name, None, Path("log")), cause, died
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"), StopCause.disk_full),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StopCause.disk_full),
        (OSError(errno.ESTALE, "Stale file handle"), StopCause.file_system_lost),
        (OSError(errno.EIO, "Input/output error"), StopCause.file_system_lost),
        (
            role_error("policy-rank-0", OSError("checkpoint x could not be written (rank 0: [Errno 28] No space left")),
            None,
        ),
        (
            role_error("policy-rank-0", OSError("x could not be written (rank 0: [Errno 28] No space left on device)")),
            StopCause.disk_full,
        ),
        (role_error("simulator-engine-1", died=True), StopCause.simulator_lost),
        (role_error("simulator-engine-1"), None),
        (role_error("policy-engine-1", died=True), None),
        (SearchBudgetExceeded("9 of 9 calls failed", engine="simulator"), StopCause.simulator_lost),
        (SearchBudgetExceeded("9 of 9 calls failed", engine="retriever"), StopCause.search_lost),
        (RuntimeError("something else"), None),
    ],
)
def test_what_a_run_has_lost_is_told_apart(error: Exception, cause: StopCause | None, tmp_path: Path) -> None:
    assert cause_of(error, tmp_path) is cause


def test_a_run_directory_that_is_gone_is_a_lost_file_system(tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "metrics.jsonl")
    assert cause_of(error, tmp_path) is None
    assert cause_of(error, tmp_path / "unmounted") is StopCause.file_system_lost


def test_whatever_fails_on_a_full_disk_has_failed_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = role_error("simulator-engine-0", died=True)
    for free, cause in ((2**20, StopCause.simulator_lost), (2**20 - 1, StopCause.disk_full)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert cause_of(killed, tmp_path) is cause
    assert "(1 MiB are free in" in describe(StopCause.disk_full, killed, tmp_path)
    assert cause_of(OSError(errno.EIO, "Input/output error"), tmp_path) is StopCause.file_system_lost


def test_what_an_error_came_from_counts_too(tmp_path: Path) -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("the checkpoint failed") from error
    except RuntimeError as error:
        assert cause_of(error, tmp_path) is StopCause.disk_full
        told = describe(StopCause.disk_full, error, tmp_path)
    assert told.startswith("disk full (") and "the checkpoint failed" in told and "exp_manager.save_top_k" in told
