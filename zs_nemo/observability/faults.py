"""The record of a run's faults: what died or hung, where, and what was done about it."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

_LOGGER = logging.getLogger(__name__)


class FaultKind(Enum):
    """What has happened."""

    engine_lost = "an engine died and was replaced"
    ranks_lost = "a training rank died and the run returned to its last checkpoint"
    hang = "a process showed no progress and was ended"
    node_left_out = "processes kept dying on a machine, and their successors went elsewhere"


class FaultLog:
    """Faults of a run, those of earlier sessions included. May be written from any thread."""

    def __init__(self, rows: list[dict[str, Any]] | None = None) -> None:
        """``rows`` are those of earlier sessions; new ones are appended to this very list, and logged as warnings."""
        self._rows = rows if rows is not None else []
        self._say: Callable[[str], None] = _LOGGER.warning

    def listen(self, say: Callable[[str], None]) -> None:
        """Tell ``say`` of every fault from now on, instead of the log."""
        self._say = say

    def record(self, kind: FaultKind, *, role: str, host: str, reason: str) -> None:
        """Add a fault: of which role on which machine, and what is known of its cause."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        first_line = reason.partition("\n")[0]
        self._rows.append({"kind": kind.name, "role": role, "host": host, "time": when, "reason": first_line})
        where = f" on {host}" if host else ""
        self._say(f"fault: {kind.value}: {role}{where}: {first_line}")

    @property
    def rows(self) -> Sequence[dict[str, Any]]:
        """All of them, oldest first."""
        return list(self._rows)

    def deaths_by_host(self) -> Counter[str]:
        """Return how many processes have died or hung on each machine."""
        deaths = (FaultKind.engine_lost.name, FaultKind.ranks_lost.name)
        return Counter(row["host"] for row in self.rows if row["kind"] in deaths and row["host"])

    def metrics(self) -> dict[str, float]:
        """Return the counts of the whole run by kind; none of what has never happened."""
        counts = Counter(row["kind"] for row in self.rows)
        return {f"faults/{kind}_total": float(count) for kind, count in sorted(counts.items())}
