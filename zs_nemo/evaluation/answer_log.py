"""The answers of an evaluation as they come: one JSON object a line, one file a set, safe on disk at once."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from zs_nemo.evaluation.manifest import set_and_split
from zs_nemo.evaluation.scores import EvaluationRow
from zs_nemo.observability.files import append_json_line, drop_torn_line, read_json_lines
from zs_nemo.observability.transcript import segments
from zs_nemo.types.generation import Tokenizer
from zs_nemo.types.question import Question
from zs_nemo.types.trajectory import Status, Trajectory


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """One answered question with what it took."""

    row: EvaluationRow
    policy_tokens: int
    """Written by the policy."""
    read_tokens: int
    """Of the prompt and of documents, each counted once."""
    latency_s: float
    """From the question to the end, with ``rollout.max_concurrency`` of them under way."""
    empty_searches: int
    """Searches that an engine answered without a document, as the policy was told."""
    failed_calls: int
    """Calls of the engine that failed, whether or not a later try succeeded."""
    failure: str
    """What went wrong in the last of them."""
    queries: tuple[str, ...]
    segments: tuple[dict[str, Any], ...]
    """The whole episode as text, by who wrote it."""

    @property
    def has_answer(self) -> bool:
        """Whether the question can be scored: not if its search failed or time ran out, whatever the policy does."""
        return self.row.is_scored

    @property
    def is_late(self) -> bool:
        """Whether its time ran out, ``rollout.trajectory_deadline_s``; what a search did is not to blame then."""
        return Status[self.row.status] is Status.deadline

    @property
    def loss(self) -> str:
        """Why the question cannot be scored: ``deadline``, or its search's failure as ``kind: reason``."""
        return Status.deadline.name if self.is_late else self.failure

    @classmethod
    def of(cls, trajectory: Trajectory, tokenizer: Tokenizer) -> "AnswerRecord":
        """Grade an episode and build its record."""
        found = [turn.result for turn in trajectory.turns if turn.result is not None]
        return cls(
            row=EvaluationRow.of(trajectory),
            policy_tokens=trajectory.num_policy_tokens,
            read_tokens=len(trajectory.token_ids) - trajectory.num_policy_tokens,
            latency_s=trajectory.elapsed_s,
            empty_searches=sum(not result.documents for result in found),
            failed_calls=trajectory.search_failures,
            failure=trajectory.last_search_failure,
            queries=tuple(turn.query for turn in trajectory.turns if turn.query is not None),
            segments=tuple(segments(trajectory, tokenizer)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as one JSON object, the row's fields among the others."""
        own = {name: value for name, value in asdict(self).items() if name != "row"}
        return self.row.to_json() | own | {"queries": list(self.queries), "segments": list(self.segments)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "AnswerRecord":
        """Read back what ``to_json`` wrote."""
        own = {each.name: values[each.name] for each in fields(cls) if each.name != "row"}
        own |= {"queries": tuple(values["queries"]), "segments": tuple(values["segments"])}
        return cls(row=EvaluationRow.from_json(values), **own)


class AnswerLog:
    """The files of one evaluation, in a folder of its own: ``nq_test.jsonl`` holds the answers of ``nq/test``."""

    def __init__(self, folder: Path, questions: Sequence[Question]) -> None:
        """Open the log for these questions; what a crash has left unfinished is dropped."""
        self._folder = folder
        self._file_of = {question.id: folder / _file_name(question) for question in questions}
        folder.mkdir(parents=True, exist_ok=True)
        for path in self._files():
            drop_torn_line(path)

    def read(self) -> dict[str, AnswerRecord]:
        """Return the newest record of each question that has one, by its identifier."""
        rows = (row for path in self._files() for row in read_json_lines(path))
        return {row["question_id"]: AnswerRecord.from_json(row) for row in rows if row["question_id"] in self._file_of}

    def append(self, record: AnswerRecord) -> None:
        """Keep one record."""
        append_json_line(self._file_of[record.row.question_id], record.to_json())

    def _files(self) -> list[Path]:
        return sorted(set(self._file_of.values()))


def _file_name(question: Question) -> str:
    return set_and_split(question).replace("/", "_") + ".jsonl"
