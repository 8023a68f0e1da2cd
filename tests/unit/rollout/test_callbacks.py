"""The coin of simulated search, and callbacks named by import path."""

import asyncio
from pathlib import Path

import pytest

from tests.fakes import FixedSearch
from zs_nemo.config.rollout import CoinScope
from zs_nemo.rollout.callbacks import EngineSearch, SimulatedSearch, resolve_callback
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchEngine, SearchRequest, SearchResult

NUMBER = 3


class NeedsMore(EngineSearch):
    def __init__(self, engine: SearchEngine, threshold: float) -> None:
        super().__init__(engine)


class TakesNothing:
    async def search(self, request: SearchRequest) -> SearchResult:
        raise AssertionError


class Answers:
    def __init__(self, engine: SearchEngine) -> None:
        self.engine = engine


def made_by_a_function(engine: SearchEngine, *, threshold: float = 0.5) -> EngineSearch:
    return EngineSearch(engine)


def coins(scope: CoinScope, *, step: int = 3, noise: float = 0.5) -> list[list[tuple[bool, ...]]]:
    """Return the coins of 30 prompts x 4 members x 2 turns."""
    callback = SimulatedSearch(FixedSearch(), coin=scope)

    def toss(prompt: int, member: int, turn: int) -> bool:
        key = SampleKey(run_seed=1, step=step, prompt=prompt, member=member, turn=turn)
        request = SearchRequest(
            query="q", question="Q?", answers=("a",), key=key, num_documents=1, noise_probability=noise
        )
        return asyncio.run(callback.search(request)).noisy

    return [[tuple(toss(prompt, member, turn) for turn in range(2)) for member in range(4)] for prompt in range(30)]


def share(tossed: list[list[tuple[bool, ...]]]) -> float:
    return sum(coin for members in tossed for turns in members for coin in turns) / 240


def test_every_query_has_a_coin_of_its_own() -> None:
    tossed = coins(CoinScope.query)
    assert any(len(set(members)) > 1 for members in tossed)
    assert any(len(set(turns)) > 1 for members in tossed for turns in members)
    assert 0.35 < share(tossed) < 0.65
    assert tossed == coins(CoinScope.query)


def test_a_coin_by_trajectory_is_the_same_in_every_turn_and_differs_between_members_and_steps() -> None:
    tossed = coins(CoinScope.trajectory)
    assert all(len(set(turns)) == 1 for members in tossed for turns in members)
    assert any(len(set(members)) > 1 for members in tossed)
    assert 0.35 < share(tossed) < 0.65
    assert tossed == coins(CoinScope.trajectory)
    assert tossed != coins(CoinScope.trajectory, step=4)


def test_a_coin_by_group_is_the_same_for_its_members_and_differs_between_prompts_turns_and_steps() -> None:
    tossed = coins(CoinScope.group)
    assert all(len(set(members)) == 1 for members in tossed)
    of_prompts = [members[0] for members in tossed]
    assert set(of_prompts) == {(False, False), (False, True), (True, False), (True, True)}
    assert of_prompts != [members[0] for members in coins(CoinScope.group, step=4)]


@pytest.mark.parametrize("scope", CoinScope)
def test_a_probability_of_zero_or_one_leaves_nothing_to_chance(scope: CoinScope) -> None:
    for noise in (0.0, 1.0):
        assert {coin for members in coins(scope, noise=noise) for turns in members for coin in turns} == {noise == 1.0}


@pytest.mark.parametrize("shared", [False, True])
def test_every_document_can_have_a_coin_of_its_own(shared: bool) -> None:
    engine = FixedSearch()
    scope = CoinScope.group if shared else CoinScope.query
    callback = SimulatedSearch(engine, coin=scope, coin_per_document=True)
    for prompt in range(40):
        for member in range(2):
            key = SampleKey(run_seed=1, step=3, prompt=prompt, member=member)
            asked = SearchRequest(
                query="q", question="Q?", answers=("a",), key=key, num_documents=5, noise_probability=0.3
            )
            result = asyncio.run(callback.search(asked))
            flags = engine.requests[-1].noisy_documents
            assert len(flags) == 5 and result.noisy is any(flags)
    flags_of = [request.noisy_documents for request in engine.requests]
    assert len(set(flags_of)) > 8, "the documents of a search differ"
    assert 0.2 < sum(map(sum, flags_of)) / 400 < 0.4
    assert (flags_of[::2] == flags_of[1::2]) is shared


def test_a_callback_is_named_by_its_import_path() -> None:
    engine = FixedSearch()
    assert isinstance(resolve_callback("zs_nemo.rollout.callbacks.EngineSearch")(engine), EngineSearch)
    with pytest.raises(ValueError, match=r"rollout\.callback='no\.such\.Thing' cannot be imported"):
        resolve_callback("no.such.Thing")


def test_a_module_that_is_no_python_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_callback.py").write_text("class Picky(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be imported \(SyntaxError.*; mend broken_callback"):
        resolve_callback("broken_callback.Picky")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("NUMBER", "is no class but of type int"),
        ("NeedsMore", r"cannot be made with .* \(missing a required argument: 'threshold'\)"),
        ("TakesNothing", r"cannot be made with the engine as its one argument \(too many positional arguments\)"),
        ("Answers", "has no method search"),
    ],
)
def test_what_makes_no_callback_of_an_engine_is_refused_before_it_is_made(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^rollout\.callback='.*\.{name}' {problem}; name a class whose constructor"):
        resolve_callback(f"{__name__}.{name}")


def test_a_function_that_makes_a_callback_is_taken() -> None:
    assert resolve_callback(f"{__name__}.made_by_a_function") is made_by_a_function
