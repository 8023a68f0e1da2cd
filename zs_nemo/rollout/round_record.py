"""The files of one round of a collection: its episodes as they end, and their searches.

``episodes_0007.jsonl`` is appended to, an object an episode::

    {"prompt": 3, "member": 0, "outcome": 1.0, "searches": [...]}

``step_0007.jsonl`` has the searches alone (``types/interaction.py``), whole or absent. It is written when no episode is
under way any more: because all have ended, or because the engine may not be asked any more.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zs_nemo.observability.files import append_json_line, drop_torn_line, read_json_lines, write_json_lines
from zs_nemo.types.interaction import Interaction
from zs_nemo.types.keys import SampleKey


class RoundRecord:
    """Owns the two files. An episode that they have is not run again."""

    def __init__(self, folder: Path, step: int) -> None:
        """Read what earlier sessions have recorded."""
        self._searches = folder / f"step_{step:04d}.jsonl"
        self._episodes = folder / f"episodes_{step:04d}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        drop_torn_line(self._episodes)
        self._rows: list[dict[str, Any]] = read_json_lines(self._episodes)
        self._keys = {(row["prompt"], row["member"]) for row in self._rows}
        self._is_sealed = self._searches.exists() and not self._episodes.exists()

    def is_whole(self, num_episodes: int) -> bool:
        """Whether a round of so many episodes has ended."""
        return self._searches.exists() and self.num_ended(num_episodes) >= num_episodes

    def num_ended(self, num_episodes: int) -> int:
        """Return how many episodes of a round of so many are recorded."""
        return num_episodes if self._is_sealed else min(len(self._rows), num_episodes)

    def has(self, key: SampleKey) -> bool:
        """Whether this episode is recorded."""
        return (key.prompt, key.member) in self._keys

    def add(self, key: SampleKey, outcome: float | None, searches: Sequence[Interaction]) -> None:
        """Record an episode that has ended, safe on disk when this returns."""
        row = {
            "prompt": key.prompt,
            "member": key.member,
            "outcome": outcome,
            "searches": [each.to_row() for each in searches],
        }
        append_json_line(self._episodes, row)
        self._rows.append(row)
        self._keys.add((key.prompt, key.member))

    def write_searches(self) -> None:
        """Write the searches of the recorded episodes, in the order of the round."""
        ordered = sorted(self._rows, key=lambda row: (row["prompt"], row["member"]))
        write_json_lines(self._searches, [search for row in ordered for search in row["searches"]])

    def seal(self) -> None:
        """Forget the episodes of a round that has all that it can have: their searches are written."""
        self._episodes.unlink(missing_ok=True)
        self._is_sealed = True

    def means(self) -> dict[str, float]:
        """Return the mean outcome of the recorded episodes and their searches an episode, as metrics."""
        outcomes = [row["outcome"] for row in self._rows if row["outcome"] is not None]
        num_searches = sum(len(row["searches"]) for row in self._rows)
        return {
            "reward/mean": sum(outcomes) / max(1, len(outcomes)),
            "rollout/searches_per_episode": num_searches / max(1, len(self._rows)),
        }
