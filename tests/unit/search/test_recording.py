"""Answers written and read again, whole and torn."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import FixedSearch
from zs_nemo.config.endpoints import RecordingMode
from zs_nemo.search.recording import RecordedSearch
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import Document, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

KEY = SampleKey(run_seed=1, step=2, prompt=3, member=4)
RESULT = SearchResult(
    documents=(Document(text="Lima \ud800 東京\n", noisy=True), Document(text="b", id="x", score=0.5)),
    source="simulator",
    noisy=True,
    latency_s=0.25,
    prompt_tokens=7,
    completion_tokens=3,
    defects={"cut": 1},
)


class OneResult:
    name = "simulator"

    def __init__(self) -> None:
        self.calls = 0

    async def search(self, request: SearchRequest) -> SearchResult:
        self.calls += 1
        return RESULT


def request(query: str = "capital of Chad") -> SearchRequest:
    return SearchRequest(
        query=query, question="Q?", answers=("A",), key=KEY, num_documents=2, noisy=True, noise_probability=0.5
    )


def record(path: Path, *queries: str, mode: RecordingMode = RecordingMode.record) -> int:
    """Ask for the queries; return how many of them reached the engine."""
    engine = OneResult()
    search = RecordedSearch(engine, mode, path)
    for query in queries:
        assert asyncio.run(search.search(request(query))) == RESULT
    return engine.calls


def replay(path: Path, asked: SearchRequest) -> SearchResult:
    return asyncio.run(RecordedSearch(None, RecordingMode.replay, path).search(asked))


def test_an_answer_comes_back_as_it_was_without_an_engine(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "answers.jsonl"
    record(path, "a", "b")
    assert replay(path, request("a")) == RESULT
    row = json.loads(path.read_text().splitlines()[0])
    assert (row["query"], row["question"], row["noisy"]) == ("a", "Q?", [True, True])
    assert row["seed"] == KEY.seed("simulator/recording")


@pytest.mark.parametrize(
    "other",
    [
        request("other"),
        replace(request(), question="other"),
        replace(request(), noisy=False),
        replace(request(), noisy_documents=(True, False)),
        replace(request(), num_documents=1),
        replace(request(), key=replace(KEY, run_seed=2)),
        replace(request(), key=replace(KEY, turn=1)),
    ],
)
def test_a_key_that_is_missing_is_a_typed_failure_that_names_it(tmp_path: Path, other: SearchRequest) -> None:
    path = tmp_path / "answers.jsonl"
    record(path, request().query)
    with pytest.raises(SearchFailure) as failure:
        replay(path, other)
    assert failure.value.kind is SearchFailureKind.missing
    seed = other.key.seed("simulator/recording")
    assert f"query={other.query!r}, question={other.question!r}" in str(failure.value)
    assert f"seed={seed}" in str(failure.value) and str(path) in str(failure.value)


def test_how_often_a_call_failed_before_and_the_curriculum_are_no_part_of_the_key(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    record(path, request().query)
    assert replay(path, replace(request(), attempt=3, noise_probability=0.1)) == RESULT


def test_what_is_missing_is_asked_for_and_what_is_there_is_read(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    assert record(path, "a", "b", "a", mode=RecordingMode.record_missing) == 2
    assert record(path, "a", "b", "c", mode=RecordingMode.record_missing) == 1
    assert len(path.read_text().splitlines()) == 3
    assert record(path, "a") == 1, "mode=record asks for everything"


def test_a_failure_is_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    search = RecordedSearch(FixedSearch(failures=1), RecordingMode.record, path)
    with pytest.raises(SearchFailure):
        asyncio.run(search.search(request()))
    assert not path.read_text()


def test_a_line_that_a_crash_has_cut_is_passed_over_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    record(path, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert replay(path, request("a")) == RESULT
    with pytest.raises(SearchFailure):
        replay(path, request("b"))
    assert record(path, "a", "b", mode=RecordingMode.record_missing) == 1
    assert path.read_bytes() == whole
    path.write_bytes(b'{"query"')
    record(path, "c")
    assert replay(path, request("c")) == RESULT


def test_a_line_that_is_no_answer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    record(path, "a")
    path.write_text('{"query": 1}\n' + path.read_text())
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 1, is no recorded answer"):
        replay(path, request("a"))


def test_a_file_that_is_not_there_is_refused_for_replay_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"search\.recording\.path='.*' is no file.*mode=replay"):
        RecordedSearch(None, RecordingMode.replay, tmp_path / "none")
    RecordedSearch(OneResult(), RecordingMode.record_missing, tmp_path / "none")
