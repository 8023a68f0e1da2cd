"""A Markdown table over finished runs, for the documentation: every run a line, nothing left out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from zs_nemo.observability.report import (
    ABSENT,
    decoding_label,
    decodings,
    find_evaluation,
    read_report,
    real_engine,
    recipe_name,
)
from zs_nemo.observability.timer import duration

_Scores = Sequence[tuple[str, str]]
"""(measure, decoding) of every column of scores."""


def results_table(run_dirs: Sequence[Path | str], *, by: Sequence[str] = ()) -> str:
    """Return the table: scores on the real engine before -> after with 95 % intervals, time, memory, searches.

    A folder that holds a ``report.json`` alone is enough, so that results can be kept without their runs.
    ``by`` names settings, such as ``curriculum.name``, that have a column each. Runs are ordered by algorithm, engine,
    these settings and seed; after those that differ in the seed alone stands their mean.
    Where a run had a critic, a last column says how much of the last step's returns it explained; where an evaluation
    lost questions to a search or a deadline, one says how many, before and after.

    Raises:
        ValueError: No run has one of the settings.
    """
    reports = [read_report(path) for path in run_dirs]
    for name in by:
        if not any(_has_setting(report, name) for report in reports):
            raise ValueError(f"--by {name}: none of the runs has this setting; name one of their config.yaml in full")

    def setting_of_run(report: Mapping[str, Any]) -> tuple[str, ...]:
        return (*setting_of(report), *(_setting(report, name) for name in by))

    reports.sort(key=lambda report: (*setting_of_run(report), report["seed"]))
    scores = [(measure, decoding) for measure in ("f1", "em") for decoding in decodings(reports)]
    head = ["algorithm", "search in training", *(f"`{name}`" for name in by), "seed"]
    head += [
        *(f"{measure.upper()}, {decoding_label(decoding)}" for measure, decoding in scores),
        "wall time",
        "peak memory",
        "real searches in RL",
    ]
    more: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = []
    if any(report.get("critic") for report in reports):
        more.append(("explained variance", _explained))
    if any(_num_unscored(report, when) for report in reports for when in ("before", "after")):
        more.append(("without a score", _unscored))
    head += [label for label, _ in more]
    lines = [head, ["---"] * len(head)]
    for setting in dict.fromkeys(map(setting_of_run, reports)):
        having = [report for report in reports if setting_of_run(report) == setting]
        lines += [[*setting, *_run_line(report, scores), *(cell(report) for _, cell in more)] for report in having]
        if len(having) > 1:
            lines.append(_mean_line(setting, having, scores) + [""] * len(more))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def setting_of(report: Mapping[str, Any]) -> tuple[str, str]:
    """Return algorithm and engine in training: what runs are compared by."""
    return recipe_name(report["recipe"]), report.get("rl_engine") or ABSENT


def _has_setting(report: Mapping[str, Any], name: str) -> bool:
    """Whether a run's configuration has a setting, be it without a value."""
    value: Any = report.get("settings")
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def _setting(report: Mapping[str, Any], name: str) -> str:
    """Return the value of a setting in a run's configuration, such as that of ``rollout.max_staleness``."""
    value: Any = report.get("settings")
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    # An empty cell would have nothing that the line of the mean could set in bold.
    return ABSENT if value is None else str(value) or '""'


def _run_line(report: Mapping[str, Any], scores: _Scores) -> list[str]:
    cells = [
        " → ".join(_score(_entry(report, when, decoding), measure) for when in ("before", "after"))
        for measure, decoding in scores
    ]
    real = report["search"]["real_engine_searches_in_rl"]
    return [
        str(report["seed"]),
        *cells,
        duration(report["wall_s"]),
        ABSENT if report["peak_memory_gib"] is None else f"{report['peak_memory_gib']:.1f} GiB",
        ABSENT if real is None else f"{real:,}",
    ]


def _explained(report: Mapping[str, Any]) -> str:
    critic = report.get("critic")
    return f"{critic['explained_variance']:.2f}" if critic else ABSENT


def _unscored(report: Mapping[str, Any]) -> str:
    return " → ".join(str(_num_unscored(report, when)) for when in ("before", "after"))


def _num_unscored(report: Mapping[str, Any], when: str) -> int:
    """Return how many questions the evaluations of the table lost; those of earlier versions gave them a 0."""
    entries = [_entry(report, when, decoding) for decoding in decodings([report])]
    return sum(entry.get("unscored", {}).get("num_questions", 0) for entry in entries if entry)


def _mean_line(setting: Sequence[str], reports: Sequence[Mapping[str, Any]], scores: _Scores) -> list[str]:
    cells = []
    for measure, decoding in scores:
        entries = [[_entry(report, when, decoding) for report in reports] for when in ("before", "after")]
        means = [
            f"{mean(entry[measure] for entry in having if entry):.3f}" if all(having) else ABSENT for having in entries
        ]
        cells.append(f"**{' → '.join(means)}**")
    wall = duration(mean(report["wall_s"] for report in reports))
    return [*(f"**{name}**" for name in setting), f"**mean of {len(reports)}**", *cells, wall, "", ""]


def _entry(report: Mapping[str, Any], when: str, decoding: str) -> dict[str, Any] | None:
    engine = real_engine(report)
    return find_evaluation(report, when, engine, decoding) if engine else None


def _score(entry: Mapping[str, Any] | None, measure: str) -> str:
    if entry is None:
        return ABSENT
    low, high = entry[f"{measure}_ci95"]
    return f"{entry[measure]:.3f} [{low:.3f}, {high:.3f}]"
