"""Which engines a run gets, and the engine that the server serves."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from transformers import LlamaConfig

from tests.fakes import CharTokenizer, ScriptedEngine
from tests.loopback import serving
from zs_nemo.cluster import search_engines, simulator_system
from zs_nemo.cluster import served_engine as served_engine_module
from zs_nemo.cluster.roles import RoleError
from zs_nemo.cluster.search_engines import (
    SearchEngines,
    build_real_engines,
    build_remote_engines,
    corpus_of,
    warn_of_other_counts,
)
from zs_nemo.cluster.served_engine import LostIsUnavailable, served_engine, told_noise
from zs_nemo.cluster.simulator_system import simulator_engines
from zs_nemo.config.ask import AskRecipeConfig
from zs_nemo.config.cost import CostConfig
from zs_nemo.config.endpoints import RecordingConfig, RecordingMode
from zs_nemo.config.experiment import Accelerator, EvaluationConfig, TrainerConfig
from zs_nemo.config.recipe import GrpoRecipeConfig, RecipeConfig
from zs_nemo.config.remote_search import RetrieverSearchConfig, WebSearchConfig
from zs_nemo.config.rollout import CurriculumConfig, CurriculumName
from zs_nemo.config.search import (
    Bm25SearchConfig,
    DocumentsPerCompletion,
    NoiseUnit,
    SearchConfig,
    SimulatedSearchConfig,
)
from zs_nemo.config.server import ServerConfig, ServerNoiseConfig, ServeSearchConfig
from zs_nemo.observability.phase import Phase
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.search.retriever import RetrieverSearch
from zs_nemo.search.server_requests import RequestRefused, read_request
from zs_nemo.search.web import WebSearch
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchFailure, SearchFailureKind, SearchRequest, SearchResult

REQUEST = SearchRequest(
    query="Lima",
    question="?",
    answers=("x",),
    key=SampleKey(run_seed=1, step=0, prompt=0, member=0),
    num_documents=1,
)
LEVEL = CurriculumConfig(name=CurriculumName.constant, constant_noise=0.3)
COUNTED = ServerNoiseConfig(searches_per_step=2560, first_step=7)


@pytest.fixture
def replaying(tmp_path: Path, facts_world: FactsWorld, monkeypatch: pytest.MonkeyPatch) -> SimulatedSearchConfig:
    """Return the settings of a simulator that needs no model."""
    monkeypatch.setattr(served_engine_module, "load_facts_world", lambda data: facts_world)
    (tmp_path / "answers.jsonl").touch()
    recording = RecordingConfig(mode=RecordingMode.replay, path=str(tmp_path / "answers.jsonl"))
    return SimulatedSearchConfig(recording=recording)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZS_NEMO_CACHE", str(tmp_path))
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"id": "a", "contents": "Lima is the capital of Peru."}) + "\n")
    return path


def world_of(corpus: Path) -> FactsWorld:
    return cast(FactsWorld, SimpleNamespace(corpus=corpus))


def engines(cfg: GrpoRecipeConfig, corpus: Path, ledger: SearchLedger) -> SearchEngines:
    real = build_real_engines(cfg, world_of(corpus), build_remote_engines(cfg, ledger))
    return SearchEngines(cfg, world_of(corpus), ledger, real, None, None)


def config(search: SearchConfig, judge: SearchConfig | None = None) -> GrpoRecipeConfig:
    return GrpoRecipeConfig(search=search, evaluation=EvaluationConfig(search=judge))


async def retrieve(asked: web.Request) -> web.Response:
    return web.json_response({"result": [[{"document": {"id": "remote", "contents": "From afar."}, "score": 1.0}]]})


def app() -> web.Application:
    made = web.Application()
    made.router.add_post("/retrieve", retrieve)
    return made


def documents(found: SearchEngines, which: str) -> list[str]:
    """Return the identifiers that training or an evaluation gets, and close the connections."""
    setting = found.training(0.0) if which == "training" else found.evaluation(which)
    assert setting is not None

    async def run() -> list[str]:
        result = await setting.callback.search(REQUEST)
        await found.aclose()
        return [document.id for document in result.documents]

    return asyncio.run(run())


def test_a_run_can_train_on_a_retriever_and_be_judged_on_bm25(corpus: Path) -> None:
    ledger = SearchLedger()
    with serving(app) as url:
        found = engines(config(RetrieverSearchConfig(url=url)), corpus, ledger)
        assert documents(found, "training") == ["remote"]
        assert found.judge == "bm25" and documents(found, "bm25") == ["a"]
    assert found.evaluation("retriever") is None and not found.evaluates_with_simulator
    assert (ledger.counts("retriever").calls, ledger.counts("bm25").calls) == (1, 1)


def test_a_run_can_train_on_bm25_and_be_judged_on_a_retriever(corpus: Path) -> None:
    with serving(app) as url:
        cfg = config(Bm25SearchConfig(corpus=str(corpus)), RetrieverSearchConfig(url=url))
        found = engines(cfg, corpus, SearchLedger())
        assert found.judge == "retriever" and documents(found, "retriever") == ["remote"]
        assert documents(found, "training") == ["a"]


def test_with_the_same_settings_training_and_judging_share_one_engine(corpus: Path) -> None:
    with serving(app) as url:
        for search in (RetrieverSearchConfig(url=url), Bm25SearchConfig(corpus=str(corpus))):
            cfg = config(search, replace(search))
            real = build_real_engines(cfg, world_of(corpus), build_remote_engines(cfg, SearchLedger()))
            assert real.training is real.judge
    simulated = config(SimulatedSearchConfig(), Bm25SearchConfig(corpus=str(corpus)))
    real = build_real_engines(simulated, world_of(corpus), build_remote_engines(simulated, SearchLedger()))
    assert real.training is None and real.judge is not None and real.judge.name == "bm25"


def test_what_the_judge_lacks_is_named_as_the_judges(corpus: Path, tmp_path: Path) -> None:
    keyed = config(Bm25SearchConfig(corpus=str(corpus)), RetrieverSearchConfig(token_variable="NOT_SET"))
    with pytest.raises(ValueError, match=r"^evaluation\.search\.token_variable=NOT_SET, but"):
        build_remote_engines(keyed, SearchLedger())
    lost = config(SimulatedSearchConfig(), Bm25SearchConfig(corpus=str(tmp_path / "lost")))
    with pytest.raises(ValueError, match=r"^evaluation\.search\.corpus=.* is no file"):
        build_real_engines(lost, world_of(corpus), build_remote_engines(lost, SearchLedger()))


def test_a_corpus_in_the_home_folder_is_found(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(corpus.parent))
    at_home = Bm25SearchConfig(corpus=f"~/{corpus.name}")
    assert corpus_of(at_home, world_of(Path("facts"))) == corpus
    with served_engine(ServeSearchConfig(search=at_home)) as served:
        assert served.engine.name == "bm25"


@pytest.mark.parametrize(
    ("accelerator", "world", "warned"),
    [(Accelerator.cpu, "facts", False), (Accelerator.auto, "facts", True), (Accelerator.auto, "corpus.jsonl", False)],
    ids=["on CPU", "on GPUs", "the facts world's own"],
)
def test_an_index_that_gpus_have_to_wait_for_is_warned_of_with_the_way_to_build_it_beforehand(
    accelerator: Accelerator,
    world: str,
    warned: bool,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(search_engines, "uses_gpu", lambda cfg: cfg.trainer.accelerator is not Accelerator.cpu)
    cfg = config(Bm25SearchConfig(corpus=str(corpus)))
    cfg.trainer.accelerator = accelerator
    remote = build_remote_engines(cfg, SearchLedger())
    for _ in range(2):
        build_real_engines(cfg, world_of(corpus.parent / world), remote)
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(told) == warned
    assert all("(1 documents) is not there yet: it is built now, and the GPUs wait" in each for each in told)
    assert all(f"; python recipes/build_index.py {corpus} builds it beforehand" in each for each in told)


@pytest.mark.parametrize(
    ("endpoints", "callback", "has_deadline"),
    [
        ([], "", False),
        (["http://127.0.0.1:8000/v1"], "", True),
        ([], "zs_nemo.rollout.callbacks.SimulatedSearch", True),
    ],
    ids=["engines of the run", "endpoints", "a callback of one's own"],
)
def test_what_engines_of_the_run_write_has_no_deadline(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, endpoints: list[str], callback: str, has_deadline: bool
) -> None:
    monkeypatch.setattr(search_engines, "build_demonstrations", lambda world: None)
    search = SimulatedSearchConfig(
        endpoints=endpoints, served_model="simulator", documents_per_completion=DocumentsPerCompletion.all
    )
    cfg = config(search, Bm25SearchConfig(corpus=str(corpus)))
    cfg.rollout.callback = callback
    real = build_real_engines(cfg, world_of(corpus), build_remote_engines(cfg, SearchLedger()))
    engine, tokenizer = ScriptedEngine(lambda prompt: ""), CharTokenizer()
    found = SearchEngines(cfg, world_of(corpus), SearchLedger(), real, engine, tokenizer)
    assert found.training(0.0).has_deadline is has_deadline
    by_simulator, by_judge = found.evaluation("simulator"), found.evaluation("bm25")
    assert by_simulator is not None and by_simulator.has_deadline is bool(endpoints)
    assert by_judge is not None and by_judge.has_deadline


def test_what_the_web_charges_is_the_price_in_the_cost_settings_in_runs_and_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"organic_results": [{"title": "Lima", "snippet": "A capital."}]})

    def app() -> web.Application:
        made = web.Application()
        made.router.add_get("/search.json", answer)
        return made

    async def price_of(engine: Any) -> float:
        result = await engine.search(REQUEST)
        await engine.aclose()
        return result.price

    monkeypatch.setenv("SERPAPI_API_KEY", "x")
    prices = CostConfig(usd_per_1000_searches=10.0)
    with serving(app) as url:
        cfg = config(WebSearchConfig(url=f"{url}/search.json"))
        cfg.cost = prices
        assert asyncio.run(price_of(build_remote_engines(cfg, SearchLedger()).training)) == 0.01
        with served_engine(ServeSearchConfig(search=cfg.search, cost=prices)) as served:
            assert asyncio.run(price_of(served.engine)) == 0.01


def test_a_resumed_run_has_spent_what_it_had_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = SearchLedger({Phase.rl.value: {"web": {"calls": 7, "failures": 2}}, Phase.evaluation.value: {}})
    monkeypatch.setenv("SERPAPI_API_KEY", "x")
    remote = build_remote_engines(config(WebSearchConfig()), ledger)
    assert isinstance(remote.training, WebSearch) and remote.training.num_searches == 9


def test_of_two_quotas_each_counts_the_searches_of_its_own_engine_in_a_resumed_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent = {Phase.rl.value: {"web": {"calls": 600}}, Phase.evaluation.value: {"web": {"calls": 390, "failures": 10}}}
    monkeypatch.setenv("SERPAPI_API_KEY", "x")
    apart = build_remote_engines(config(WebSearchConfig(), WebSearchConfig(max_searches=500)), SearchLedger(spent))
    assert isinstance(apart.training, WebSearch) and isinstance(apart.judge, WebSearch)
    assert (apart.training.num_searches, apart.judge.num_searches) == (600, 400)
    one = build_remote_engines(config(WebSearchConfig(), WebSearchConfig()), SearchLedger(spent))
    assert one.training is one.judge and isinstance(one.judge, WebSearch)
    assert one.judge.num_searches == 1000, "one engine answers both, and one quota holds for it"


@pytest.mark.parametrize(
    ("recipe", "judged", "warned"),
    [(GrpoRecipeConfig, 1, True), (GrpoRecipeConfig, 5, False), (AskRecipeConfig, 1, False)],
)
def test_a_policy_judged_on_another_number_of_documents_than_it_trains_on_is_warned_of(
    recipe: type[RecipeConfig], judged: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = EvaluationConfig(num_documents=judged)
    warn_of_other_counts(recipe(search=SimulatedSearchConfig(num_documents=5), evaluation=evaluation))
    assert ("set evaluation.num_documents=5 unless" in caplog.text) is warned


def test_a_retriever_that_does_not_answer_stops_a_run_or_a_server_before_anything_starts(corpus: Path) -> None:
    with serving(web.Application) as url:
        wrong = RetrieverSearchConfig(url=url)
        answered = (
            r"\.url='http://127\.0\.0\.1:\d+' does not answer a query .* status 404.*; start the server, or mend "
        )
        with pytest.raises(ValueError, match=rf"^search{answered}search\.url"):
            build_remote_engines(config(wrong), SearchLedger())
        with pytest.raises(ValueError, match=rf"^evaluation\.search{answered}evaluation\.search\.url"):
            build_remote_engines(config(Bm25SearchConfig(), wrong), SearchLedger())
        with pytest.raises(ValueError, match=rf"^search{answered}"), served_engine(ServeSearchConfig(search=wrong)):
            raise AssertionError
    with pytest.raises(ValueError, match=r"^search\.url=.* does not answer a query .*Connection refused"):
        build_remote_engines(config(wrong), SearchLedger())


def test_a_missing_key_stops_a_run_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPAPI_API_KEY", raising=False)
    for cfg in (config(WebSearchConfig()), config(Bm25SearchConfig(), WebSearchConfig())):
        with pytest.raises(ValueError, match="SERPAPI_API_KEY is not set"):
            build_remote_engines(cfg, SearchLedger())


def test_the_server_gets_bm25_or_a_client_of_another_server(corpus: Path) -> None:
    async def ask(served: Any) -> list[str]:
        result = await served.engine.search(REQUEST)
        await served.aclose()
        return [document.id for document in result.documents]

    with served_engine(ServeSearchConfig(search=Bm25SearchConfig(corpus=str(corpus)))) as served:
        assert served.engine.name == "bm25" and served.noise is None
        assert asyncio.run(ask(served)) == ["a"]
    with serving(app) as url, served_engine(ServeSearchConfig(search=RetrieverSearchConfig(url=url))) as served:
        assert isinstance(served.engine, RetrieverSearch) and asyncio.run(ask(served)) == ["remote"]


@pytest.mark.parametrize("unit", NoiseUnit)
def test_the_server_is_told_what_the_noise_coin_is_tossed_for(
    unit: NoiseUnit, replaying: SimulatedSearchConfig
) -> None:
    cfg = ServeSearchConfig(search=replace(replaying, noise_unit=unit))
    asked = read_request(b'{"queries": ["Peru"], "topk": 5, "noise": 0.5}', {}, cfg.server)
    with served_engine(cfg) as served:
        assert served.noise is not None
        (request,) = served.noise.requests(asked, 1)
    assert len(request.noisy_documents) == (5 if unit is NoiseUnit.document else 0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"trainer": TrainerConfig(max_steps=0)},
            "P(noisy) is 0 for a request that says nothing of it; one that names a step is refused, because "
            "trainer.max_steps is not set",
        ),
        (
            {"trainer": TrainerConfig(max_steps=0), "curriculum": LEVEL},
            "P(noisy) is 0 for a request that says nothing of it; one that names a step follows the curriculum "
            "constant",
        ),
        (
            {"trainer": TrainerConfig(max_steps=1005), "server": ServerConfig(noise=COUNTED)},
            "P(noisy) follows the curriculum published over trainer.max_steps=1005, from step 7 on, one step every "
            "2560 searches",
        ),
        ({"search": RetrieverSearchConfig()}, ""),
    ],
)
def test_the_server_says_at_its_start_how_noisy_it_is(changes: dict[str, Any], told: str) -> None:
    assert told_noise(ServeSearchConfig(**{"search": SimulatedSearchConfig()} | changes)) == told


@pytest.mark.parametrize(
    ("curriculum", "max_steps", "noise"),
    [(CurriculumConfig(), 0, None), (CurriculumConfig(), 80, 0.1667), (LEVEL, 0, 0.3)],
)
def test_a_step_is_refused_while_nobody_has_said_how_many_there_are(
    curriculum: CurriculumConfig, max_steps: int, noise: float | None, replaying: SimulatedSearchConfig
) -> None:
    cfg = ServeSearchConfig(search=replaying, curriculum=curriculum, trainer=TrainerConfig(max_steps=max_steps))
    asked = read_request(b'{"queries": ["Peru"], "step": 40}', {}, cfg.server)
    with served_engine(cfg) as served:
        assert served.noise is not None
        if noise is not None:
            (request,) = served.noise.requests(asked, 1)
            assert request.noise_probability == pytest.approx(noise, abs=1e-4)
            return
        with pytest.raises(RequestRefused, match=r"how noisy step 40 is .*start it with trainer\.max_steps") as refused:
            served.noise.requests(asked, 1)
        assert refused.value.status == 422


def test_noise_set_for_a_real_engine_is_refused() -> None:
    cfg = ServeSearchConfig(
        search=RetrieverSearchConfig(), server=ServerConfig(noise=ServerNoiseConfig(probability=0.5))
    )
    message = r"server\.noise is set, but search=retriever is a real engine"
    with pytest.raises(ValueError, match=message), served_engine(cfg):
        raise AssertionError


def test_a_simulator_whose_engine_has_died_is_unavailable_to_the_servers_clients() -> None:
    class Dead:
        name = "simulator"

        async def search(self, request: SearchRequest) -> SearchResult:
            raise RoleError("simulator-engine-0 failed in generate: its process died\nlog: somewhere\n  | secret line")

    with pytest.raises(SearchFailure) as caught:
        asyncio.run(LostIsUnavailable(Dead()).search(REQUEST))
    assert caught.value.kind is SearchFailureKind.unavailable
    assert str(caught.value) == "unavailable: simulator-engine-0 failed in generate: its process died"


def test_a_simulator_that_cannot_fit_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=128
    )
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(simulator_system, "available_memory", lambda: 4 * 2**30)

    def refused(**settings: int) -> str:
        search = SimulatedSearchConfig(model=str(tmp_path), **settings)
        run = GrpoRecipeConfig(search=search, trainer=TrainerConfig(accelerator=Accelerator.cpu))
        with pytest.raises(ValueError) as caught, simulator_engines(run, tmp_path / "logs"):
            raise AssertionError
        return str(caught.value)

    assert "search.num_engines=9 needs about" in refused(num_engines=9)
    assert "search.tensor_model_parallel_size=3 must divide" in refused(tensor_model_parallel_size=3)
    assert not (tmp_path / "logs").exists()
