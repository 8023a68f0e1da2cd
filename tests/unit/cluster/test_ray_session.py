import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from zs_nemo.cluster import ray_session as module
from zs_nemo.cluster.ray_session import RaySession, sigusr1_held_back
from zs_nemo.cluster.reaper import MARKER

SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-ISc', {SLEEPER!r}]))"


class FakeReaper:
    finished = 0

    def __init__(self, token: str, folders: list[Path]) -> None:
        self.folders = folders

    def finish(self) -> None:
        FakeReaper.finished += 1


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RaySession:
    """A session whose Ray has written a log; nothing of it runs."""

    def start(self: RaySession, *_: object) -> None:
        monkeypatch.setenv(MARKER, self.token)
        logs = self._ray_folder / "session_2026/logs"
        logs.mkdir(parents=True)
        (logs / "raylet.err").write_text("the reason")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(shutdown=lambda: None))
    monkeypatch.setattr(module, "Reaper", FakeReaper)
    monkeypatch.setattr(module, "_temporary_root", lambda: tmp_path)
    monkeypatch.setattr(RaySession, "_start", start)
    monkeypatch.setattr(FakeReaper, "finished", 0)
    session = RaySession("", 1, 0, tmp_path / "logs")
    session.shm_folder.rmdir()
    return session


def test_after_a_failure_ray_s_logs_are_kept(session: RaySession, tmp_path: Path) -> None:
    session.close(failed=True)
    assert (tmp_path / "logs/ray/raylet.err").read_text() == "the reason"
    assert FakeReaper.finished == 1 and MARKER not in os.environ


def test_logs_that_cannot_be_kept_hide_no_error_and_everything_is_ended(
    session: RaySession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    session.close(failed=True)
    assert "Ray's own logs could not be kept" in caplog.text
    assert FakeReaper.finished == 1 and MARKER not in os.environ


def test_everything_is_ended_also_where_ray_cannot_be(session: RaySession, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("Ray's own")

    monkeypatch.setattr(sys.modules["ray"], "shutdown", fails)
    with pytest.raises(RuntimeError, match="Ray's own"):
        session.close()
    assert FakeReaper.finished == 1


def test_processes_that_are_started_live_through_sigusr1_and_the_driver_hears_it_afterwards() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with sigusr1_held_back():
            parent = subprocess.Popen(
                [sys.executable, "-ISc", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
            # To this thread: one that another test has left would take it at once.
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            assert heard == []
        assert heard == [signal.SIGUSR1]
        os.killpg(parent.pid, signal.SIGUSR1)
        time.sleep(0.05)
        assert parent.poll() is None
        os.killpg(parent.pid, signal.SIGTERM)
        assert parent.wait(10) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGUSR1, before)
