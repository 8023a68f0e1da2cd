"""Peak memory of a run: this process and every process that it started, together."""

import threading
from types import TracebackType

import psutil


def memory_bytes() -> int:
    """Return the memory of this process and all its descendants.

    Proportional set size, so that pages which several processes share count once; resident size where the system
    does not tell. A process that ends meanwhile counts 0.
    """
    this = psutil.Process()
    return sum(_process_bytes(process) for process in (this, *this.children(recursive=True)))


def _process_bytes(process: psutil.Process) -> int:
    try:
        return int(getattr(process.memory_full_info(), "pss", 0)) or int(process.memory_info().rss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


class MemoryWatch:
    """Samples the memory from a thread while it is open. Peaks shorter than the interval may be missed."""

    def __init__(self, interval_s: float = 5.0) -> None:
        self._interval_s = interval_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)
        self._peak = 0

    @property
    def peak_gib(self) -> float:
        """Largest sum seen so far, in GiB."""
        return self._peak / 2**30

    def __enter__(self) -> "MemoryWatch":
        self._peak = memory_bytes()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closing.wait(self._interval_s):
            self._peak = max(self._peak, memory_bytes())
