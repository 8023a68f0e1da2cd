"""Answers written to a file of JSON lines, and read again: for tests without a model, and for resuming.

One line an answer::

    {"query": "capital of Chad", "question": "...", "noisy": [false], "seed": 17, "documents": [{"text": "..."}],
     "source": "simulator", "prompt_tokens": 200, "completion_tokens": 12, "latency_s": 0.4, "defects": {}}

The key is (query, question, noise of every document, seed); the seed stands for the search's place in the run. Of equal
keys the last counts. A last line that a crash has cut is passed over, and ended before the next is written.
"""

import json
import os
from pathlib import Path
from typing import Any

from zs_nemo.config.endpoints import RecordingMode
from zs_nemo.types.search import Document, SearchEngine, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

Key = tuple[str, str, tuple[bool, ...], int]


class RecordedSearch:
    """Wraps an engine. Implements ``types.search.SearchEngine``."""

    def __init__(
        self, engine: SearchEngine | None, mode: RecordingMode, path: str | Path, *, name: str = "simulator"
    ) -> None:
        """``engine`` may be None for ``replay``, where ``name`` is the engine's that was recorded.

        Raises ``ValueError`` for a file that is missing or has a line that is none of ours.
        """
        assert engine is not None or mode is RecordingMode.replay
        self.name = engine.name if engine is not None else name
        self._engine = engine
        self._mode = mode
        self._path = Path(path).expanduser()
        self._answers = read_answers(self._path, mode)
        if mode is not RecordingMode.replay:
            self._end_torn_line()

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer from the file or by the engine; raise ``SearchFailure`` (missing), naming the key, if neither may."""
        key = recording_key(request)
        if (found := self._answers.get(key)) is not None:
            return found
        if self._engine is None or self._mode is RecordingMode.replay:
            raise SearchFailure(SearchFailureKind.missing, f"{self._path} holds no answer for {_told(key)}")
        result = await self._engine.search(request)
        self._write(key, result)
        return result

    def _write(self, key: Key, result: SearchResult) -> None:
        if self._mode is RecordingMode.record_missing:
            self._answers[key] = result
        line = json.dumps(_to_row(key, result)) + "\n"
        # One write at the end of the file: lines of several processes do not mix.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    def _end_torn_line(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab+") as file:
            if size := file.seek(0, os.SEEK_END):
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    whole = self._path.read_bytes().rpartition(b"\n")
                    file.truncate(len(whole[0]) + len(whole[1]))


def read_answers(path: Path, mode: RecordingMode) -> dict[Key, SearchResult]:
    """Return what a mode that reads finds in the file, nothing for one that does not.

    Raises ``ValueError`` for a file that is missing or has a line that is none of ours.
    """
    if mode in (RecordingMode.off, RecordingMode.record):
        return {}
    if not path.is_file():
        if mode is RecordingMode.record_missing:
            return {}
        raise ValueError(
            f"search.recording.path={str(path)!r} is no file, but search.recording.mode={mode.name} reads it; record "
            "it first with mode=record, or mend the path"
        )
    answers = {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            key, result = _from_row(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # Only a whole line ends with a line break.
                break
            raise ValueError(
                f"search.recording.path: {path}, line {number}, is no recorded answer ({error!r}); remove the line, or "
                "record anew"
            ) from error
        answers[key] = result
    return answers


def recording_key(request: SearchRequest) -> Key:
    """Return what an answer is found by. How often the call has failed before does not belong to it."""
    flags = request.noisy_documents or (request.noisy,) * request.num_documents
    return request.query, request.question, flags, request.key.seed("simulator/recording")


def _told(key: Key) -> str:
    query, question, flags, seed = key
    return f"query={query[:200]!r}, question={question[:200]!r}, noisy={list(flags)}, seed={seed}"


def _to_row(key: Key, result: SearchResult) -> dict[str, Any]:
    query, question, flags, seed = key
    return {
        "query": query,
        "question": question,
        "noisy": list(flags),
        "seed": seed,
        "documents": [
            {"text": each.text, "id": each.id, "score": each.score, "noisy": each.noisy} for each in result.documents
        ],
        "source": result.source,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "latency_s": round(result.latency_s, 4),
        "defects": result.defects,
    }


def _from_row(row: dict[str, Any]) -> tuple[Key, SearchResult]:
    key = (str(row["query"]), str(row["question"]), tuple(bool(flag) for flag in row["noisy"]), int(row["seed"]))
    result = SearchResult(
        documents=tuple(Document(**document) for document in row["documents"]),
        source=str(row["source"]),
        noisy=any(key[2]),
        prompt_tokens=int(row["prompt_tokens"]),
        completion_tokens=int(row["completion_tokens"]),
        latency_s=float(row["latency_s"]),
        defects={str(name): int(count) for name, count in row["defects"].items()},
    )
    return key, result
