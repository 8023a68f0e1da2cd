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
from zs_nemo.cluster.ray_session import RaySession, patience_with_daemon, sigusr1_held_back
from zs_nemo.cluster.reaper import MARKER

SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-ISc', {SLEEPER!r}]))"


class FakeReaper:
    finished = 0

    def __init__(self, token: str, folders: list[Path], locks: list[int]) -> None:
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
    monkeypatch.setattr(module, "_SHM", tmp_path)
    monkeypatch.setattr(RaySession, "_start", start)
    monkeypatch.setattr(FakeReaper, "finished", 0)
    session = RaySession("", 1, 0, tmp_path / "logs", startup_timeout_s=1.0)
    return session


def test_after_a_failure_ray_s_logs_are_kept(session: RaySession, tmp_path: Path) -> None:
    session.close(failed=True)
    assert (tmp_path / "logs/ray/raylet.err").read_text() == "the reason"
    assert FakeReaper.finished == 1 and MARKER not in os.environ


def test_of_a_job_s_own_cluster_this_machine_s_logs_are_kept_too(
    session: RaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "zsn-7-0" / "ray" / "session_2026" / "logs"
    logs.mkdir(parents=True)
    (logs / "gcs_server.err").write_text("the reason")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "zsn-7-0"))
    session._joined = True
    session.close(failed=True)
    assert [path.name for path in (tmp_path / "logs" / "ray").iterdir()] == ["gcs_server.err"]


def test_what_a_run_left_that_was_killed_with_its_reaper_goes_when_the_next_one_starts(
    session: RaySession, tmp_path: Path
) -> None:
    mine, before = [session._ray_folder, session.shm_folder], sorted(tmp_path.glob("zs*-*"))
    assert before == sorted(mine), "both are there, of this run, and held"
    second = RaySession("", 1, 0, tmp_path / "logs", startup_timeout_s=1.0)
    assert all(folder.is_dir() for folder in mine)
    session.close()
    third = RaySession("", 1, 0, tmp_path / "logs", startup_timeout_s=1.0)
    # The reaper that deletes them is a stand-in here.
    assert not any(folder.exists() for folder in mine)
    assert second._ray_folder.is_dir() and third._ray_folder.is_dir()
    for each in (second, third):
        each.close()


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


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What of Ray asks whether its daemon has registered: the third time it has."""
    asked: list[tuple[str, ...]] = []

    def get_node(*arguments: str) -> dict[str, str]:
        asked.append(arguments)
        if len(asked) < 3:
            raise RuntimeError("no such node")
        return {"node_id": arguments[1]}

    services = SimpleNamespace(get_node=get_node, asked=asked)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray._private", SimpleNamespace(services=services))
    return services


def daemon(name: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a process of that name."""
    program = folder / name
    program.symlink_to("/bin/sleep")
    return subprocess.Popen([program, "30"])


def test_ray_s_daemon_is_waited_for_as_long_as_it_lives(services: SimpleNamespace, tmp_path: Path) -> None:
    own, raylet = services.get_node, daemon("raylet", tmp_path)
    try:
        with patience_with_daemon(20.0):
            assert services.get_node("address", "n1") == {"node_id": "n1"}
        assert services.asked == [("address", "n1")] * 3 and services.get_node is own
    finally:
        raylet.kill()
        raylet.wait()


def test_a_daemon_that_takes_too_long_is_an_error_that_names_the_setting(
    services: SimpleNamespace, tmp_path: Path
) -> None:
    raylet = daemon("raylet", tmp_path)
    try:
        with pytest.raises(TimeoutError, match=r"within cluster\.startup_timeout_s=0;"), patience_with_daemon(0.0):
            services.get_node("address", "n1")
    finally:
        raylet.kill()
        raylet.wait()


def test_a_daemon_that_has_ended_is_not_waited_for(services: SimpleNamespace, tmp_path: Path) -> None:
    other, ended = daemon("another", tmp_path), daemon("raylet", tmp_path)
    ended.kill()
    try:
        with pytest.raises(ChildProcessError, match="logs/ray"), patience_with_daemon(20.0):
            services.get_node("address", "n1")
        assert len(services.asked) == 1, "nobody has asked again"
    finally:
        ended.wait()
        other.kill()
        other.wait()


@pytest.mark.parametrize("num_failures", [0, 2, 3])
def test_a_daemon_that_ends_at_its_start_is_started_anew_three_times_in_all(
    num_failures: int, session: RaySession, services: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def init(**settings: int) -> None:
        events.append(f"started with {settings}")
        if len(events) < 2 * num_failures:
            raise ChildProcessError("Ray's daemon ended")

    monkeypatch.setattr(sys.modules["ray"], "init", init, raising=False)
    monkeypatch.setattr(module, "end_processes", lambda token: events.append(f"ended {token == session.token}"))
    if num_failures < 3:
        session._start_daemon(9.0, num_cpus=2)
    else:
        with pytest.raises(ChildProcessError):
            session._start_daemon(9.0, num_cpus=2)
    expected = ["started with {'num_cpus': 2}", "ended True"] * 3
    assert events == expected[: 1 + 2 * min(num_failures, 2)]


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
