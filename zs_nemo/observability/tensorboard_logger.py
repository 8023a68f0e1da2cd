"""The metrics of a run as TensorBoard events. A folder that cannot be written is given up with a warning."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zs_nemo.observability.phase import Phase

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LOGGER = logging.getLogger(__name__)


class TensorboardLogger:
    """A ``MetricsLogger``; the events of a row are on their way to the disk when ``log`` returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._has_failed = False

    def log(self, step: int, metrics: Mapping[str, float], phase: Phase) -> None:
        """Write one row."""
        if self._has_failed:
            return
        try:
            writer = self._events()
            for name, value in metrics.items():
                writer.add_scalar(phase.metric(name), value, step)
            writer.flush()
        except OSError as error:
            self._has_failed, self._writer = True, None
            _LOGGER.warning("the TensorBoard events in %s end here: %s", self._folder, error.strerror)

    def purge_from(self, step: int) -> None:
        """Begin a new file, whose first event makes TensorBoard hide what was written at or after ``step``."""
        self._close()
        self._purge_step = step

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        self._close()

    def _events(self) -> "SummaryWriter":
        if self._writer is None:
            # Imported on first use: it takes seconds, and a configuration error should be told at once.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        return self._writer

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
