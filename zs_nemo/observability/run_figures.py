"""Figures over several runs, from their reports alone: curves over each other, scores, time by stage."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from zs_nemo.observability.charts import (
    Format,
    IntervalRow,
    Series,
    interval_chart,
    line_chart,
    number,
    part_chart,
    percent,
)
from zs_nemo.observability.figure_file import PALETTE, Legend, figure_file
from zs_nemo.observability.page import ENGINE_NAMES
from zs_nemo.observability.report import find_evaluation
from zs_nemo.observability.run_tables import NamedRun, curves_of, interval

_CURVES: tuple[tuple[str, str, str, Format], ...] = (
    ("reward/mean", "Reward", "mean reward", number),
    ("curriculum/noise", "Noise, as the curriculum asks", "probability", percent),
    ("search/noisy_share", "Noise, as the coins fell", "noisy searches", percent),
    ("rollout/searches_per_episode", "Searches", "per episode", number),
    ("rollout/response_tokens", "What the policy wrote", "tokens per episode", number),
    ("rollout/document_tokens", "What it was given to read", "tokens per episode", number),
    ("train/kl", "KL", "nats per token", number),
    ("train/entropy", "Entropy", "nats per token", number),
    ("reward/zero_variance_share", "Groups without a lesson", "share of groups", percent),
    ("critic/explained_variance", "Critic", "explained variance", number),
)
FIGURE_FILES = (
    *(f"{metric.replace('/', '_')}.svg" for metric, *_ in _CURVES),
    "f1_*_greedy.svg",
    "f1_*_temperature_*.svg",
    "stages.svg",
)
"""Patterns that the names of all figures fit, with the ending of their files."""
_SHOWN_STAGES = 5
"""The longest ones have a colour each, the others share one."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with what belongs to it."""

    name: str
    """Of its file, without an ending."""
    title: str
    chart: Markup
    legend: Legend = ()

    def svg(self) -> str | None:
        """Return the text of its file; None where there is nothing to show."""
        return figure_file(self.chart, self.title, self.legend)


def curve_figures(runs: Sequence[NamedRun]) -> list[Figure]:
    """Return one figure a metric that any of the runs has kept, a line a run."""
    kept = {run.name: curves for run in runs if (curves := curves_of(run.report))}
    figures = []
    for metric, title, unit, form in _CURVES:
        series = [
            Series(
                label=name,
                points=[(step, float("nan") if value is None else value) for step, value in curves[metric]],
                # Twelve runs look different; then colour and dash come again.
                color=index % len(PALETTE) + 1,
                dashed=index // len(PALETTE) % 2 == 1,
            )
            for index, (name, curves) in enumerate(kept.items())
            if metric in curves
        ]
        if series:
            legend = [(line.label, line.color, line.dashed) for line in series]
            chart = line_chart(series, unit=unit, form=form)
            figures.append(Figure(name=metric.replace("/", "_"), title=title, chart=chart, legend=legend))
    return figures


def score_figures(runs: Sequence[NamedRun]) -> list[Figure]:
    """Return F1 before and after training, one figure for every engine and decoding, a line a run."""
    keys = {(entry["engine"], entry["decoding"]) for run in runs for entry in run.report["evaluation"].values()}
    figures = []
    for engine, decoding in sorted(keys):
        pairs = [
            [interval(find_evaluation(run.report, when, engine, decoding), "f1") for when in ("before", "after")]
            for run in runs
        ]
        rows = [
            IntervalRow(label=run.name, before=before, after=after)
            for run, (before, after) in zip(runs, pairs, strict=True)
            if before or after
        ]
        if rows:
            title = f"F1 on {ENGINE_NAMES.get(engine, engine)}, {decoding.replace('temperature_', 'T = ')}"
            chart = interval_chart(rows, unit="F1; hollow before training, filled after")
            figures.append(Figure(name=f"f1_{engine}_{decoding}", title=title, chart=chart))
    return figures


def stage_figure(runs: Sequence[NamedRun]) -> Figure:
    """Return where the time of every run went, the longest stages by themselves."""
    stages = [dict(run.report["stage_s"]) for run in runs]
    names = {name for each in stages for name in each}
    longest = sorted(names, key=lambda name: (-sum(each.get(name, 0.0) for each in stages), name))[:_SHOWN_STAGES]
    rows = []
    for run, each in zip(runs, stages, strict=True):
        sizes = [each.get(name, 0.0) / 60 for name in longest]
        rows.append((run.name, [*sizes, max(0.0, run.report["wall_s"] / 60 - sum(sizes))]))
    labels = [*(name.replace("_", " ") for name in longest), "other"]
    colors = [*range(1, len(longest) + 1), len(PALETTE)]
    chart = part_chart(rows, labels, colors, unit="minutes")
    legend = [(label, color, False) for label, color in zip(labels, colors, strict=True)]
    return Figure(name="stages", title="Time by stage", chart=chart, legend=legend)
