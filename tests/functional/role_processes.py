"""The processes of one role of a run, found by the log that they write."""

import os
from pathlib import Path

import psutil


def role_processes(log: Path) -> list[psutil.Process]:
    """Return the actor that writes a role's log and, of an engine, the process in which it computes.

    Names do not tell: they are cut at 15 characters, and the rest cannot always be read. That process is the actor's
    child with most memory.
    """
    writers = {process.pid: process for process in psutil.process_iter() if _writes_to(process, log)}
    (actor,) = [process for process in writers.values() if process.ppid() not in writers]
    children = sorted(
        (child for child in actor.children() if child.pid in writers), key=lambda child: child.memory_info().rss
    )
    return [actor, *children[-1:]]


def _writes_to(process: psutil.Process, log: Path) -> bool:
    try:
        return os.readlink(f"/proc/{process.pid}/fd/1") == str(log.resolve())
    except OSError:
        # A zombie has no files; others may belong to somebody else.
        return False
