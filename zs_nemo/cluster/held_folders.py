"""Temporary folders of a run that are known to be nobody's once all of its processes were killed at once.

A scheduler that cancels a job ends the reaper together with the driver. What they leave behind the user's next run on
that machine deletes: a folder is held by a lock that the kernel gives back when its holders have died, also where they
are out of sight, in a container with a process table of its own.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

_LOCK = ".held"


def hold(folder: Path) -> int:
    """Make a folder for this user alone. It is held as long as the descriptor that is returned is open anywhere."""
    folder.mkdir(mode=0o700)
    unnamed = folder / f"{_LOCK}.new"
    lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # By its name it is known only now that it is locked.
    unnamed.rename(folder / _LOCK)
    return lock


def delete_abandoned(folders: Iterable[Path]) -> None:
    """Delete those of this user's folders that were made by ``hold`` and are held no more."""
    for folder in folders:
        # Another run may be deleting it too, and other folders of such names have no lock.
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)
