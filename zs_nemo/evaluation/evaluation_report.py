"""The report of an evaluation by itself, from the files of its run directory: ``report.json`` and ``report.html``."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from zs_nemo.evaluation.comparison import LABELS, MACRO, compare_evaluations, read_evaluation
from zs_nemo.evaluation.scores import MEASURES, EvaluationRow, scored_in_both
from zs_nemo.observability.charts import Interval, IntervalRow, interval_chart
from zs_nemo.observability.files import read_json, read_json_lines, write_json, write_text
from zs_nemo.observability.page import ENGINE_NAMES, page_template
from zs_nemo.observability.report import SIMULATED_ENGINES, RunFiles, build_report

RECIPE = "evaluate"
_EPISODES_SHOWN = 3
_OF_TRAINING = ("steps", "warm_start_steps", "rl_engine", "integrity", "critic", "guards")
_COMPARED_SAMPLES = 2000


def write_evaluation_report(run_dir: Path | str) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html`` into a run directory and return the former.

    Works at any time: evaluations that have not ended are missing from it.
    """
    files = RunFiles.read(run_dir)
    report = build_evaluation_report(files)
    write_json(files.path / "report.json", report)
    write_text(files.path / "report.html", render_page(files, report))
    return report


def build_evaluation_report(files: RunFiles) -> dict[str, Any]:
    """Return the content of ``report.json``: what every run's has, and the methods compared with the first one."""
    whole = build_report(files)
    frozen = read_json(files.path / "manifest.json", {})
    order = [name for name in frozen.get("evaluations", {}) if name in whole["evaluation"]]
    rows = {name: read_evaluation(files.path / "evaluations" / f"{name}.jsonl") for name in order}
    return {
        **{name: value for name, value in whole.items() if name not in _OF_TRAINING},
        "steps": 0,
        "policy": next((each["policy"] for each in frozen.get("evaluations", {}).values()), ""),
        "evaluation": {name: whole["evaluation"][name] for name in order},
        "comparisons": [each for name in order[1:] for each in _compared(order[0], name, rows)],
        "manifest": frozen.get("evaluations", {}),
    }


def _compared(first: str, second: str, rows: Mapping[str, list[EvaluationRow]]) -> list[dict[str, Any]]:
    """Return the differences over the questions that both have a score for; none where there are no such."""
    common = {row.question_id for row in rows[first]} & {row.question_id for row in rows[second]}
    kept = [[row for row in rows[name] if row.question_id in common] for name in (first, second)]
    mine, other, _ = scored_in_both(*kept)
    if not mine:
        return []
    differences = compare_evaluations(mine, other, bootstrap_samples=_COMPARED_SAMPLES)
    return [{"first_evaluation": first, "second_evaluation": second, **asdict(each)} for each in differences]


def render_page(files: RunFiles, report: Mapping[str, Any]) -> str:
    """Return the page of an evaluation. Text of models and corpora never becomes markup."""
    entries = report["evaluation"]
    return page_template("zs_nemo.evaluation", "evaluation.html.j2").render(
        report=report,
        sets=_sets(entries),
        labels=LABELS,
        measures=MEASURES,
        macro=MACRO,
        charts={measure: _chart(entries, measure) for measure in MEASURES} if entries else {},
        titles={name: _title(entry) for name, entry in entries.items()},
        simulated=any(entry["engine"] in SIMULATED_ENGINES for entry in entries.values()),
        episodes=[{"title": _title(entry), "episodes": _episodes(files.path, name)} for name, entry in entries.items()],
        engine_names=ENGINE_NAMES,
        config_yaml=files.config_yaml,
    )


def _sets(entries: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, Mapping[str, Any]]]]]:
    """Return (set, [(evaluation, its scores)]), the macro average last, for the table."""
    names = sorted({each for entry in entries.values() for each in _scores_by_set(entry)} - {MACRO})
    if any("macro" in entry for entry in entries.values()):
        names.append(MACRO)
    found = {name: _scores_by_set(entry) for name, entry in entries.items()}
    return [(each, [(name, scores[each]) for name, scores in found.items() if each in scores]) for each in names]


def _scores_by_set(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    if "by_set" not in entry:
        whole = ", ".join(entry["questions_by_set"])
        return {whole: entry}
    return dict(entry["by_set"]) | {MACRO: entry["macro"] | {"n": entry["n"]}}


def _chart(entries: Mapping[str, Mapping[str, Any]], measure: str) -> Markup:
    rows = []
    for entry in entries.values():
        scores = entry.get("macro", entry)
        low, high = scores[f"{measure}_ci95"]
        interval = Interval(value=scores[measure], low=low, high=high)
        rows.append(IntervalRow(label=_title(entry), before=None, after=interval))
    return interval_chart(rows, unit=LABELS[measure])


def _title(entry: Mapping[str, Any]) -> str:
    method = entry["method"].replace("_", " ")
    engine = entry["engine"]
    return method if engine == "closed_book" else f"{method}, {ENGINE_NAMES.get(engine, engine)}"


def _episodes(path: Path, name: str) -> list[dict[str, Any]]:
    """Return the first episodes of every set, by the order in which they were asked."""
    files = sorted((path / "answers" / name).glob("*.jsonl"))
    return [row for file in files for row in read_json_lines(file)[:_EPISODES_SHOWN]]
