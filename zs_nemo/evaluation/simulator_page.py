"""The measures of simulators as a page, side by side, with some of what they wrote."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from zs_nemo.evaluation.simulator_quality import SimulatedAnswer
from zs_nemo.observability.report import ABSENT

_MEASURES = (
    ("useful documents that hold the answer", ("support_share",)),
    ("the same of the real engine, for the same queries", ("real_support_share",)),
    ("searches for useful documents of which one holds it", ("supported_searches",)),
    ("noisy documents that leak it", ("leak_share",)),
    ("separation of the two, AUC", ("separation_auc",)),
    ("searches without a document", ("empty_share",)),
    ("words a document", ("likeness", "words")),
    ("words a real document", ("likeness", "real_words")),
    ("distance of the lengths", ("likeness", "length_distance")),
    ("words in common with a real document", ("likeness", "overlap")),
    ("accuracy of telling real from simulated, 0.5 is best", ("likeness", "classifier_accuracy")),
    ("different documents", ("diversity", "distinct")),
    ("seconds a search, median", ("latency_s_median",)),
    ("tokens read a search", ("prompt_tokens_per_search",)),
    ("tokens written a search", ("completion_tokens_per_search",)),
    ("$ for 1,000 searches", ("cost", "usd_per_1000")),
    ("the same, bought", ("cost", "bought_usd_per_1000")),
)
_NUM_SHOWN = 24


def render_page(report: Mapping[str, Any], answers: Mapping[str, Sequence[SimulatedAnswer]]) -> str:
    """Return the page of ``report["simulators"]``, by name as ``answers`` are. Text of models never becomes markup."""
    rows = [(label, [_value(found, path) for found in report["simulators"].values()]) for label, path in _MEASURES]
    shown = {name: found[:_NUM_SHOWN] for name, found in answers.items()}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("zs_nemo.evaluation").joinpath("simulator_quality.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(report=report, rows=rows, shown=shown)


def _value(found: Any, path: Sequence[str]) -> str:
    for part in path:
        found = found and found[part]
    return ABSENT if found is None else f"{found:.3g}" if "cost" in path else f"{found:.3f}"
