"""What a simulation found, for people: a table, a picture, and a JSON document."""

from collections.abc import Mapping, Sequence
from typing import Any

from zs_nemo.cluster.simulation.planned_cluster import CheckedStep, Played
from zs_nemo.cluster.simulation.quantities import Quantity
from zs_nemo.observability.charts import part_chart
from zs_nemo.observability.figure_file import PALETTE, figure_file

Sections = Mapping[str, Sequence[Played]]


def stage_names(sections: Sections) -> list[str]:
    """Return the stages of all clusters, in the order of a step."""
    return list(dict.fromkeys(name for played in sections.values() for each in played for name in each.steps.stage_s))


def table(sections: Sections) -> str:
    """Return one line a cluster: its step, its stages, and how busy its roles are."""
    stages = stage_names(sections)
    head = ["", "GPUs", "step s", *stages, "episodes/min", "busy: generation", "simulator", "ranks"]
    rows = [head]
    for played in sections.values():
        for each in played:
            steps = each.steps
            seconds = [f"{steps.stage_s.get(name, 0.0):.1f}" for name in stages]
            busy = [_share(steps.busy.get(name)) for name in ("generation", "simulator", "training")]
            rate = 60 * each.num_episodes / steps.step_s
            rows.append([each.name, str(each.num_gpus or "-"), f"{steps.step_s:.1f}", *seconds, f"{rate:.0f}", *busy])
    return _columns(rows)


def sources_table(quantities: Sequence[Quantity]) -> str:
    """Return every number with where it comes from."""
    rows = [["number", "value", "unit", "source", ""]]
    rows += [[each.name, f"{each.value:.4g}", each.unit, each.source.value, each.told] for each in quantities]
    return _columns(rows)


def check_table(checked: Sequence[CheckedStep]) -> str:
    """Return measured and predicted seconds of the steps that were not calibrated on."""
    names = list(checked[0].measured)
    rows = [["step", *(f"{name}: measured, predicted" for name in names)]]
    for each in checked:
        pairs = [f"{each.measured[name]:.1f}, {each.predicted[name]:.1f}" for name in names]
        rows.append([str(each.step), *pairs])
    errors = mean_errors(checked)
    rows.append(["mean error", *(f"{errors[name]:.1%}" for name in names)])
    return _columns(rows)


def mean_errors(checked: Sequence[CheckedStep]) -> dict[str, float]:
    """Return the mean absolute error by stage, as a share of what was measured."""
    return {
        name: sum(abs(each.predicted[name] / each.measured[name] - 1) for each in checked if each.measured[name])
        / len(checked)
        for name in checked[0].measured
    }


def advice(base: Played, grown: Sequence[Played]) -> str:
    """Return which role to grow: the one that shortens the step most for its GPUs."""

    def gain(each: Played) -> float:
        return base.steps.step_s / each.steps.step_s - 1

    def worth(each: Played) -> float:
        return gain(each) / max(1, each.num_gpus - base.num_gpus)

    best = max(grown, key=worth)
    lines = [f"{each.name}: {gain(each):+.1%} steps, for {_cost(base, each)}" for each in grown]
    if gain(best) < 0.01:
        return "\n".join([*lines, "no single role holds the step up: its longest episodes do"])
    return "\n".join([*lines, f"grow first: {best.name.removeprefix('one more ')}"])


def picture(sections: Sections) -> str:
    """Return an SVG document with a bar for every cluster, as long as its step, cut into stages."""
    stages = stage_names(sections)
    colors = [1 + place % len(PALETTE) for place in range(len(stages))]
    bars = [
        (
            f"{each.name}, {each.num_gpus} GPUs" if each.num_gpus else each.name,
            [each.steps.stage_s.get(stage, 0.0) for stage in stages],
        )
        for played in sections.values()
        for each in played
    ]
    legend = [(stage, color, False) for stage, color in zip(stages, colors, strict=True)]
    drawn = figure_file(part_chart(bars, stages, colors, unit="s"), "A step by stage", legend)
    assert drawn is not None, "there is no cluster to draw"
    return drawn


def document(sections: Sections, quantities: Sequence[Quantity], checked: Sequence[CheckedStep]) -> dict[str, Any]:
    """Return everything as JSON."""
    return {
        "clusters": {
            name: [
                {
                    "name": each.name,
                    "num_gpus": each.num_gpus,
                    "num_episodes": each.num_episodes,
                    "step_s": each.steps.step_s,
                    "stage_s": each.steps.stage_s,
                    "episode_s": each.steps.episode_s,
                    "search_s": each.steps.search_s,
                    "busy": each.steps.busy,
                    "sequences_per_engine": each.steps.sequences,
                }
                for each in played
            ]
            for name, played in sections.items()
        },
        "numbers": [
            {
                "name": each.name,
                "value": each.value,
                "unit": each.unit,
                "source": each.source.name,
                "told": each.told,
            }
            for each in quantities
        ],
        "check": {
            "steps": [{"step": each.step, "measured": each.measured, "predicted": each.predicted} for each in checked],
            "mean_error": mean_errors(checked) if checked else {},
        },
    }


def _cost(base: Played, grown: Played) -> str:
    more = grown.num_gpus - base.num_gpus
    return f"{more} more GPUs" if more > 1 else "1 more GPU" if more == 1 else "the same GPUs"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{min(1.0, value):.0%}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
