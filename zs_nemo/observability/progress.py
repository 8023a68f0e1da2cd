"""What a person at the terminal sees while a run is under way."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zs_nemo.observability.timer import duration

_BARS = "▁▂▃▄▅▆▇█"

_SHOWN = (
    ("reward", "reward/mean", "{:.3f}"),
    ("noise", "curriculum/noise", "{:.0%}"),
    ("searches/episode", "rollout/searches_per_episode", "{:.2f}"),
    ("KL", "train/kl", "{:.4f}"),
    ("loss", "train/loss", "{:.3f}"),
    ("tokens/s", "rollout/policy_tokens_per_s", "{:.0f}"),
)


class Progress:
    """A live panel on a terminal, one plain line a step anywhere else.

    Open it with ``with``. It keeps the cursor visible and switches nothing else, so the terminal is in order however
    the process ends. ``stage`` fits ``StageTimer(on_stage=...)``.
    """

    def __init__(self, name: str, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._console = console or Console(file=sys.stdout)
        self._clock = clock
        self._began = clock()
        self._part = "starting"
        self._part_began = self._began
        self._total = self._done = self._already = 0
        self._stage = ""
        self._metrics: dict[str, float] = {}
        self._rewards: list[float] = []
        self._evaluations: list[str] = []
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self.render, refresh_per_second=2, transient=False)
            self._live.start()
            # Rich hides the cursor; a killed process could not bring it back.
            self._console.show_cursor(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, part: str, total: int, done: int = 0) -> None:
        """Start a part of the run, such as ``training``, of ``total`` steps; ``done`` of them before a resume."""
        self._part, self._total, self._done, self._already = part, total, done, done
        self._part_began = self._clock()
        if self._live is None:
            self._line(f"{part}: {total} steps" + (f", going on after {done}" if done else ""))

    def stage(self, stage: str) -> None:
        """Show what is being done within a step; an empty text for nothing in particular."""
        self._stage = stage
        if self._live is None and self._total == 0 and stage:
            self._line(stage)

    def tick(self) -> None:
        """Count one small step, such as an answered question. Without a terminal it says nothing."""
        self._done += 1

    def advance(self, metrics: Mapping[str, float]) -> None:
        """Count one step and show its metrics."""
        self._done += 1
        self._metrics = dict(metrics)
        reward = metrics.get("reward/mean")
        if reward is not None and math.isfinite(reward):
            self._rewards.append(reward)
        if self._live is None:
            shown = "  ".join(f"{label} {value}" for label, value in self._values())
            self._line(f"{self._part} {self._done}/{self._total}  {shown}  {self._times()}")

    def evaluated(self, name: str, summary: Mapping[str, Any]) -> None:
        """Show the outcome of an evaluation."""
        outcome = evaluation_line(name, summary)
        self._evaluations.append(outcome)
        if self._live is None:
            self._line(f"evaluation {outcome}")

    def say(self, message: str) -> None:
        """Print one line that stays, above the panel."""
        if self._live is not None:
            self._live.console.print(Text(message))
        else:
            self._line(message)

    def render(self) -> RenderableType:
        """Return the panel as it stands now."""
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        stage = f" · {self._stage}" if self._stage else ""
        counts = f"{self._done}/{self._total}" if self._total else ""
        head.add_row(
            Text(f"{self._part}{stage}", style="bold"), Text(f"{counts}  {self._times()}".strip(), style="dim")
        )
        # A bar does not end its line; the padding around it does.
        bar = Padding(ProgressBar(total=max(self._total, 1), completed=self._done), 0)
        lines: list[RenderableType] = [head, bar]
        values = self._values()
        if values:
            row = Text("  ".join(f"{label} {value}" for label, value in values))
            lines.append(row)
        if len(self._rewards) > 1:
            lines.append(Text.assemble("reward ", (sparkline(self._rewards[-60:]), "green")))
        lines += [Text(outcome, style="cyan") for outcome in self._evaluations[-4:]]
        return Panel(Group(*lines), title=self._name, title_align="left", border_style="blue", padding=(0, 1))

    def _values(self) -> list[tuple[str, str]]:
        return [(label, form.format(self._metrics[name])) for label, name, form in _SHOWN if name in self._metrics]

    def _times(self) -> str:
        now = self._clock()
        elapsed = f"{duration(now - self._began)} elapsed"
        steps = self._done - self._already
        if not steps or self._done >= self._total:
            return elapsed
        left = (now - self._part_began) / steps * (self._total - self._done)
        return f"{elapsed}, {duration(left)} left of {self._part}"

    def _line(self, text: str) -> None:
        self._console.file.write(text.rstrip() + "\n")
        self._console.file.flush()


def evaluation_line(name: str, summary: Mapping[str, Any]) -> str:
    """Write the outcome of an evaluation in one line."""
    low, high = summary["f1_ci95"]
    # Of a run of an earlier version nothing is known of questions without a score.
    lost = summary.get("unscored", {}).get("num_questions", 0)
    unscored = f"  unscored {lost}" if lost else ""
    return f"{name}  F1 {summary['f1']:.3f} [{low:.3f}, {high:.3f}]  EM {summary['em']:.3f}  n {summary['n']}{unscored}"


def sparkline(values: list[float]) -> str:
    """Draw numbers as a line of bars between their minimum and maximum; equal numbers give the lowest bar."""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)
