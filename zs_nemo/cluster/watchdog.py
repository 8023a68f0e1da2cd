"""Finds a hang by missing progress, has all processes write their stacks, and ends those that are silent.

What has been ended counts as having died: an engine is replaced, and a rank brings the run back to its last checkpoint.
Owns no policy beyond that. Its thread needs nothing of the main thread, which may be what hangs.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zs_nemo.cluster.processes import STACKS_SIGNAL
from zs_nemo.cluster.roles import Role
from zs_nemo.cluster.stop_request import PROCESS_STOP
from zs_nemo.observability.faults import FaultKind, FaultLog

_LONGEST_PAUSE_S = 10.0
_WRITING_S = 2.0
_OWN_WRITING_S = 5.0
_GRACE_S = 60.0


class DriverHangs(RuntimeError):  # noqa: N818  (it says what happened)
    """Raised in the main thread when it stands still within a step while nobody owes it an answer."""


class Watchdog:
    """A thread that looks at the roles of a run and at its driver. Use with ``with``, from the main thread."""

    def __init__(
        self,
        roles: Callable[[], Sequence[Role]],
        timeout_s: float,
        logs: Path,
        faults: FaultLog,
        is_starting: Callable[[], bool] = lambda: False,
    ) -> None:
        """``roles`` returns those of the moment; with ``timeout_s`` 0 nobody looks.

        ``is_starting`` says whether a process is on its way to take another's place, which has a limit of its own.
        """
        self._roles = roles
        self._is_starting = is_starting
        self._timeout_s = timeout_s
        self._logs = logs
        self._faults = faults
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._driver_since = time.monotonic()

    def start(self) -> None:
        """Begin to look."""
        if self._timeout_s == 0:
            return
        if threading.current_thread() is threading.main_thread():
            signal.signal(STACKS_SIGNAL, _raise_hang)
        self._thread.start()

    def close(self) -> None:
        """End looking. May be called again."""
        self._closing.set()

    def _watch(self) -> None:
        while not self._closing.wait(min(_LONGEST_PAUSE_S, self._timeout_s / 4)):
            silent = self.silent_roles()
            if silent:
                self._end(silent)
            elif self._driver_stands_still():
                self._wake_driver()

    def silent_roles(self) -> list[Role]:
        """Return the roles that somebody has waited for too long; not those that are still starting."""
        return [role for role in self._roles() if role.place is not None and role.silence.seconds > self._limit_s(role)]

    def _limit_s(self, role: Role) -> float:
        return self._timeout_s if role.hang_timeout_s is None else role.hang_timeout_s

    def _end(self, silent: Sequence[Role]) -> None:
        waits = {role.name: role.silence.seconds for role in silent}
        for role in silent:
            limit = f"faults.hang_timeout_s={self._timeout_s:g}"
            if self._limit_s(role) < self._timeout_s:
                limit = f"{self._limit_s(role):g} are allowed, by rollout.trajectory_deadline_s"
            reason = f"no answer for {waits[role.name]:.0f} s ({limit})"
            host = role.place.host if role.place is not None else ""
            self._faults.record(FaultKind.hang, role=role.name, host=host, reason=f"{reason}; stacks: {role.log_path}")
        self.write_stacks()
        for role in silent:
            if not self._closing.is_set():
                role.end()

    def write_stacks(self) -> None:
        """Have every process write the stacks of its threads: roles into their logs, the driver beside them."""
        # In a thread of its own: a file system that does not answer may be why the run hangs, and is not waited for.
        writing = threading.Thread(target=self._write_own_stacks, name="stacks", daemon=True)
        writing.start()
        for role in self._roles():
            role.ask_for_stacks()
        writing.join(_OWN_WRITING_S)
        self._closing.wait(_WRITING_S)

    def _write_own_stacks(self) -> None:
        # A full disk costs the stacks; the silent roles have to be ended all the same.
        with contextlib.suppress(OSError), (self._logs / "driver_stacks.log").open("a", encoding="utf-8") as file:
            file.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _driver_stands_still(self) -> bool:
        """Tell whether the driver has been in one step for too long with no answer given, and none owed to it."""
        roles = self._roles()
        now = time.monotonic()
        last_answer = max((role.silence.last_answer for role in roles), default=0.0)
        is_asked = any(role.silence.is_asked for role in roles)
        if not PROCESS_STOP.is_in_step or is_asked or self._is_starting():
            self._driver_since = now
        self._driver_since = max(self._driver_since, last_answer)
        return now - self._driver_since > self._timeout_s

    def _wake_driver(self) -> None:
        stood = time.monotonic() - self._driver_since
        reason = f"no progress for {stood:.0f} s (faults.hang_timeout_s={self._timeout_s:g})"
        stacks = self._logs / "driver_stacks.log"
        self._faults.record(FaultKind.hang, role="the driver", host=os.uname().nodename, reason=f"{reason}; {stacks}")
        self.write_stacks()
        main = threading.main_thread().ident
        assert main is not None
        # It also ends a system call that waits.
        signal.pthread_kill(main, STACKS_SIGNAL)
        if not self._closing.wait(_GRACE_S):
            # The reaper ends every process of the run when this one is gone.
            os.write(2, f"error: the driver hangs, and cannot be woken; stacks: {stacks}\n".encode())
            sys.stdout.flush()
            os._exit(1)


def _raise_hang(signum: int, frame: object) -> None:
    raise DriverHangs(
        "the driver stood still for longer than faults.hang_timeout_s, without waiting for any process; "
        "logs/driver_stacks.log says where. A file system that does not answer looks like that"
    )
