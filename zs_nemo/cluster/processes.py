"""The processes of an actor: which they are, how they are ended, and how they are asked for their stacks.

Runs where the processes are: in the actor itself, in the driver, or in a task on the machine.
"""

import contextlib
import faulthandler
import signal
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

STACKS_SIGNAL = signal.SIGUSR2
"""Asks a process of ours to write the stacks of its threads to its log."""

ProcessId = tuple[int, float]
"""A process's number with the time of its start: the number alone may belong to another one later."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an actor runs."""

    node_id: str
    """Ray's name of the machine."""
    host: str
    """Its own name."""
    processes: tuple[ProcessId, ...]
    """The actor itself and all that it had started by the time it was ready."""


def own_place(node_id: str) -> Place:
    """Return the place of this process."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    processes = []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append((process.pid, process.create_time()))
    return Place(node_id=node_id, host=socket.gethostname(), processes=tuple(processes))


def answer_with_stacks() -> None:
    """Have this process write the stacks of all its threads to standard error when it gets ``STACKS_SIGNAL``.

    The interpreter need not be free for it: a thread that holds it in a call that never returns is shown, too.
    """
    faulthandler.register(STACKS_SIGNAL, all_threads=True, chain=False)


def ask_for_stacks(processes: Sequence[ProcessId]) -> int:
    """Send the signal to those processes, and their children, that handle it; return how many."""
    asked = 0
    for process in _alive(processes):
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            if _handles(process.pid, STACKS_SIGNAL):
                process.send_signal(STACKS_SIGNAL)
                asked += 1
    return asked


def end(processes: Sequence[ProcessId]) -> None:
    """Kill what is left of them, with their children, and wait for the end of them."""
    family = _alive(processes)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=5)


def _alive(processes: Iterable[ProcessId]) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for pid, began in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() == began:
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return list(found.values())


def _handles(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal that would otherwise end it."""
    for line in Path("/proc", str(pid), "status").read_text(encoding="utf-8").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
