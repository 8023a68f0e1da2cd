"""Tells apart what ends a run that no process of it can mend: a full disk, a lost file system or simulator."""

import errno
import shutil
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from zs_nemo.cluster.roles import RoleError
from zs_nemo.rollout.collector import SearchBudgetExceeded
from zs_nemo.search.simulator import SimulatedSearchEngine

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_LOST = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.EROFS, errno.EREMOTEIO})
_NO_ROOM_BYTES = 2**20
"""Where less is left, whatever failed has failed of that: a process that a full disk killed leaves no error behind."""
# What libraries make of them in their own words: the kernel's texts, as strerror gives them.
_TEXTS = {
    "No space left on device": "disk_full",
    "Disk quota exceeded": "disk_full",
    "Stale file handle": "file_system_lost",
    "Input/output error": "file_system_lost",
    "Transport endpoint is not connected": "file_system_lost",
    "Read-only file system": "file_system_lost",
}


class StopCause(Enum):
    """Why a run stopped; the value begins its message."""

    disk_full = "disk full"
    file_system_lost = "file system lost"
    simulator_lost = "simulator lost"
    search_lost = "search engine lost"


_REMEDIES = {
    StopCause.disk_full: "Free some room, or keep fewer checkpoints (exp_manager.save_top_k)",
    StopCause.file_system_lost: "Bring the file system back, or look at the machine's kernel log",
    StopCause.simulator_lost: "Look at its log, or at its server if search.endpoints names one",
    StopCause.search_lost: "Look at its server",
}


def cause_of(error: BaseException, run_dir: Path) -> StopCause | None:
    """Return what the run has lost, if that is why it failed: by the error, what it came from, and the directory."""
    chain = list(_chain(error))
    for each in chain:
        kind = _storage(each)
        if kind is not None:
            return kind
    if _is_full(run_dir):
        return StopCause.disk_full
    for each in chain:
        if isinstance(each, RoleError) and each.died and each.role is not None and "simulator" in each.role.name:
            return StopCause.simulator_lost
        if isinstance(each, SearchBudgetExceeded):
            simulated = each.engine == SimulatedSearchEngine.name
            return StopCause.simulator_lost if simulated else StopCause.search_lost
    if isinstance(error, OSError) and not run_dir.is_dir():
        return StopCause.file_system_lost
    return None


def is_death_of_policy_engine(error: BaseException) -> bool:
    """Whether a generation engine of the policy died, or what it came from did, and no training rank."""
    dead = [each.role for each in _chain(error) if isinstance(each, RoleError) and each.died]
    return bool(dead) and all(role is not None and role.name.startswith("policy-engine") for role in dead)


def describe(cause: StopCause, error: BaseException, run_dir: Path) -> str:
    """Return the message for a person: what is lost, what was being done, the remedy."""
    room = ""
    if cause is StopCause.disk_full:
        try:
            room = f" ({shutil.disk_usage(run_dir).free / 2**20:.0f} MiB are free in {run_dir})"
        except OSError:
            room = f" ({run_dir})"
    return f"{cause.value}{room}: {error}\n{_REMEDIES[cause]}."


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NO_ROOM_BYTES
    except OSError:
        return False


def _storage(error: BaseException) -> StopCause | None:
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in _FULL:
            return StopCause.disk_full
        if error.errno in _LOST:
            return StopCause.file_system_lost
    text = str(error).partition("\n")[0]
    return next((StopCause[name] for words, name in _TEXTS.items() if words in text), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, in this process and in that of a role."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        pending += [each.cause if isinstance(each, RoleError) else None, each.__cause__, each.__context__]
