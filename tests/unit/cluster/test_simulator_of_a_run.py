"""The simulator of a run: who writes its documents, in training and evaluation."""

from typing import Any, cast

from aiohttp import web

from tests.completion_server import CompletionServer, completion
from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from zs_nemo.cluster.search_engines import RealEngines, SearchEngines
from zs_nemo.config.endpoints import ApiKind, EndpointPoolConfig
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.search import DocumentsPerCompletion, NoiseUnit, SimulatedSearchConfig
from zs_nemo.observability.phase import Phase
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.search.bm25 import Bm25Search
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchRequest

QUESTION, ANSWERS = "Which currency do people use in Burundi?", ("Burundi franc", "Franc")


def request(num_documents: int, noise: float = 0.0) -> SearchRequest:
    key = SampleKey(run_seed=1, step=0, prompt=0, member=0)
    return SearchRequest(
        query="currency of Burundi",
        question=QUESTION,
        answers=ANSWERS,
        key=key,
        num_documents=num_documents,
        noise_probability=noise,
    )


def engines(
    search: SimulatedSearchConfig, world: FactsWorld, ledger: SearchLedger, engine: ScriptedEngine | None = None
) -> SearchEngines:
    real = cast(Bm25Search, FixedSearch(name="bm25"))
    engines_of_run = RealEngines(training=None, judge=real)
    return SearchEngines(GrpoRecipeConfig(search=search), world, ledger, engines_of_run, engine, CharTokenizer())


async def test_our_own_engine_writes_each_document_with_the_facts_world_s_examples(facts_world: FactsWorld) -> None:
    for max_answers, cue in ((0, "Burundi franc or Franc"), (1, "Burundi franc")):
        model, ledger = ScriptedEngine(lambda prompt: " The Burundi franc is money.\n"), SearchLedger()
        # A token is a character here.
        search = SimulatedSearchConfig(max_answers=max_answers, max_sequence_tokens=2048)
        built = engines(search, facts_world, ledger, model)
        result = await built.training(0.0).callback.search(request(1))
        assert [each.text for each in result.documents] == ["The Burundi franc is money."]
        prompt, sampling, _ = model.calls[0]
        assert prompt.endswith(f"Query: currency of Burundi\nText that mentions {cue}:")
        assert (sampling.temperature, sampling.max_tokens, sampling.stop) == (0.4, 48, ("\n",))
        assert built.metrics() == {}
        assert ledger.state()[Phase.warm_start.value]["simulator"]["calls"] == 1


async def test_endpoints_answer_in_training_and_evaluation_and_tell_what_they_did(facts_world: FactsWorld) -> None:
    async def answer(body: dict[str, Any]) -> web.Response:
        kind = "noisy" if "went wrong" in body["messages"][-1]["content"] else "useful"
        return completion("\n".join(f"Doc {n}: {kind} {n}." for n in range(1, 9)), chat=True)

    async with CompletionServer(answer) as server:
        search = SimulatedSearchConfig(
            endpoints=[server.url],
            served_model="simulator",
            api=ApiKind.chat,
            documents_per_completion=DocumentsPerCompletion.all,
            noise_unit=NoiseUnit.document,
            pool=EndpointPoolConfig(health_interval_s=0.0),
        )
        built = engines(search, facts_world, SearchLedger())
        trained = await built.training(0.5).callback.search(request(8, noise=0.5))
        assert {each.noisy for each in trained.documents} == {False, True}, "a coin for each document"
        setting = built.evaluation("simulator")
        assert setting is not None and built.evaluates_with_simulator
        evaluated = await setting.callback.search(request(2))
        assert [each.text for each in evaluated.documents] == ["useful 1.", "useful 2."]
        assert evaluated.defects == {"surplus": 6}
        assert built.metrics()["endpoint_0/requests_total"] == len(server.bodies) == 3.0
        pool = built._simulator.pool if built._simulator else None
        assert pool is not None
        await pool.close()
