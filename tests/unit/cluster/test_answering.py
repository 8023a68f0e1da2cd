"""A policy behind a server and a real index, without a process of ours."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from tests.completion_server import completion
from tests.loopback import serving
from zs_nemo.cluster.answering import answering
from zs_nemo.cluster.system import System
from zs_nemo.config.answering import PolicyEndpointConfig
from zs_nemo.config.endpoints import ApiKind
from zs_nemo.config.evaluate import EvaluateRecipeConfig, Method
from zs_nemo.config.search import Bm25SearchConfig
from zs_nemo.evaluation.answerer import Answerer, question_key
from zs_nemo.observability.phase import Phase
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.rollout.build import episode_limits
from zs_nemo.rollout.collector import Decoding
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.types.generation import Tokenizer
from zs_nemo.types.question import Question
from zs_nemo.types.trajectory import Trajectory

QUESTION = Question(id="q/test/1", text="What is the capital of Peru?", answers=("Lima",), kind="q", split="test")
WORLD = cast(FactsWorld, SimpleNamespace(corpus=Path("facts")))
EXTRA = {"top_k": 20}


async def complete(request: web.Request) -> web.Response:
    body: dict[str, Any] = await request.json()
    assert body.items() >= EXTRA.items()
    prompt = body.get("prompt") or body["messages"][-1]["content"]
    # As most servers do, without the stop string.
    return completion(
        "<answer>Lima" if "Lima is the capital" in prompt else "<search>capital of Peru", chat="messages" in body
    )


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "my-policy"}]})


def make_app() -> web.Application:
    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", models)
    return app


@pytest.fixture
def url() -> Iterator[str]:
    with serving(make_app) as address:
        yield address


def settings(url: str, folder: Path, *, model: str = "my-policy", api: ApiKind = ApiKind.completions):
    corpus = folder / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "d1", "contents": "Lima is the capital of Peru."}) + "\n")
    return EvaluateRecipeConfig(
        search=Bm25SearchConfig(corpus=str(corpus)),
        endpoint=PolicyEndpointConfig(addresses=[url], served_model=model, extra_body=EXTRA),
        api=api,
    )


@pytest.mark.parametrize("api", list(ApiKind))
def test_a_served_policy_searches_a_local_index(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: ApiKind
) -> None:
    monkeypatch.setenv("ZS_NEMO_CACHE", str(tmp_path / "cache"))
    cfg, ledger, checked = settings(url, tmp_path, api=api), SearchLedger(), list[Tokenizer]()
    ledger.phase = Phase.evaluation
    with answering(cfg, WORLD, ledger, tmp_path, check=checked.append) as parts:
        policy = parts.policy
        answerer = Answerer(
            Method.agent, policy.engine, policy.tokenizer, episode_limits(cfg), policy.form, parts.search
        )

        async def answer() -> Trajectory:
            key = question_key(QUESTION, run_seed=1, step=-1)
            try:
                return await answerer.answer(QUESTION, key, Decoding(temperature=0.0))
            finally:
                await parts.aclose()

        trajectory = asyncio.run(answer())
        assert policy.endpoint is not None and policy.endpoint.num_requests == 2
    assert checked == [policy.tokenizer]
    assert (trajectory.answer, trajectory.num_searches) == ("Lima", 1)
    assert ledger.state()["evaluation"]["bm25"]["calls"] == 1


def test_a_server_of_another_model_is_refused_by_name(url: str, tmp_path: Path) -> None:
    cfg = settings(url, tmp_path, model="the-policy-of-the-manifest")
    with (
        pytest.raises(
            ValueError,
            match=r"endpoint\.addresses: none of 1 can be used .*it serves my-policy, and not 'the-policy-of-the-"
            r"manifest'.*endpoint\.served_model",
        ),
        answering(cfg, WORLD, SearchLedger(), tmp_path),
    ):
        pass


@pytest.mark.parametrize(("content", "told"), [(None, "is no file"), ("# Lima", "line 1: must be a JSON object")])
def test_a_corpus_that_cannot_be_read_is_found_before_anything_is_started(
    content: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(System, "start", None)
    cfg = EvaluateRecipeConfig(search=Bm25SearchConfig(corpus=str(tmp_path / "wiki.jsonl")))
    if content is not None:
        (tmp_path / "wiki.jsonl").write_text(content)
    told = rf"^search\.corpus.*wiki\.jsonl.* {told}"
    with pytest.raises(ValueError, match=told), answering(cfg, WORLD, SearchLedger(), tmp_path):
        pass
