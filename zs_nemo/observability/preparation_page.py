"""``report.html`` of the two recipes that make a simulator: what a collection holds, and how a fine-tuning went.

Built from the run's files and the ``report.json`` that the recipe has written at its end, again at any time.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zs_nemo.observability.charts import Series, line_chart, part_chart
from zs_nemo.observability.files import read_json, read_json_lines, write_text
from zs_nemo.observability.page import ENGINE_NAMES, curve, page_template, series, stage_chart
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.report import ABSENT, OTHER_REPORTS, RunFiles
from zs_nemo.types.interaction import HELD_OUT, TRAIN

_SHOWN = 12
"""Examples of each kind."""
_KINDS = (("useful", 1), ("useless", 2))
"""With their colours."""
_TOLD_OF_JUDGES = ("asked", "nonsense", "rejected", "disagreements_with_containment")
"""By a language model that judges."""


def write_preparation_page(run_dir: Path | str) -> Path:
    """Write the page and return its path; raise ``ValueError`` for a run that has no report of this kind yet."""
    files = RunFiles.read(run_dir)
    recipe, report = files.state.get("recipe"), read_json(files.path / "report.json", None)
    if recipe not in OTHER_REPORTS:
        raise ValueError(f"{files.path} is a run of recipes/{recipe}.py, which has another kind of report")
    if report is None:
        raise ValueError(f"{files.path} has no report.json yet; the command that began it goes on, and writes it")
    sections = _of_collection if recipe == "collect" else _of_tuning
    sessions = files.state.get("sessions", [])
    peaks = [session["peak_memory_gib"] for session in sessions if session.get("peak_memory_gib") is not None]
    page = page_template("zs_nemo.observability", "preparation.html.j2").render(
        name=files.path.resolve().name,
        report=report,
        began=sessions[0]["began"] if sessions else None,
        num_sessions=len(sessions),
        peak_memory_gib=max(peaks, default=None),
        machine=sessions[-1].get("machine", {}) if sessions else {},
        versions=sessions[-1].get("versions", {}) if sessions else {},
        stages=stage_chart(report),
        engine_names=ENGINE_NAMES,
        # A collection asks its engine in the phase that has no other name for it.
        phases={"collection": report["search"]["phases"][Phase.rl.value]},
        config_yaml=files.config_yaml,
        placement=files.placement,
        has_timeline=files.has_timeline,
        **sections(files, report),
    )
    write_text(files.path / "report.html", page)
    return files.path / "report.html"


def _of_collection(files: RunFiles, report: Mapping[str, Any]) -> dict[str, Any]:
    unit = "documents" if report["unit"] == "document" else "searches"
    engine = ENGINE_NAMES.get(report["engine"], report["engine"])
    labels = {"useful": 1, "useless": 2, "undecided": 3, "of held-out questions": 5}
    rows = [
        ("judged", [report[label.replace(" ", "_").replace("-", "_")] for label in labels]),
        *(
            (label, [report["examples"][split]["useful"], report["examples"][split]["useless"], 0, 0])
            for split, label in ((TRAIN, "to learn from"), (HELD_OUT, "held out"))
        ),
    ]
    chart = {
        "title": f"What became of the {unit}",
        "note": "Examples are different ones, balanced where the settings ask for it.",
        "legend": [(label, color, False) for label, color in labels.items()],
        "chart": part_chart(rows, list(labels), list(labels.values()), unit=unit),
    }
    return {
        "lead": f"What a policy asked {engine} over questions of the {report['split']} split, judged by "
        f"{report['judge']}, seed {report['seed']}.",
        "cards": [
            _card("Searches", report["searches"], f"{report['different_searches']:,} different ones"),
            _card("Questions with a search", report["questions"]),
            *(
                _card(label, sum(report["examples"][split].values()), _kinds_of(report["examples"][split]))
                for split, label in ((TRAIN, "Examples to learn from"), (HELD_OUT, "Examples held out"))
            ),
        ],
        "charts": [chart],
        "facts": _gaps(report) | {f"judge: {name}": report[name] for name in _TOLD_OF_JUDGES if name in report},
        "examples": _examples(files.path),
    }


def _gaps(report: Mapping[str, Any]) -> dict[str, str]:
    """Say what is missing; earlier versions had either all that was wanted or no report."""
    ended, wanted, bare = (report.get(name, 0) for name in ("episodes", "episodes_wanted", "without_documents"))
    gaps = {"episodes": f"{ended:,} of {wanted:,}: the engine refused to go on"} if ended < wanted else {}
    return gaps | ({"searches that found nothing": f"{bare:,}"} if bare else {})


def _of_tuning(files: RunFiles, report: Mapping[str, Any]) -> dict[str, Any]:
    # Reinforcement learning has the other phase: what is supervised is logged as a warm start.
    rows = files.warm_start_steps
    measured = {int(step): losses for step, losses in report["held_out_by_step"].items()}
    before, after = report["held_out_before"] or {}, report["held_out_after"] or {}
    cards = [
        {
            "label": f"Loss on held-out examples{label}",
            "figure": f"{after[name]:.3f}" if name in after else ABSENT,
            "note": f"{before[name]:.3f} before" if name in before else "",
        }
        for name, label in (("loss", ""), ("useful_loss", ", useful"), ("useless_loss", ", useless"))
    ]
    by_kind = [
        Series(label=kind, points=_points(measured, f"{kind}_loss"), color=color)
        for kind, color in _KINDS
        if any(f"{kind}_loss" in losses for losses in measured.values())
    ]
    return {
        "lead": f"A simulator fine-tuned on judged searches, {report['steps']} steps, seed {report['seed']}. The loss "
        "is on the documents alone. How well it simulates is measured by recipes/evaluate_simulator.py.",
        "cards": [
            *cards,
            _card("Examples", report["examples"]["train"], f"{report['examples']['held_out']:,} held out"),
        ],
        "charts": [
            curve(
                "Loss",
                "Mean over the tokens of the documents; of a step before its update.",
                "nats per token",
                series(rows, "train/loss", "examples of the step"),
                Series(label="held-out examples", points=_points(measured, "loss"), color=2),
            ),
            {
                "title": "Loss on held-out examples by kind",
                "note": "The answer that a useful document gives stands in its prompt.",
                "legend": [(line.label, line.color, False) for line in by_kind],
                "chart": line_chart(by_kind, unit="nats per token"),
            },
            curve("Gradient", "Norm before it is clipped.", "norm", series(rows, "train/grad_norm", "norm")),
            curve("Learning rate", "Of the step's update.", "rate", series(rows, "train/learning_rate", "rate")),
        ],
        "facts": {"the simulator": report["simulator"], **_found(report["guards"])},
        "examples": [],
    }


def _card(label: str, count: int, note: str = "") -> dict[str, str]:
    return {"label": label, "figure": f"{count:,}", "note": note}


def _kinds_of(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[kind]:,} {kind}" for kind, _ in _KINDS)


def _points(measured: Mapping[int, Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(step, measured[step][name]) for step in sorted(measured) if name in measured[step]]


def _found(guards: Mapping[str, Any]) -> dict[str, str]:
    steps = {name: f"steps {', '.join(map(str, found))}" for name, found in guards["findings"].items()}
    skipped = guards["skipped_updates"]
    return steps | ({"updates that were not made": f"{skipped:g}"} if skipped else {})


def _examples(folder: Path) -> list[Mapping[str, Any]]:
    """Return some of each kind, held-out ones first; none of a collection whose examples are Parquet."""
    rows = [row for split in (HELD_OUT, TRAIN) for row in _lines(folder / f"examples_{split}.jsonl")]
    return [row for useful in (True, False) for row in [row for row in rows if row["useful"] == useful][:_SHOWN]]


def _lines(path: Path) -> Sequence[Mapping[str, Any]]:
    return read_json_lines(path) if path.exists() else []
