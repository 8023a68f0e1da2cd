"""The measures of simulators side by side: as a page, with some of what they wrote, and as a table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from zs_nemo.config.search import OffTarget
from zs_nemo.evaluation.simulator_quality import SimulatedAnswer
from zs_nemo.observability.files import read_json
from zs_nemo.observability.report import ABSENT
from zs_nemo.observability.tables import Column, Table

RECIPE = "evaluate_simulator"
_MEASURES = (
    ("useful documents that hold the answer", ("support_share",)),
    ("the same of the real engine, for the same queries", ("real_support_share",)),
    ("searches for useful documents of which one holds it", ("supported_searches",)),
    ("noisy documents that leak it", ("leak_share",)),
    ("the same a noisy search, those drawn again counted too", ("leaks_per_noisy_search",)),
    ("separation of the two, AUC", ("separation_auc",)),
    ("searches without a document", ("empty_share",)),
    ("searches that failed, left out", ("failed_share",)),
    ("words a document", ("likeness", "words")),
    ("words a real document", ("likeness", "real_words")),
    ("distance of the lengths", ("likeness", "length_distance")),
    ("words in common with a real document", ("likeness", "overlap")),
    ("accuracy of telling real from simulated, 0.5 is best", ("likeness", "classifier_accuracy")),
    ("different documents", ("diversity", "distinct")),
    ("words in common of two documents of one search", ("diversity", "self_overlap")),
    ("seconds a search, median", ("latency_s_median",)),
    ("the same, 95 % are faster", ("latency_s_p95",)),
    ("searches a second, all together", ("searches_per_s",)),
    ("tokens read a search", ("prompt_tokens_per_search",)),
    ("tokens written a search", ("completion_tokens_per_search",)),
    ("$ for 1,000 searches", ("cost", "usd_per_1000")),
    ("the same, bought", ("cost", "bought_usd_per_1000")),
)
_NUM_SHOWN = 24


def render_page(report: Mapping[str, Any], answers: Mapping[str, Sequence[SimulatedAnswer]]) -> str:
    """Return the page of ``report["simulators"]``, by name as ``answers`` are. Text of models never becomes markup."""
    rows = _rows(report["simulators"].values())
    heads = [label_of(name, found) for name, found in report["simulators"].items()]
    shown = {name: found[:_NUM_SHOWN] for name, found in answers.items()}
    in_flight = sorted({found["in_flight"] for found in report["simulators"].values()})
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("zs_nemo.evaluation").joinpath("simulator_quality.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report, heads=heads, rows=rows, shown=shown, in_flight=in_flight
    )


def read_quality_report(path: Path) -> dict[str, Any] | None:
    """Return what ``recipes/evaluate_simulator.py`` has written into this folder; None if it has not, or not readably.

    ``path`` may also name the ``report.json`` itself.
    """
    try:
        report = read_json(path if path.name == "report.json" else path / "report.json", None)
    except ValueError:
        return None
    return report if isinstance(report, dict) and report.get("recipe") == RECIPE else None


def quality_table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """Return the measures of all simulators of these reports, a measure a line."""
    measured = [item for report in reports for item in report["simulators"].items()]
    columns = [Column(key="measure", label="measure")]
    columns += [Column(key=f"{place}", label=label_of(name, found)) for place, (name, found) in enumerate(measured)]
    rows = [[label, *values] for label, values in _rows([found for _, found in measured])]
    return Table(name="simulators", caption="Quality of simulators", columns=columns, rows=rows)


def label_of(name: str, found: Mapping[str, Any]) -> str:
    """Return who was measured: the model and the wording that it was asked in; the bare name if neither is kept."""
    settings = found.get("settings")
    if settings is None:
        return name
    wording = settings["template"] or "our own wording"
    off_target = settings.get("off_target", OffTarget.auto.name)
    told = "" if off_target == OffTarget.auto.name else f", off_target={off_target}"
    return f"{settings['served_model'] or settings['model']}, {wording}{told}"


def _rows(found: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the measures that at least one of the simulators has; earlier versions did not take all."""
    measured = list(found)
    rows = [(label, [_value(each, path) for each in measured]) for label, path in _MEASURES]
    return [(label, values) for label, values in rows if any(value != ABSENT for value in values)]


def _value(found: Any, path: Sequence[str]) -> str:
    for part in path:
        found = found and found.get(part)
    if found is None or math.isnan(found):
        return ABSENT
    return f"{found:.3g}" if "cost" in path else f"{found:.3f}"
