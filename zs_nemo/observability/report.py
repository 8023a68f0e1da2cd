"""The report of a run, from the files of its run directory alone: ``report.json`` and ``report.html``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from zs_nemo.config.cost import CostConfig
from zs_nemo.observability.cost import account
from zs_nemo.observability.faults import FaultKind
from zs_nemo.observability.files import read_json, read_json_lines, write_json, write_text
from zs_nemo.observability.guards import found_in
from zs_nemo.observability.phase import Phase

SIMULATED_ENGINES = frozenset({"simulator"})
"""Every other engine counts as real: one that nobody has thought of must not pass as simulated."""

_SAMPLED = "temperature_"
OTHER_REPORTS = {"collect": "recipes/collect_interactions.py", "sft_simulator": "recipes/sft_simulator.py"}
"""Recipes that make a simulator: they write their ``report.json`` themselves, and ``preparation_page.py`` the page."""

ABSENT = "\N{EN DASH}"
"""What tables show where nothing was measured."""

CURVES = (
    "reward/mean",
    "curriculum/noise",
    "search/noisy_share",
    "rollout/searches_per_episode",
    "rollout/response_tokens",
    "rollout/document_tokens",
    "train/kl",
    "train/entropy",
    "reward/zero_variance_share",
    "critic/explained_variance",
)
"""Metrics that a report keeps over the steps."""

Counts = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run directory holds, as read."""

    path: Path
    config: dict[str, Any]
    config_yaml: str
    state: dict[str, Any]
    steps: list[dict[str, Any]]
    """Reinforcement-learning steps of ``metrics.jsonl``."""
    warm_start_steps: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    search: dict[str, dict[str, Counts]] | None
    """{phase: {engine: counts}}; None if the run never saved it."""
    placement: str | None
    """The drawing of who sat where in the newest session."""
    has_timeline: bool

    @classmethod
    def read(cls, path: Path | str) -> "RunFiles":
        """Read a run directory; raises ``ValueError`` if it is none."""
        path = Path(path)
        if not (path / "config.yaml").exists() or not (path / "state.json").exists():
            raise ValueError(
                f"{path} is no run directory: config.yaml or state.json is missing; give the folder "
                "exp_manager.exp_dir/exp_manager.name of a run that has begun"
            )
        config_yaml = (path / "config.yaml").read_text(encoding="utf-8")
        rows = read_json_lines(path / "metrics.jsonl")
        summaries = sorted((path / "evaluations").glob("*.json"))
        drawing = path / "placement.txt"
        return cls(
            path=path,
            config=OmegaConf.to_container(OmegaConf.create(config_yaml)),  # type: ignore[arg-type]
            config_yaml=config_yaml,
            state=read_json(path / "state.json", {}),
            steps=[row for row in rows if row["phase"] == Phase.rl.value],
            warm_start_steps=[row for row in rows if row["phase"] == Phase.warm_start.value],
            evaluations={file.stem: read_json(file, {}) for file in summaries},
            search=read_json(path / "search.json", None),
            placement=drawing.read_text(encoding="utf-8") if drawing.exists() else None,
            has_timeline=(path / "timeline.json").exists(),
        )


def write_report(run_dir: Path | str) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html`` into a run directory and return the former.

    Works at any time, also for a run that was broken off: what is not there yet is missing from the report. Raises
    ``ValueError`` for a run that has another kind of report.
    """
    # The page is needed at the end of a run alone; its template engine is not loaded before.
    from zs_nemo.observability.page import render_page

    files = RunFiles.read(run_dir)
    if command := OTHER_REPORTS.get(files.state.get("recipe", "")):
        raise ValueError(
            f"{files.path} is a run of {command}, whose report.json this would replace by one of training; its page "
            "alone can be made again"
        )
    report = build_report(files)
    write_json(files.path / "report.json", report)
    write_text(files.path / "report.html", render_page(files, report))
    return report


def account_of(files: RunFiles, besides: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, Any]:
    """Return what a run of any recipe took, over all of its sessions: ``wall_s``, ``stage_s``, ``search``, ``cost``.

    ``besides`` are roles that the sessions do not have, such as a judge, each with its counts in the whole run.
    """
    sessions = files.state.get("sessions", [])
    search = search_summary(files.search)
    return {
        "wall_s": sum(session["wall_s"] for session in sessions),
        "stage_s": _total(session["stage_s"] for session in sessions),
        "search": search,
        "cost": account(
            search["engines"],
            [*(session.get("roles", {}) for session in sessions), besides or {}],
            _prices(files.config),
            simulated=SIMULATED_ENGINES,
        ),
    }


def build_report(files: RunFiles) -> dict[str, Any]:
    """Return the content of ``report.json``."""
    sessions = files.state.get("sessions", [])
    taken = account_of(files)
    asked = taken["search"]["phases"]["rl"]
    configured = _configured_engine(files.config.get("search") or {})
    peaks = [session["peak_memory_gib"] for session in sessions if session.get("peak_memory_gib") is not None]
    shares = [row[_SHARE] for row in files.steps if row.get(_SHARE) is not None]
    return {
        "recipe": files.state.get("recipe"),
        "name": files.path.resolve().name,
        "finished": files.state.get("finished", False),
        "seed": files.config.get("seed"),
        "steps": len(files.steps),
        "warm_start_steps": len(files.warm_start_steps),
        "rl_engine": max(asked, key=lambda name: asked[name].get("calls", 0)) if asked else configured,
        "sessions": len(sessions),
        "began": sessions[0]["began"] if sessions else None,
        "wall_s": taken["wall_s"],
        "stage_s": taken["stage_s"],
        "evaluation": files.evaluations,
        "search": taken["search"],
        "integrity": {
            "token_in_token_out_share": min(shares, default=None),
            "unread_searches": sum(row.get("search/unread") or 0 for row in files.steps) if files.steps else None,
        },
        "critic": _critic(files),
        "guards": _guards(files),
        "faults": _faults(files),
        "cost": taken["cost"],
        "peak_memory_gib": max(peaks, default=None),
        "curves": _curves(files.steps),
        "settings": files.config,
        "machine": sessions[-1].get("machine", {}) if sessions else {},
        "versions": sessions[-1].get("versions", {}) if sessions else {},
    }


def read_report(path: Path | str) -> dict[str, Any]:
    """Return the report of a run directory as it stands, or the one that was kept in a folder without its run.

    ``path`` may also name the ``report.json`` itself. Raises ``ValueError`` where there is neither.
    """
    path = Path(path)
    folder = path.parent if path.name == "report.json" else path
    if (folder / "config.yaml").exists() or not (folder / "report.json").exists():
        return build_report(RunFiles.read(folder))
    try:
        report = read_json(folder / "report.json", {})
    except ValueError as error:
        raise ValueError(f"{folder / 'report.json'} is not JSON ({error}); build it again from its run") from error
    if not isinstance(report, dict) or not {"recipe", "evaluation", "wall_s", "stage_s"} <= report.keys():
        raise ValueError(f"{folder / 'report.json'} is not the report of a run, as recipes/report.py writes it")
    return report


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Return what the page draws over the steps, to six figures: a kept report can be drawn beside others."""
    names = [name for name in CURVES if any(name in row for row in rows)]
    values = {name: [_rounded(row.get(name)) for row in rows] for name in names}
    return {"step": [row["step"] for row in rows], **values} if values else {}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _configured_engine(search: Mapping[str, Any]) -> str:
    """Return the name of the training engine by a setting that no other one has."""
    telling = {"model": "simulator", "return_scores": "retriever", "api_key_variable": "web"}
    return next((engine for setting, engine in telling.items() if setting in search), "bm25")


_SHARE = "tokens/token_in_token_out_share"


def search_summary(counts: Mapping[str, Mapping[str, Counts]] | None) -> dict[str, Any]:
    """Return what the engines were asked, in all and by phase, from {phase: {engine: counts}}.

    ``real_engine_searches_in_rl`` counts failed calls too; it is None if nothing was recorded.
    """
    phases = {phase.value: dict((counts or {}).get(phase.value, {})) for phase in Phase}
    names = sorted({engine for engines in phases.values() for engine in engines})
    real = [count for engine, count in phases[Phase.rl.value].items() if engine not in SIMULATED_ENGINES]
    asked = int(sum(count.get("calls", 0) + count.get("failures", 0) for count in real))
    return {
        "engines": {name: _total(engines.get(name, {}) for engines in phases.values()) for name in names},
        "phases": phases,
        "real_engine_searches_in_rl": None if counts is None else asked,
    }


def find_evaluation(report: Mapping[str, Any], when: str, engine: str, decoding: str) -> dict[str, Any] | None:
    """Return one entry of ``evaluation`` by what it measured, or None."""
    for entry in report["evaluation"].values():
        if (entry["when"], entry["engine"], entry["decoding"]) == (when, engine, decoding):
            return dict(entry)
    return None


def unscored_lines(report: Mapping[str, Any]) -> list[str]:
    """Say of every evaluation that lost questions how many and to what; earlier versions gave those a 0."""
    return [
        f"{name}: {lost['num_questions']} questions ({100 * lost['share']:.2f} %) have no score, because their search "
        f"failed or their time ran out, such as {', '.join(lost['question_ids'][:3])}"
        for name, entry in report["evaluation"].items()
        if (lost := entry.get("unscored")) and lost["num_questions"]
    ]


def decodings(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return how the policy was sampled in any of the evaluations before and after training, on the real engine.

    Greedy first, then by temperature.
    """
    found = {
        entry["decoding"]
        for report in reports
        for entry in report["evaluation"].values()
        if entry["when"] in ("before", "after") and entry["engine"] == real_engine(report)
    }
    return sorted(found, key=lambda decoding: float(decoding.removeprefix(_SAMPLED)) if decoding != "greedy" else 0.0)


def decoding_label(decoding: str) -> str:
    """Return ``greedy``, or ``T = 1`` for ``temperature_1``."""
    return decoding.replace(_SAMPLED, "T = ")


def recipe_name(recipe: str | None) -> str:
    """Return the algorithm's name as the literature writes it."""
    return {"grpo": "GRPO", "reinforce_pp": "REINFORCE++", "ppo": "PPO"}.get(recipe or "", recipe or ABSENT)


def real_engine(report: Mapping[str, Any]) -> str | None:
    """Return the name of the real search engine that the policy was evaluated on; None if there was none yet."""
    engines = {entry["engine"] for entry in report["evaluation"].values()}
    return min(engines - SIMULATED_ENGINES - {"closed_book"}, default=None)


def _critic(files: RunFiles) -> dict[str, Any] | None:
    """Return how much of the last step's returns the critic explained; None without a critic."""
    shares = [row["critic/explained_variance"] for row in files.steps if "critic/explained_variance" in row]
    return {"explained_variance": shares[-1]} if shares else None


def _guards(files: RunFiles) -> dict[str, Any]:
    """Return what went wrong: updates that were not made, steps by finding, and returns to a checkpoint."""
    return {**found_in(files.steps), "rollbacks": files.state.get("rollbacks", [])}


def _faults(files: RunFiles) -> dict[str, Any]:
    """Return what died or hung in the whole run, and the episodes that were lost to something else than the policy."""
    events = files.state.get("faults", [])
    lost = ("rollout/lost_deadline", "rollout/lost_search_failed")
    return {
        "engine_restarts": sum(event["kind"] == FaultKind.engine_lost.name for event in events),
        "group_restarts": sum(event["kind"] == FaultKind.ranks_lost.name for event in events),
        "hangs": sum(event["kind"] == FaultKind.hang.name for event in events),
        "lost_episodes": {name.partition("lost_")[2]: sum(row.get(name) or 0 for row in files.steps) for name in lost},
        "events": events,
    }


def _prices(config: Mapping[str, Any]) -> CostConfig:
    """Return the prices of a run's configuration; a run of an earlier version has none and gets the present ones."""
    return CostConfig(**(config.get("cost") or {}))


def _total(parts: Iterable[Mapping[str, float]]) -> Counts:
    total: Counts = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total
