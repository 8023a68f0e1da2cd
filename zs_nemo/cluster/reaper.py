"""Leaves no process of a run behind, even when the driver is killed with SIGKILL.

Every process of a run inherits an environment marker. The reaper is a process of its own session that waits on a pipe
from the driver; when the pipe closes, for whatever reason, it ends every process that carries the marker and deletes
the run's temporary folders. This file is also the program that it runs: standard library only, so that it starts in
milliseconds and holds few megabytes. Linux only (it reads /proc); it sees the processes of its own machine.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

MARKER = "ZS_NEMO_RUN_TOKEN"
_TERMINATE_GRACE_S = 1.5
_KILL_GRACE_S = 6.0
_TRACKER_GRACE_S = 1.0
_POLL_S = 0.05


class Reaper:
    """The driver's end: starts the reaper process and holds the pipe."""

    def __init__(self, token: str, folders: list[Path], locks: Sequence[int] = ()) -> None:
        """``folders`` are deleted when everything has ended; until then the descriptors ``locks`` stay open there."""
        environment = {name: value for name, value in os.environ.items() if name != MARKER}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, token, *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
            pass_fds=locks,
        )
        # A child that the driver forks without exec would hold the pipe open after the driver's death.
        os.register_at_fork(after_in_child=self._close_pipe)

    def finish(self, timeout_s: float = 10.0) -> None:
        """Let it end the run's processes and delete its folders now, and wait for that."""
        self._close_pipe()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            # It goes on by itself: it neither needs the driver nor ends before its work is done.
            return

    def _close_pipe(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()


def marked_processes(token: str) -> list[int]:
    """Return the ids of all living processes that started with this run's marker, except the caller."""
    entry = f"{MARKER}={token}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            environment = Path("/proc", name, "environ").read_bytes()
        except OSError:
            # It has ended meanwhile, or belongs to somebody else.
            continue
        if entry in environment.split(b"\0"):
            found.append(int(name))
    return found


def end_processes(token: str) -> None:
    """Terminate, then kill, until no marked process is left; gives up after several seconds."""
    _send_all(signal.SIGTERM, marked_processes(token))
    _wait_until_gone(lambda: marked_processes(token), _TERMINATE_GRACE_S, None)

    def all_but_trackers() -> list[int]:
        return [pid for pid in marked_processes(token) if not _is_resource_tracker(pid)]

    # Again and again: a process may have started another one between the look and the kill.
    _wait_until_gone(all_but_trackers, _KILL_GRACE_S, signal.SIGKILL)
    _wait_until_gone(lambda: marked_processes(token), _TRACKER_GRACE_S, None)
    _wait_until_gone(lambda: marked_processes(token), _KILL_GRACE_S, signal.SIGKILL)


def _is_resource_tracker(pid: int) -> bool:
    """Tell Python's resource trackers: they delete the semaphores of their dead parent, then end by themselves."""
    try:
        return b"multiprocessing.resource_tracker" in Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return False


def _wait_until_gone(look: Callable[[], list[int]], timeout_s: float, number: signal.Signals | None) -> None:
    deadline = time.monotonic() + timeout_s
    while (left := look()) and time.monotonic() < deadline:
        if number is not None:
            _send_all(number, left)
        time.sleep(_POLL_S)


def _send_all(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _main(token: str, folders: list[str]) -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_processes(token)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
