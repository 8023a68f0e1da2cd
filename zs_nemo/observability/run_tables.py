"""Tables over several runs, from their reports alone: scores, settings that differ, cost, stages, curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from zs_nemo.observability.charts import Interval
from zs_nemo.observability.config_file import flat
from zs_nemo.observability.report import decoding_label, decodings, find_evaluation, read_report, real_engine
from zs_nemo.observability.results_table import setting_of
from zs_nemo.observability.tables import Cell, Column, Table, count, score
from zs_nemo.observability.timer import duration

_RUN = Column(key="run", label="run")
_SCORED = (("f1", "F1"), ("em", "EM"), ("published_em", "EM as published"))
_OF_QUESTIONS = (
    ("searches_per_question", "searches a question", "{:.2f}".format),
    ("policy_tokens_per_question", "tokens written", count),
    ("read_tokens_per_question", "tokens read", count),
    ("latency_s", "seconds a question", "{:.2f}".format),
)
# They tell a run's place and name, not what it computes.
_NO_DIFFERENCE = ("exp_manager.name", "exp_manager.exp_dir", "cluster.ray_address")


@dataclass(frozen=True, kw_only=True)
class NamedRun:
    """One of the runs that are set side by side."""

    name: str
    """The end of its path, as long as is needed to tell it from the others."""
    path: Path
    report: Mapping[str, Any]


def read_runs(paths: Sequence[Path | str]) -> list[NamedRun]:
    """Read run directories, or folders that hold a kept ``report.json``, in the given order."""
    folders = [Path(path).resolve() for path in paths]
    folders = [path.parent if path.name == "report.json" else path for path in folders]
    if twice := sorted({str(path) for path in folders if folders.count(path) > 1}):
        raise ValueError(f"{', '.join(twice)} is given twice; name every run once")
    return [
        NamedRun(name=name, path=path, report=read_report(path))
        for name, path in zip(_distinct_names(folders), folders, strict=True)
    ]


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def results(runs: Sequence[NamedRun]) -> Table:
    """Return the table of a paper: a run a line, F1 and EM on the real engine after training, F1 before it.

    After runs that differ in the seed alone (algorithm and engine in training are the same) stands their mean.
    """
    columns = [
        Column(key="run", label="run"),
        Column(key="algorithm", label="algorithm"),
        Column(key="rl_engine", label="search in training"),
        Column(key="seed", label="seed", form="{:.0f}".format),
    ]
    wanted = []
    for decoding in decodings(run.report for run in runs):
        for measure, when in (("f1", "before"), ("f1", "after"), ("em", "after")):
            label = f"{measure.upper()} {when}, {decoding_label(decoding)}"
            columns.append(Column(key=f"{measure}_{when}_{decoding}", label=label, form=score))
            wanted.append((when, decoding, measure))
    rows: list[list[Cell]] = []
    scores = {run.name: [_real_score(run.report, *each) for each in wanted] for run in runs}
    scored = [run for run in runs if any(scores[run.name])]
    for setting in dict.fromkeys(setting_of(run.report) for run in scored):
        having = [run for run in scored if setting_of(run.report) == setting]
        lines = [scores[run.name] for run in having]
        rows += [[run.name, *setting, run.report["seed"], *line] for run, line in zip(having, lines, strict=True)]
        if len(having) > 1:
            means = [_mean([line[index] for line in lines]) for index in range(len(wanted))]
            rows.append([f"mean of {len(having)}", *setting, None, *means])
    caption = "Held-out questions on the real search engine, with 95 % bootstrap intervals over questions."
    return Table(name="results", caption=caption, columns=columns, rows=rows)


def evaluations(runs: Sequence[NamedRun]) -> Table:
    """Return every score that the reports hold: by run, evaluation and question set."""
    columns = [
        _RUN,
        Column(key="evaluation", label="evaluation"),
        Column(key="set", label="set"),
        Column(key="questions", label="questions", form=count),
        *(Column(key=measure, label=label, form=score) for measure, label in _SCORED),
        *(Column(key=key, label=label, form=form) for key, label, form in _OF_QUESTIONS),
    ]
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(name for run in runs for name in run.report["evaluation"]):
        for run in runs:
            entry = run.report["evaluation"].get(name)
            for part, scores in _parts(entry).items() if entry else ():
                cells: list[Cell] = [interval(scores, measure) for measure, _ in _SCORED]
                rows.append(
                    [run.name, name, part, scores["n"], *cells, *(scores.get(key) for key, _, _ in _OF_QUESTIONS)]
                )
    return Table(name="evaluations", caption="Every evaluation, by question set.", columns=columns, rows=rows)


def settings(runs: Sequence[NamedRun]) -> Table:
    """Return the settings in which the runs differ, a run a column. Runs without settings are told by what is known."""
    known = [_settings_of(run.report) for run in runs]
    keys = dict.fromkeys(key for each in known for key in each)
    rows: list[list[Cell]] = []
    for key in sorted(keys):
        values = [str(each[key]) if key in each else None for each in known]
        # Of a run whose settings were not kept, what is not known is no difference.
        told = {value for run, value in zip(runs, values, strict=True) if value or run.report.get("settings")}
        if len(told) > 1 and key not in _NO_DIFFERENCE:
            rows.append([key, *values])
    columns = [Column(key="setting", label="setting"), *(Column(key=run.name, label=run.name) for run in runs)]
    return Table(name="settings", caption="Settings in which the runs differ.", columns=columns, rows=rows)


def costs(runs: Sequence[NamedRun]) -> Table:
    """Return what each run took: time, memory, what its roles held, searches, dollars."""
    columns = [
        _RUN,
        Column(key="steps", label="steps", form=count),
        Column(key="wall_s", label="wall time", form=duration),
        Column(key="peak_memory_gib", label="peak memory, GiB", form="{:.1f}".format),
        Column(key="gpu_hours", label="GPU-h held", form="{:,.2f}".format),
        Column(key="core_hours", label="core-h held", form="{:,.2f}".format),
        Column(key="real_searches_in_rl", label="real searches in RL", form=count),
        Column(key="simulated_searches", label="simulated searches", form=count),
        Column(key="simulator_tokens", label="simulator's tokens", form=count),
        Column(key="usd", label="cost, $", form="{:,.3g}".format),
        Column(key="usd_per_1000_simulated", label="1,000 simulated, $", form="{:.3g}".format),
        Column(key="usd_per_1000_bought", label="1,000 bought, $", form="{:.3g}".format),
    ]
    rows = [[run.name, *_cost_cells(run.report)] for run in runs]
    return Table(name="cost", caption="What the runs took.", columns=columns, rows=rows)


def stages(runs: Sequence[NamedRun]) -> Table:
    """Return the seconds of every stage, a run a line."""
    names = list(dict.fromkeys(stage for run in runs for stage in run.report["stage_s"]))
    columns = [_RUN, *(Column(key=f"{name}_s", label=name.replace("_", " "), form=duration) for name in names)]
    rows: list[list[Cell]] = [[run.name, *(run.report["stage_s"].get(name) for name in names)] for run in runs]
    return Table(name="stages", caption="Time by stage.", columns=columns, rows=rows)


def curves(runs: Sequence[NamedRun]) -> Table:
    """Return the metrics over the steps, a value a line: for programs."""
    rows: list[list[Cell]] = [
        [run.name, metric, step, value]
        for run in runs
        for metric, points in curves_of(run.report).items()
        for step, value in points
    ]
    columns = [Column(key=key, label=key) for key in ("run", "metric", "step", "value")]
    return Table(name="curves", caption="Metrics over the steps.", columns=columns, rows=rows)


def curves_of(report: Mapping[str, Any]) -> dict[str, list[tuple[float, float | None]]]:
    """Return (step, value) by metric; empty for a report of before they were kept."""
    kept = dict(report.get("curves") or {})
    steps = kept.pop("step", [])
    return {name: list(zip(steps, values, strict=True)) for name, values in kept.items()}


def interval(entry: Mapping[str, Any] | None, measure: str) -> Interval | None:
    """Return a score of an evaluation with its interval; None where it was not measured."""
    if entry is None or measure not in entry:
        return None
    low, high = entry[f"{measure}_ci95"]
    return Interval(value=entry[measure], low=low, high=high)


def _real_score(report: Mapping[str, Any], when: str, decoding: str, measure: str) -> Interval | None:
    engine = real_engine(report)
    return interval(find_evaluation(report, when, engine, decoding), measure) if engine else None


def _mean(cells: Sequence[Cell]) -> float | None:
    values = [cell.value for cell in cells if isinstance(cell, Interval)]
    return mean(values) if len(values) == len(cells) else None


def _parts(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the scores over all questions, by set where there are several, and their macro average."""
    parts: dict[str, Mapping[str, Any]] = {"all": entry, **entry.get("by_set", {})}
    if "macro" in entry:
        parts["macro average"] = {"n": entry["n"], **entry["macro"]}
    return parts


def _settings_of(report: Mapping[str, Any]) -> dict[str, Any]:
    kept = report.get("settings")
    if kept:
        return flat(kept)
    # A report of before settings were kept says these.
    return {"seed": report.get("seed"), "trainer.max_steps": report.get("steps")}


def _cost_cells(report: Mapping[str, Any]) -> list[Cell]:
    cost = report.get("cost") or {}
    roles = list((cost.get("roles") or {}).values())
    simulated = cost.get("simulated") or {}
    tokens = cost.get("simulator_tokens") or {}
    searches = {name: counts.get("calls", 0) for name, counts in report["search"]["engines"].items() if name in tokens}
    return [
        report["steps"],
        report["wall_s"],
        report["peak_memory_gib"],
        sum(role["held_gpu_s"] for role in roles) / 3600 if roles else None,
        sum(role["held_core_s"] for role in roles) / 3600 if roles else None,
        report["search"]["real_engine_searches_in_rl"],
        sum(searches.values()),
        sum(tokens.values()),
        cost.get("run_usd"),
        simulated.get("usd_per_1000"),
        simulated.get("bought_usd_per_1000"),
    ]
