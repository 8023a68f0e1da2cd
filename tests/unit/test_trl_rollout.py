"""The episodes that the benchmark gives to TRL are those of the product, token by token."""

import asyncio
from collections.abc import Callable

import pytest

from tests.benchmark.trl_rollout import Row, SearchRollout
from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from tests.loopback import serving
from zs_nemo.config.server import ServerConfig, ServerNoiseConfig
from zs_nemo.qa.prompts import policy_prompt
from zs_nemo.qa.tags import STOP_STRINGS
from zs_nemo.rollout.callbacks import EngineSearch
from zs_nemo.rollout.episode import EpisodeLimits, EpisodePlan, EpisodeRunner, SearchSetting
from zs_nemo.search.server import SearchServer
from zs_nemo.search.server_noise import ServerNoise
from zs_nemo.types.generation import SamplingParams
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchFailureKind
from zs_nemo.types.trajectory import Role, Trajectory

LIMITS = EpisodeLimits(
    max_turns=3, max_turn_tokens=60, max_document_tokens=80, max_sequence_tokens=600, search_deadline_s=5.0
)
QUESTION = Question(id="q", text="Capital of France?", answers=("Paris", "Lutetia"), kind="capital", split="train")
PROMPT = policy_prompt(QUESTION.text)
SEARCH, ANSWER = "<search>capital of France</search>", "<answer>Paris</answer>"
SCRIPTS: dict[str, Callable[[int], str]] = {
    "searches and answers": lambda blocks: ANSWER if blocks else f"<think>Look.</think>{SEARCH}",
    "searches to its last turn": lambda blocks: SEARCH,
    "never comes to an end": lambda blocks: "and so on " * 20,
    "does nothing": lambda blocks: "no",
}


def scripted(script: Callable[[int], str]) -> ScriptedEngine:
    """Return a policy that goes by the number of searches whose documents it has seen."""
    return ScriptedEngine(lambda text: script(text[len(PROMPT) :].count("</information>")))


def product_episode(script: Callable[[int], str], limits: EpisodeLimits) -> Trajectory:
    """Play one episode with the product."""
    plan = EpisodePlan(
        question=QUESTION,
        key=SampleKey(run_seed=1, step=0, prompt=0, member=0),
        prompt_ids=CharTokenizer().encode(PROMPT),
    )
    search = SearchSetting(callback=EngineSearch(FixedSearch()), num_documents=1)
    runner = EpisodeRunner(scripted(script), CharTokenizer(), limits)
    return asyncio.run(runner.run(plan, search, temperature=1.0, top_p=1.0))


def benchmark_episode(script: Callable[[int], str], limits: EpisodeLimits, engine: FixedSearch) -> Row:
    """Play one episode as TRL's trainer gets it, with the real search server."""
    policy = scripted(script)

    def generate(rows: list[list[int]], most: list[int]) -> list[list[int]]:
        made = [
            asyncio.run(policy.generate(ids, SamplingParams(max_tokens=size, stop=STOP_STRINGS), seed=0))
            for ids, size in zip(rows, most, strict=True)
        ]
        return [list(each.token_ids) for each in made]

    def app():
        noise = ServerNoise(ServerNoiseConfig(), lambda step: 1.0)
        return SearchServer(engine, ServerConfig(), num_documents=3, noise=noise).app()

    told = {PROMPT: {"questions": QUESTION.text, "answers": list(QUESTION.answers)}}
    with serving(app) as url:
        rollout = SearchRollout(CharTokenizer(), limits, f"{url}/retrieve", told, num_documents=1, threads=2)
        (row,) = rollout.play([PROMPT], generate, noise=0.25)
    return row


@pytest.mark.parametrize("max_sequence_tokens", [600, 450])
@pytest.mark.parametrize("name", SCRIPTS)
def test_tokens_and_mask_are_those_of_the_products_episode(name: str, max_sequence_tokens: int) -> None:
    limits = EpisodeLimits(**{**vars(LIMITS), "max_sequence_tokens": max_sequence_tokens})
    expected = product_episode(SCRIPTS[name], limits)
    row = benchmark_episode(SCRIPTS[name], limits, FixedSearch())
    assert row.token_ids == expected.token_ids
    assert row.is_policy == [int(role is Role.policy) for role in expected.roles[row.prompt_size :]]
    assert (row.answer, row.num_searches) == (expected.answer, expected.num_searches)


def test_the_simulator_is_told_what_it_is_told_in_training() -> None:
    engine = FixedSearch()
    benchmark_episode(SCRIPTS["searches and answers"], LIMITS, engine)
    (request,) = engine.requests
    assert (request.query, request.question, request.answers) == ("capital of France", QUESTION.text, QUESTION.answers)
    assert (request.noise_probability, request.num_documents) == (0.25, 1)


def test_a_trajectory_whose_search_fails_is_marked_and_ends() -> None:
    engine = FixedSearch(failures=100, failure_kind=SearchFailureKind.empty)
    row = benchmark_episode(SCRIPTS["searches and answers"], LIMITS, engine)
    assert row.search_failed
    assert row.num_turns == 1
    assert row.answer is None
