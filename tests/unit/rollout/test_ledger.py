"""What is known of the searches of a run, also of a process that dies without a word."""

import asyncio

import pytest

from tests.fakes import FixedSearch
from zs_nemo.config.search import SeedGroup
from zs_nemo.rollout.ledger import SearchLedger, State
from zs_nemo.search.sharing import SharedSearch
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchFailure, SearchRequest

REQUEST = SearchRequest(
    query="q", question="?", answers=(), key=SampleKey(run_seed=1, step=0, prompt=0, member=0), num_documents=1
)


async def test_counts_are_kept_while_searches_are_made_and_not_for_each_of_them() -> None:
    now, kept = [0.0], []

    def keep(state: State) -> None:
        kept.append(SearchLedger(state).asked("fixed"))

    engine = SearchLedger(keep=keep, clock=lambda: now[0]).watch(FixedSearch(failures=1))
    with pytest.raises(SearchFailure):
        await engine.search(REQUEST)
    for now[0] in (1.0, 6.0, 7.0, 8.0, 12.0):
        await engine.search(REQUEST)
    assert kept == [3, 6], "those that failed included"


async def test_answers_that_were_shared_or_kept_are_counted_for_the_account_of_what_they_saved() -> None:
    ledger = SearchLedger()
    engine = ledger.watch(SharedSearch(FixedSearch(), SeedGroup.run, cache_size=1))
    await asyncio.gather(*(engine.search(REQUEST) for _ in range(3)))
    await engine.search(REQUEST)
    (counts,) = ledger.state()["warm_start"].values()
    assert (counts["calls"], counts["shared"], counts["cached"]) == (4, 2, 1)


def test_counts_of_a_run_that_began_under_another_version_are_taken_as_far_as_they_are_known() -> None:
    ledger = SearchLedger({"rl": {"web": {"calls": 7, "failures": 2, "price": 0.5}}})
    assert ledger.asked("web") == 9 and "price" not in ledger.state()["rl"]["web"]
