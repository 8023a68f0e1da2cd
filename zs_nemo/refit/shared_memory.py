"""Refit through one file in shared memory: the policy writes it, every engine reads it, then it is gone.

Owns the file and the order of events. Owns no weights: exporter and receiver are protocols, whoever implements them.
Assumes that all of them see the same folder: on one machine that is shared memory, on several a shared file system.
"""

import shutil
from pathlib import Path
from typing import Protocol


class WeightExporter(Protocol):
    """The side that trains."""

    def export_refit(self, path: str) -> None:
        """Write all weights, by Hugging Face names, into one safetensors file."""
        ...


class WeightReceiver(Protocol):
    """The side that generates."""

    def load_weights(self, path: str, version: int) -> None:
        """Take over the weights of a file; return when every engine has them."""
        ...


class SharedMemoryRefit:
    """Carries the policy's weights into the generation engines."""

    def __init__(
        self, exporter: WeightExporter, receiver: WeightReceiver, folder: Path, num_bytes: int, name: str = "weights"
    ) -> None:
        """``num_bytes`` is the size of all weights in the engines' dtype.

        ``name`` begins that of the file: refits that may be under way at once in one folder need one each.
        """
        self._exporter = exporter
        self._receiver = receiver
        self._folder = folder
        self._num_bytes = num_bytes
        self._name = name

    def refit(self, version: int) -> None:
        """Give the engines the policy's current weights and stamp them with ``version``. Raises ``OSError`` when the
        folder has too little room; the engines then keep the weights that they have.
        """
        # Clean-ups of /dev/shm, after another job on the machine for one, ask nobody.
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if free < self._num_bytes:
            raise OSError(
                f"refit needs {self._num_bytes / 2**20:.0f} MiB in {self._folder} for weights of version {version}, "
                f"but only {free / 2**20:.0f} MiB are free; free some, or enlarge it "
                "(for a container: --shm-size, for a machine: mount -o remount,size=... /dev/shm)"
            )
        path = self._folder / f"{self._name}-{version}.safetensors"
        try:
            self._exporter.export_refit(str(path))
            self._receiver.load_weights(str(path), version)
        finally:
            path.unlink(missing_ok=True)
