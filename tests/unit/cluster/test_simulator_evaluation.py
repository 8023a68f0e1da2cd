"""Measuring a simulator, with a server in place of its model."""

import json
import re
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.completion_server import completion
from tests.loopback import serving
from zs_nemo.cluster import simulator_evaluation
from zs_nemo.config.cost import CostConfig
from zs_nemo.config.endpoints import ApiKind, EndpointPoolConfig
from zs_nemo.config.evaluate_simulator import EvaluateSimulatorConfig
from zs_nemo.config.search import Bm25SearchConfig, DocumentsPerCompletion, OffTarget, SimulatedSearchConfig
from zs_nemo.observability.files import read_json, read_json_lines
from zs_nemo.observability.progress import Progress
from zs_nemo.qa.facts import FactsWorld


def row(number: int, *, text: str = "", split: str = "held_out") -> dict:
    return {
        "question_id": f"q{number}",
        "question": f"What is the capital of land {number}?",
        "answers": [f"Town{number}"],
        "split": split,
        "turn": 0,
        "query": f"capital of land {number}",
        "engine": "bm25",
        "documents": [{"text": text or f"Town{number} is the capital of land {number}.", "id": f"d{number}"}],
        "prediction": None,
        "outcome": 0.0,
    }


def write(folder: Path, rows: list[dict]) -> None:
    (folder / "interactions").mkdir(exist_ok=True)
    (folder / "interactions" / "step_0000.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


def model(refuses: dict[str, int] | None = None) -> web.Application:
    """A model that writes the answer where it is asked to help, at first leaking it into noisy documents on land 1.

    Questions about the lands in ``refuses`` get that status.
    """

    leaks = cycle((True, False))

    async def complete(request: web.Request) -> web.Response:
        prompt = (await request.json())["messages"][-1]["content"]
        asked = re.search(r"capital of land (\d+)", prompt)
        number = asked[1] if asked else ""
        if status := (refuses or {}).get(number):
            return web.json_response({"error": "the prompt is too long"}, status=status)
        helps = "went wrong" not in prompt or (number == "1" and next(leaks))
        return completion(f"Doc 1: {f'Town{number}' if helps else 'A river'} is there.", chat=True)

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "simulator"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", models)
    return app


def settings(folder: Path, url: str) -> EvaluateSimulatorConfig:
    search = SimulatedSearchConfig(
        endpoints=[url],
        served_model="simulator",
        api=ApiKind.chat,
        documents_per_completion=DocumentsPerCompletion.all,
    )
    return EvaluateSimulatorConfig(interactions=str(folder), search=search, output=str(folder / "quality"))


def measured(folder: Path) -> dict[str, Any]:
    return read_json(folder / "quality" / "report.json", {})["simulators"]["search"]


def test_every_query_is_asked_for_both_kinds_and_measured(
    tmp_path: Path, facts_world: FactsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulator_evaluation, "load_facts_world", lambda data: facts_world)
    # The last one's real documents do not hold the answer: nobody knows what a useful one would say.
    write(tmp_path, [*map(row, range(4)), row(0), row(9, text="Nothing of that.")])
    prices = CostConfig(usd_per_million_prompt_tokens=1.0, usd_per_million_completion_tokens=2.0)
    with serving(model) as url, Progress("quality") as progress:
        cfg = replace(settings(tmp_path, url), cost=prices)
        simulator_evaluation.evaluate_simulators(cfg, progress)
        drawn_again = measured(tmp_path)
        cfg.search.max_redraws = 0
        page = simulator_evaluation.evaluate_simulators(cfg, progress)
    report = read_json(tmp_path / "quality" / "report.json", {})
    found = report["simulators"]["search"]
    assert report["queries"] == found["num_useful"] == found["num_noisy"] == 4
    assert (found["support_share"], found["leak_share"], found["real_support_share"]) == (1.0, 0.25, 1.0)
    assert found["separation_auc"] == pytest.approx(0.875)
    assert (drawn_again["leak_share"], drawn_again["separation_auc"]) == (0.0, 1.0)
    assert found["leaks_per_noisy_search"] == drawn_again["leaks_per_noisy_search"] == 0.25
    assert drawn_again["completion_tokens_per_search"] > found["completion_tokens_per_search"]
    assert found["settings"]["served_model"] == "simulator"
    assert (found["failed_share"], found["in_flight"]) == (0.0, 64), "what the endpoint takes at once"
    assert found["searches_per_s"] > 0 and found["latency_s_p95"] >= found["latency_s_median"] > 0
    tokens = found["prompt_tokens_per_search"] + 2 * found["completion_tokens_per_search"]
    assert tokens > 0
    cost = found["cost"]
    assert (cost["searches"], cost["bought_usd_per_1000"]) == (8, pytest.approx(9.1667, rel=1e-3))
    assert cost["usd_per_1000"] == pytest.approx(1000 * tokens / 1e6)
    rows = read_json_lines(tmp_path / "quality" / "search.jsonl")
    assert [(each["question_id"], each["noisy"]) for each in rows[:2]] == [("q0", False), ("q0", True)]
    assert "A river is there." in page.read_text()


def test_as_many_real_documents_as_the_simulator_writes_are_what_it_is_held_against(
    tmp_path: Path, facts_world: FactsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulator_evaluation, "load_facts_world", lambda data: facts_world)
    below, above = row(0), row(1)
    other = {"text": "A river is there.", "id": "other"}
    below["documents"].insert(0, other)
    above["documents"].append(other)
    write(tmp_path, [below, above])
    with serving(model) as url, Progress("quality") as progress:
        simulator_evaluation.evaluate_simulators(settings(tmp_path, url), progress)
    report = read_json(tmp_path / "quality" / "report.json", {})
    assert (report["queries"], report["simulators"]["search"]["real_support_share"]) == (1, 1.0)


def test_a_request_that_is_rejected_counts_as_no_document_unless_all_are(
    tmp_path: Path, facts_world: FactsWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulator_evaluation, "load_facts_world", lambda data: facts_world)
    write(tmp_path, [*map(row, range(4))])
    with serving(lambda: model({"2": 400})) as url, Progress("quality") as progress:
        simulator_evaluation.evaluate_simulators(settings(tmp_path, url), progress)
        cfg = settings(tmp_path, url)
        cfg.baseline = SimulatedSearchConfig(template="nowhere")
        with pytest.raises(ValueError, match=r"^baseline\.template="):
            simulator_evaluation.evaluate_simulators(cfg, progress)
    found = measured(tmp_path)
    assert (found["empty_share"], found["support_share"]) == (0.25, 0.75)
    assert "2 of 8 requests were rejected" in capsys.readouterr().out
    told = r"reject every request .*the prompt is too long"
    all_of_them = {str(number): 400 for number in range(4)}
    with (
        serving(lambda: model(all_of_them)) as url,
        Progress("quality") as progress,
        pytest.raises(RuntimeError, match=told),
    ):
        simulator_evaluation.evaluate_simulators(settings(tmp_path, url), progress)


def test_a_simulator_that_does_not_answer_is_told_with_a_remedy_unless_it_is_a_small_share(
    tmp_path: Path, facts_world: FactsWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulator_evaluation, "load_facts_world", lambda data: facts_world)
    write(tmp_path, [*map(row, range(4))])
    with serving(lambda: model({"3": 500})) as url, Progress("quality") as progress:
        cfg = settings(tmp_path, url)
        cfg.search.pool = EndpointPoolConfig(deadline_s=0.3, request_timeout_s=0.2, first_pause_s=0.05)
        told = r"did not answer [12] of 8 searches, more than max_failed_share=0\.02 allows .*max_concurrency=96"
        with pytest.raises(RuntimeError, match=told):
            simulator_evaluation.evaluate_simulators(cfg, progress)
        cfg.max_failed_share = 0.25
        simulator_evaluation.evaluate_simulators(cfg, progress)
    found = measured(tmp_path)
    assert (found["failed_share"], found["num_useful"], found["empty_share"]) == (0.25, 3, 0.0)
    assert "2 of 8 searches failed and are left out" in capsys.readouterr().out


@pytest.mark.parametrize(("off_target", "warned"), [(OffTarget.auto, True), (OffTarget.withhold, False)])
def test_simulators_that_are_asked_for_different_documents_are_told_apart(
    off_target: OffTarget, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = SimulatedSearchConfig(template="tuned", off_target=off_target)
    cfg = EvaluateSimulatorConfig(search=tuned, baseline=SimulatedSearchConfig())
    with Progress("quality") as progress:
        simulator_evaluation.warn_of_other_terms(cfg, progress)
    told = "search.off_target=auto is answer here, and baseline.off_target=auto is withhold"
    assert (told in capsys.readouterr().out) is warned


def test_a_collection_over_training_questions_is_refused(tmp_path: Path) -> None:
    cfg = settings(tmp_path, "http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=r"is no collection; make one with .*collect\.split=test"):
        simulator_evaluation.read_queries(cfg)
    write(tmp_path, [row(1), row(2, split="train")])
    with pytest.raises(ValueError, match="collected over training questions"):
        simulator_evaluation.read_queries(cfg)


def test_a_collection_without_a_query_to_ask_is_refused_before_anything_starts(tmp_path: Path) -> None:
    write(tmp_path, [row(number, text="Nothing of that.") for number in range(2)])
    with pytest.raises(ValueError, match=r"interactions=.*has 2 different searches, and none whose real documents"):
        simulator_evaluation.read_queries(settings(tmp_path, "http://127.0.0.1:9"))
    write(tmp_path, [])
    with pytest.raises(ValueError, match=r"interactions=.*has 0 different searches.*collect more questions"):
        simulator_evaluation.read_queries(settings(tmp_path, "http://127.0.0.1:9"))


def test_a_real_engine_is_no_simulator_to_be_measured() -> None:
    with pytest.raises(ValueError, match="baseline is a real engine"):
        EvaluateSimulatorConfig(baseline=Bm25SearchConfig())
