"""Draws a run for the terminal of somebody who watches it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zs_nemo.observability.progress import evaluation_line, sparkline
from zs_nemo.observability.report import recipe_name
from zs_nemo.observability.run_follower import Life, RunView
from zs_nemo.observability.timer import duration

_CURVES = (
    ("reward", "reward/mean", "{:.3f}"),
    ("noise", "curriculum/noise", "{:.0%}"),
    ("searches/episode", "rollout/searches_per_episode", "{:.2f}"),
    ("KL", "train/kl", "{:.4f}"),
    ("entropy", "train/entropy", "{:.3f}"),
)
_SUPERVISED_CURVES = (
    ("loss", "train/loss", "{:.3f}"),
    ("held-out loss", "held_out/loss", "{:.3f}"),
)
_POINTS = 60
_STAGES = 6
_EVALUATIONS = 4
_BAR = 24
_COLORS = {Life.running: "green", Life.finished: "blue", Life.ended: "red", Life.unknown: "yellow"}


def watch_panel(view: RunView) -> Panel:
    """Return one frame."""
    part = view.part
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    stage = f" · {view.stage[0]} for {duration(view.stage[1])}" if view.stage else ""
    done = f"{part.unit}: {part.done:,}" if part.total is None else f"{part.done}/{part.total}"
    head.add_row(Text(part.name + stage, style="bold"), Text(f"{done}  {_times(view)}", style="dim"))
    lines: list[RenderableType] = [_life(view), head]
    if part.total is not None:
        # A bar does not end its line; the padding around it does.
        lines.append(Padding(ProgressBar(total=max(part.total, 1), completed=part.done), 0))
    if view.steps:
        lines.append(_curves(view.steps, _CURVES))
    elif view.supervised_steps:
        lines.append(_curves(view.supervised_steps, _SUPERVISED_CURVES))
    if view.stage_s:
        lines.append(_stages(view.stage_s))
    if facts := _facts(view):
        lines.append(Text(" · ".join(facts), style="dim"))
    lines += [Text(evaluation_line(name, summary), style="cyan") for name, summary in view.evaluations[-_EVALUATIONS:]]
    title = f"{view.name} · {recipe_name(view.recipe)}" if view.recipe else view.name
    return Panel(Group(*lines), title=Text(title), title_align="left", border_style=_COLORS[view.life], padding=(0, 1))


def _times(view: RunView) -> str:
    elapsed = f"{duration(view.elapsed_s)} elapsed"
    left = view.seconds_left
    return elapsed if left is None else f"{elapsed}, {duration(left)} left of training"


def _life(view: RunView) -> Text:
    process = f"process {view.holder}" if view.holder else "its process"
    told = {
        Life.running: f"running: {process}",
        Life.finished: "finished",
        Life.ended: f"not running: {process} is gone; the same command goes on from the last checkpoint",
        Life.unknown: f"not known to be running: {process} cannot be seen from this machine",
    }
    return Text(told[view.life], style=_COLORS[view.life])


def _curves(steps: Sequence[Mapping[str, Any]], curves: Sequence[tuple[str, str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for label, name, form in curves:
        values = [row[name] for row in steps if row.get(name) is not None and math.isfinite(row[name])]
        if values:
            table.add_row(label, form.format(values[-1]), Text(sparkline(values[-_POINTS:]), style="green"))
    return table


def _stages(stage_s: Mapping[str, float]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    whole = sum(stage_s.values()) or 1.0
    for stage, seconds in sorted(stage_s.items(), key=lambda item: -item[1])[:_STAGES]:
        bar = Text("█" * max(1, round(_BAR * seconds / whole)), style="blue")
        table.add_row(stage.replace("_", " "), duration(seconds), f"{seconds / whole:.0%}", bar)
    return table


def _facts(view: RunView) -> list[str]:
    facts = []
    if view.searches:
        facts.append(f"{view.searches.get('calls', 0):,.0f} searches")
        if failures := view.searches.get("failures"):
            facts.append(f"{failures:,.0f} failed attempts")
    if view.peak_memory_gib is not None:
        facts.append(f"peak memory {view.peak_memory_gib:.1f} GiB")
    if view.num_rollbacks:
        facts.append(f"{view.num_rollbacks} returns to a checkpoint")
    return facts
