"""``report.html``: one self-contained page. Everything that a model or a corpus wrote is escaped."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from zs_nemo.config.reward import RewardConfig
from zs_nemo.observability.charts import (
    Format,
    Interval,
    IntervalRow,
    Series,
    bar_chart,
    interval_chart,
    line_chart,
    number,
    percent,
    stacked_chart,
)
from zs_nemo.observability.files import read_json_lines
from zs_nemo.observability.report import (
    ABSENT,
    RunFiles,
    decoding_label,
    decodings,
    find_evaluation,
    real_engine,
    recipe_name,
    unscored_lines,
)
from zs_nemo.observability.timer import duration
from zs_nemo.types.trajectory import Status

TRAJECTORIES_SHOWN = 3
"""From the first step that has some, and as many from the last."""

ENGINE_NAMES = {
    "bm25": "BM25",
    "closed_book": "No search",
    "simulator": "Simulator",
    "retriever": "Retriever",
    "web": "Web",
}
_STATUS_COLORS = {"answered": 1, "no_action": 2, "turn_cut": 3, "turn_limit": 4, "sequence_limit": 5}
_TAG = re.compile(r"(</?(?:think|search|information|answer)>)")

Report = Mapping[str, Any]


def render_page(files: RunFiles, report: Report) -> str:
    """Return the page of a run."""
    settings = _settings(report)
    return page_template("zs_nemo.observability", "report.html.j2").render(
        report=report,
        recipe_name=recipe_name(report["recipe"]),
        headline=_headline(report),
        curves=_curves(files.steps, _reward_terms(report)),
        endings=_endings(files.steps),
        ending_labels=[(name, _STATUS_COLORS.get(name, 6), Status[name].value) for name in _ending_names(files.steps)],
        settings=settings,
        unscored=unscored_lines(report),
        intervals=_intervals(settings),
        kinds=_breakdowns(report, "by_kind"),
        hops=_breakdowns(report, "by_hops"),
        stages=stage_chart(report),
        engine_names=ENGINE_NAMES,
        trajectories=_trajectories(files.path),
        config_yaml=files.config_yaml,
        placement=files.placement,
        has_timeline=files.has_timeline,
    )


def page_template(package: str, name: str) -> Template:
    """Return a page's template out of a package; it may include the style that all pages share."""
    loader = ChoiceLoader([PackageLoader(each, "") for each in dict.fromkeys((package, "zs_nemo.observability"))])
    # Autoescape is what keeps text of models and corpora from becoming markup.
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "duration": duration,
        "hours": lambda hours, unit: f"{hours:,.2f} {unit}",
        "score": _score,
        "tags": _mark_tags,
        "usd": _usd,
        "words": _words,
    }
    return environment.get_template(name)


def _headline(report: Report) -> list[dict[str, Any]]:
    """Return the large figures: per decoding, the real engine's F1 before and after."""
    engine = real_engine(report)
    figures = []
    for decoding in reversed(decodings([report])):
        label = decoding.replace("temperature_", "sampled at temperature ")
        before, after = (
            find_evaluation(report, when, engine, decoding) if engine else None for when in ("before", "after")
        )
        if before or after:
            engine_name = ENGINE_NAMES.get(engine or "", engine)
            figures.append({"label": f"F1 on {engine_name}, {label}", "before": before, "after": after})
    return figures


def series(rows: Sequence[Mapping[str, Any]], name: str, label: str, color: int = 1, *, dashed: bool = False) -> Series:
    """Return one metric of a run's steps as a line."""
    # A number that JSON cannot hold was written as null: a gap in the line, not a 0.
    points = [(row["step"], float("nan") if row[name] is None else row[name]) for row in rows if name in row]
    return Series(label=label, points=points, color=color, dashed=dashed)


def curve(title: str, note: str, unit: str, *lines: Series, form: Format = number) -> dict[str, Any]:
    """Return a chart over steps with what the page says of it; several lines have a legend."""
    legend = [(line.label, line.color, line.dashed) for line in lines] if len(lines) > 1 else []
    return {"title": title, "note": note, "legend": legend, "chart": line_chart(lines, unit=unit, form=form)}


def _reward_terms(report: Report) -> str:
    """Return what the reward is a sum of, as ``0.5 f1 + exact_match``; ``f1`` for the default."""
    weights = RewardConfig(**report["settings"].get("reward", {})).weights()
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items() if weight)


def _curves(rows: Sequence[Mapping[str, Any]], reward: str) -> list[dict[str, Any]]:
    terms = "token F1 of the answer against the gold answers" if reward == "f1" else reward
    return [
        curve(
            "Reward",
            f"Mean over the step's episodes: {terms}.",
            "F1" if reward == "f1" else "reward",
            series(rows, "reward/mean", "mean reward"),
        ),
        curve(
            "Noise",
            "What the curriculum asks for, and what its coins gave.",
            "noisy searches",
            series(rows, "curriculum/noise", "probability", 2, dashed=True),
            series(rows, "search/noisy_share", "share of the step's searches"),
            form=percent,
        ),
        curve(
            "Searches",
            "Searches whose documents the policy was shown.",
            "per episode",
            series(rows, "rollout/searches_per_episode", "searches"),
        ),
        curve(
            "Length",
            "What the policy wrote, and what it was given to read.",
            "tokens per episode",
            series(rows, "rollout/response_tokens", "policy"),
            series(rows, "rollout/document_tokens", "documents", 2),
        ),
        curve(
            "KL",
            "Distance from the policy after the warm start, on policy tokens.",
            "nats per token",
            series(rows, "train/kl", "KL"),
        ),
        curve(
            "Entropy",
            "How undecided the policy is about its next token.",
            "nats per token",
            series(rows, "train/entropy", "entropy"),
        ),
        curve(
            "Groups without a lesson",
            "All members of the group got the same reward.",
            "share of groups",
            series(rows, "reward/zero_variance_share", "share"),
            form=percent,
        ),
        *([_critic_curve(rows)] if any("critic/explained_variance" in row for row in rows) else []),
    ]


def _critic_curve(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return curve(
        "Critic",
        "Share of the returns' variance that its values explain, before it has seen them.",
        "explained variance",
        series(rows, "critic/explained_variance", "explained variance"),
    )


def _ending_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the endings that occur, in the order of their definition."""
    return [status.name for status in Status if any(row.get(f"rollout/status_{status.name}") for row in rows)]


def _endings(rows: Sequence[Mapping[str, Any]]) -> Markup:
    names = _ending_names(rows)
    shares = [(row["step"], [row.get(f"rollout/status_{name}") or 0.0 for name in names]) for row in rows]
    colors = [_STATUS_COLORS.get(name, 6) for name in names]
    return stacked_chart(shares if names else [], [_words(name) for name in names], colors, "share of episodes")


Setting = tuple[str, Mapping[str, Any] | None, Mapping[str, Any] | None]


def _settings(report: Report) -> list[Setting]:
    """Return (label, before, after) for every engine and decoding that was evaluated, the real engine first."""
    order = ("simulator", "closed_book")
    keys = {(entry["engine"], entry["decoding"]) for entry in report["evaluation"].values()}
    return [
        (
            f"{ENGINE_NAMES.get(engine, engine)}, {decoding_label(decoding)}",
            find_evaluation(report, "before", engine, decoding),
            find_evaluation(report, "after", engine, decoding),
        )
        for engine, decoding in sorted(keys, key=lambda key: (order.index(key[0]) if key[0] in order else -1, key))
    ]


def _intervals(settings: Sequence[Setting]) -> Markup | None:
    rows = [
        IntervalRow(label=label, before=_interval(before), after=_interval(after)) for label, before, after in settings
    ]
    return interval_chart(rows, unit="F1") if rows else None


def _breakdowns(report: Report, field: str) -> list[dict[str, Any]]:
    """Return the tables over the parts of ``by_kind`` or ``by_hops``, per decoding on the real engine."""
    engine = real_engine(report)
    tables = []
    for decoding in reversed(decodings([report])):
        pair = [find_evaluation(report, when, engine, decoding) if engine else None for when in ("before", "after")]
        parts: list[Mapping[str, Any]] = [entry.get(field, {}) if entry else {} for entry in pair]
        names = sorted({name for part in parts for name in part})
        if names:
            lines = [(_words(name), *(part.get(name) for part in parts)) for name in names]
            tables.append({"title": decoding_label(decoding), "lines": [*lines, ("all", *pair)]})
    return tables


def stage_chart(report: Report) -> Markup | None:
    """Draw the wall time by stage; None if nothing was recorded."""
    stages = dict(sorted(report["stage_s"].items(), key=lambda item: -item[1]))
    wall = report["wall_s"]
    other = wall - sum(stages.values())
    if other > 0.005 * wall:
        stages["other"] = other
    if not stages:
        return None
    whole = max(wall, sum(stages.values()))
    return bar_chart(
        [(_words(name), spent, f"{duration(spent)} · {100 * spent / whole:.0f}%") for name, spent in stages.items()]
    )


def _trajectories(path: Path) -> list[dict[str, Any]]:
    """Return episodes of the first and of the last step that has some."""
    steps = sorted((path / "trajectories").glob("step_*.jsonl"))
    chosen = [("Early", steps[0]), ("Late", steps[-1])] if len(steps) > 1 else [("Only", step) for step in steps]
    return [
        {
            "title": f"{when}: step {int(file.stem.removeprefix('step_'))}",
            "episodes": read_json_lines(file)[:TRAJECTORIES_SHOWN],
        }
        for when, file in chosen
    ]


def _interval(entry: Mapping[str, Any] | None) -> Interval | None:
    if entry is None:
        return None
    low, high = entry["f1_ci95"]
    return Interval(value=entry["f1"], low=low, high=high)


def _score(entry: Mapping[str, Any] | None, measure: str = "f1") -> str:
    return ABSENT if entry is None else f"{entry[measure]:.3f}"


def _usd(amount: float | None) -> str:
    """Write cents where there are any to speak of, and small sums by their first figures."""
    if amount is None:
        return ABSENT
    return f"${amount:,.2f}" if amount >= 1 or amount == 0 else f"${amount:.2g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _mark_tags(text: str) -> Markup:
    """Escape a text and set its control tags apart."""
    parts = _TAG.split(text)
    return Markup("").join(
        Markup("<b>{}</b>").format(part) if index % 2 else Markup("{}").format(part) for index, part in enumerate(parts)
    )
