"""What a search brings into an episode, whoever was asked."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.observability.runs import trajectory
from zs_nemo.observability.files import read_json_lines, write_json_lines
from zs_nemo.rollout.interactions import interactions_of
from zs_nemo.rollout.saved_episodes import episode_row
from zs_nemo.rollout.search_call import search_within_deadline
from zs_nemo.types.interaction import Interaction
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import Document, RequestRejected, SearchRequest, SearchResult
from zs_nemo.types.trajectory import Role

KEY = SampleKey(run_seed=1, step=0, prompt=0, member=0)
REQUEST = SearchRequest(query="capital of Peru", question="?", answers=("Lima",), key=KEY, num_documents=2)


class Found:
    """Answers every search with the same documents."""

    def __init__(self, *documents: Document) -> None:
        self.result = SearchResult(documents=documents, source="corpus")

    async def search(self, request: SearchRequest) -> SearchResult:
        return self.result


def searched(callback: Found) -> SearchResult:
    result, failures = asyncio.run(search_within_deadline(callback, REQUEST, 5.0))
    assert result is not None and not failures
    return result


def test_a_document_with_half_a_character_is_recorded_and_kept_in_a_checkpoint(tmp_path: Path) -> None:
    found = searched(Found(Document(text="Lima \ud83d is the capital", id="doc/\ud83d7", score=2.0)))
    episode = trajectory([("<search>q</search>", Role.policy)], [found])
    (interaction,) = interactions_of(episode, outcome=1.0, held_out_share=0.0)
    write_json_lines(tmp_path / "interactions.jsonl", [interaction.to_row()])
    (row,) = read_json_lines(tmp_path / "interactions.jsonl")
    assert Interaction.from_row(row) == interaction
    assert interaction.documents == (Document(text="Lima  is the capital", id="doc/7", score=2.0),)
    write_json_lines(tmp_path / "episodes.jsonl", [episode_row(episode, ended=True, now_s=0.0)])


def test_documents_of_whole_characters_come_as_they_were_found() -> None:
    callback = Found(Document(text="Łódź\n東京 \U0001f600", id="a"), Document(text=""))
    assert searched(callback) is callback.result
    callback.result = replace(callback.result, documents=())
    assert searched(callback) is callback.result


class Rejecting:
    """Takes no request, as a model's server does whose limit the prompt exceeds."""

    num_asked = 0

    async def search(self, request: SearchRequest) -> SearchResult:
        self.num_asked += 1
        raise RequestRejected("the prompt is too long")


def test_a_request_that_is_rejected_is_not_sent_again_until_the_deadline() -> None:
    callback = Rejecting()
    result, failures = asyncio.run(search_within_deadline(callback, REQUEST, 1.0))
    assert result is None and [str(each) for each in failures] == ["invalid: the prompt is too long"]
    assert callback.num_asked == 1


class OutOfPatience:
    """Has a time limit of its own, as HTTP libraries do, and finds something at the second try."""

    num_asked = 0

    async def search(self, request: SearchRequest) -> SearchResult:
        self.num_asked += 1
        if self.num_asked == 1:
            raise TimeoutError("its own limit")
        return SearchResult(documents=(Document(text="Lima"),), source="corpus")


def test_a_time_limit_of_the_callback_is_not_told_as_the_deadline() -> None:
    result, failures = asyncio.run(search_within_deadline(OutOfPatience(), REQUEST, 5.0))
    assert result is not None and result.documents[0].text == "Lima"
    assert [str(each) for each in failures] == ["unavailable: the search raised TimeoutError('its own limit')"]
    with pytest.raises(TimeoutError, match="its own limit"):
        asyncio.run(search_within_deadline(OutOfPatience(), REQUEST, None))


class Waiting:
    """Never answers."""

    async def search(self, request: SearchRequest) -> SearchResult:
        await asyncio.Event().wait()
        raise AssertionError


def test_a_search_that_its_deadline_ends_says_how_the_servers_are() -> None:
    asked = search_within_deadline(Waiting(), REQUEST, 0.01, lambda: "http://host/v1: busy")
    assert str(asyncio.run(asked)[1][-1]) == "timeout: no answer within 0.01 s; http://host/v1: busy"
