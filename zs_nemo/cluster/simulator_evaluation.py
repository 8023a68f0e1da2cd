"""Asks a simulator every query twice, for useful and for noisy documents, and measures what it writes."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zs_nemo.cluster.preflight import check_simulator
from zs_nemo.cluster.simulator_system import simulator_engines, simulator_roles
from zs_nemo.config.cost import CostConfig
from zs_nemo.config.evaluate_simulator import EvaluateSimulatorConfig
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.search import SimulatedSearchConfig, settings_stand_at
from zs_nemo.evaluation.simulator_page import RECIPE, render_page
from zs_nemo.evaluation.simulator_quality import SimulatedAnswer, quality
from zs_nemo.observability.config_file import to_container
from zs_nemo.observability.cost import simulator_account
from zs_nemo.observability.files import read_json_lines, write_json, write_json_lines, write_text
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import package_versions
from zs_nemo.qa.facts import load_facts_world
from zs_nemo.search.all_or_none import all_or_none
from zs_nemo.search.build import Simulator, build_simulator
from zs_nemo.search.demonstrations import build_demonstrations
from zs_nemo.search.judges import contains_answer
from zs_nemo.types.interaction import Interaction
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import (
    RequestRejected,
    SearchEngine,
    SearchFailure,
    SearchFailureKind,
    SearchRequest,
    SearchResult,
)
from zs_nemo.weights.pretrained import load_tokenizer, resolve_model

Roles = Mapping[str, Mapping[str, float]]
"""What roles have held and done, as the account of a run's cost has it."""


def evaluate_simulators(cfg: EvaluateSimulatorConfig, progress: Progress) -> Path:
    """Measure the simulator, and the baseline if there is one, on the same queries; return the page's path."""
    output = Path(cfg.output)
    found = read_queries(cfg)
    warn_of_other_terms(cfg, progress)
    answers: dict[str, list[SimulatedAnswer]] = {}
    others: dict[str, dict[str, Any]] = {}
    for name in ("search", "baseline"):
        settings = getattr(cfg, name)
        if settings is None:
            continue
        progress.begin(name, 2 * len(found))
        with settings_stand_at(name), _built(cfg, settings, name) as (simulator, roles_after):
            in_flight = _num_at_once(cfg, settings, simulator)
            began = time.perf_counter()
            answers[name] = asyncio.run(_ask(cfg, settings, simulator, found, progress, in_flight))
            wall_s = time.perf_counter() - began
            others[name] = {
                "failed_share": 1 - len(answers[name]) / (2 * len(found)),
                "searches_per_s": len(answers[name]) / wall_s,
                "in_flight": in_flight,
                "cost": _cost(answers[name], roles_after(wall_s), cfg.cost),
                "settings": to_container(settings),
            }
        write_json_lines(output / f"{name}.jsonl", [asdict(answer) for answer in answers[name]])
    report = {
        "recipe": RECIPE,
        "seed": cfg.seed,
        "queries": len(found),
        "simulators": {name: quality(records) | others[name] for name, records in answers.items()},
        "prices": asdict(cfg.cost),
        "versions": package_versions(),
    }
    write_json(output / "report.json", report)
    write_text(output / "report.html", render_page(report, answers))
    return output / "report.html"


def read_queries(cfg: EvaluateSimulatorConfig) -> list[Interaction]:
    """Return the different searches whose real documents hold the answer: there a useful document must hold it too.

    Of real documents those are looked at that the simulator has to write: the first ``search.num_documents``.
    Raises ``ValueError`` for a collection that is missing, was made over training questions, or has no such search.
    """
    folder = Path(cfg.interactions).expanduser() / "interactions"
    if not folder.is_dir():
        raise ValueError(
            f"interactions={cfg.interactions!r} is no collection; make one with recipes/collect_interactions.py "
            "collect.split=test"
        )
    rows = [row for path in sorted(folder.glob("step_*.jsonl")) for row in read_json_lines(path)]
    all_found = {each.id: each for each in map(Interaction.from_row, rows)}.values()
    if any(each.split != "held_out" for each in all_found):
        raise ValueError(
            f"interactions={cfg.interactions!r} was collected over training questions, which the simulator may have "
            "learned from; collect with collect.split=test"
        )
    num = cfg.search.num_documents
    held = [each for each in all_found if any(contains_answer(doc.text, each.answers) for doc in each.documents[:num])]
    if not held:
        raise ValueError(
            f"interactions={cfg.interactions!r} has {len(all_found)} different searches, and none whose real documents "
            "hold the answer, so there is nothing to measure; collect more questions, or with a policy that searches"
        )
    return held[: cfg.num_queries or None]


def warn_of_other_terms(cfg: EvaluateSimulatorConfig, progress: Progress) -> None:
    """Say when one of two simulators answers whatever is asked, and the other what is asked for alone."""
    search, baseline = cfg.search, cfg.baseline
    if not isinstance(search, SimulatedSearchConfig) or not isinstance(baseline, SimulatedSearchConfig):
        return
    if search.knows_facts_alone != baseline.knows_facts_alone:
        here, there = ("withhold" if each.knows_facts_alone else "answer" for each in (search, baseline))
        progress.say(
            f"search.off_target={search.off_target.name} is {here} here, and baseline.off_target="
            f"{baseline.off_target.name} is {there}: for queries beside the point the two are asked for different "
            "documents; set both to the same to compare the models alone"
        )


def _cost(records: Sequence[SimulatedAnswer], roles: Roles, prices: CostConfig) -> dict[str, Any] | None:
    """Return what the searches cost while they were asked, without the start of the engines."""
    counts = {
        "calls": len(records),
        "prompt_tokens": sum(record.prompt_tokens for record in records),
        "completion_tokens": sum(record.completion_tokens for record in records),
    }
    return simulator_account(counts, roles, prices)


@contextmanager
def _built(
    cfg: EvaluateSimulatorConfig, search: SimulatedSearchConfig, name: str
) -> Iterator[tuple[Simulator, Callable[[float], Roles]]]:
    """Yield the simulator, and what says of so many seconds what its engines have held and done in them."""
    demonstrations = build_demonstrations(load_facts_world(cfg.data))
    check_simulator(search, name)
    if not search.needs_engines:
        yield build_simulator(search, demonstrations=demonstrations), lambda wall_s: {}
        return
    tokenizer = load_tokenizer(resolve_model(search.model, setting="search.model"))
    run = RecipeConfig(seed=cfg.seed, search=search, cluster=cfg.cluster, trainer=cfg.trainer)
    with simulator_engines(run, Path(cfg.output) / "logs" / name) as engines:
        simulator = build_simulator(search, engine=engines, tokenizer=tokenizer, demonstrations=demonstrations)
        yield simulator, lambda wall_s: simulator_roles(run, engines.usage, wall_s=wall_s)


async def _ask(
    cfg: EvaluateSimulatorConfig,
    settings: SimulatedSearchConfig,
    simulator: Simulator,
    found: Sequence[Interaction],
    progress: Progress,
    num_at_once: int,
) -> list[SimulatedAnswer]:
    """Return the answers, without those of searches that failed.

    More of these than ``cfg.max_failed_share`` allows end all the others, as a ``RuntimeError``.
    """
    slots = asyncio.Semaphore(num_at_once)
    rejected: list[RequestRejected] = []
    failures: list[SearchFailure] = []
    num_asked = 2 * len(found)

    async def one(number: int, interaction: Interaction, noisy: bool) -> SimulatedAnswer | None:
        request = SearchRequest(
            query=interaction.query,
            question=interaction.question,
            answers=interaction.answers,
            key=SampleKey(run_seed=cfg.seed, step=0, prompt=number, member=int(noisy), turn=interaction.turn),
            num_documents=settings.num_documents,
            noisy=noisy,
        )
        result: SearchResult | None
        try:
            async with slots:
                result = await _answered(simulator.engine, request, rejected)
        except SearchFailure as failure:
            failures.append(failure)
            if len(failures) > cfg.max_failed_share * num_asked:
                raise
            result = None
        progress.tick()
        if result is None:
            return None
        real = tuple(document.text for document in interaction.documents[: settings.num_documents])
        return _record(interaction, real, result, noisy=noisy)

    try:
        answers = await all_or_none(
            one(number, each, noisy) for number, each in enumerate(found) for noisy in (False, True)
        )
    except SearchFailure as failure:
        raise RuntimeError(
            f"the simulator did not answer {len(failures)} of {num_asked} searches, more than max_failed_share="
            f"{cfg.max_failed_share:g} allows ({failure}); look at its servers and its template, or lower "
            f"max_concurrency={cfg.max_concurrency}"
        ) from failure
    finally:
        await simulator.aclose()
    if rejected:
        _check_some_were_taken(rejected, num_asked)
        told = f"{len(rejected)} of {num_asked} requests were rejected and count as no document"
        progress.say(f"{told}: {rejected[-1]}")
    if failures:
        progress.say(f"{len(failures)} of {num_asked} searches failed and are left out: {failures[-1]}")
    return [answer for answer in answers if answer is not None]


def _num_at_once(cfg: EvaluateSimulatorConfig, settings: SimulatedSearchConfig, simulator: Simulator) -> int:
    if simulator.pool is None:
        return cfg.max_concurrency
    # No more at once than the servers take: the others would only wait for a turn.
    return min(cfg.max_concurrency, settings.pool.max_concurrency * len(settings.endpoints))


def _record(interaction: Interaction, real: tuple[str, ...], result: SearchResult, *, noisy: bool) -> SimulatedAnswer:
    return SimulatedAnswer(
        question_id=interaction.question_id,
        answers=interaction.answers,
        query=interaction.query,
        noisy=noisy,
        documents=tuple(document.text for document in result.documents),
        real_documents=real,
        latency_s=result.latency_s,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        leaks=result.defects.get("leak", 0),
    )


def _check_some_were_taken(rejected: Sequence[RequestRejected], num_asked: int) -> None:
    if len(rejected) == num_asked:
        raise RuntimeError(
            f"the simulator's servers reject every request ({rejected[-1]}); mend search.api, search.max_tokens or "
            "what the servers are set to"
        )


async def _answered(engine: SearchEngine, request: SearchRequest, rejected: list[RequestRejected]) -> SearchResult:
    """Return the answer; one without a document where the simulator has none: it wrote nothing, or may not be asked."""
    try:
        return await engine.search(request)
    except RequestRejected as failure:
        rejected.append(failure)
    except SearchFailure as failure:
        if failure.kind is not SearchFailureKind.empty:
            raise
    return SearchResult(documents=(), source=engine.name, noisy=request.noisy)
