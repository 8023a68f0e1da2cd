"""Evaluations of a run: each question once, every answer counted, finished ones never repeated."""

import zlib
from collections.abc import Sequence

from zs_nemo.evaluation.manifest import Conditions, manifest_file
from zs_nemo.evaluation.scores import EvaluationName, EvaluationRow, summarise
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.rollout.collector import Decoding, RolloutCollector
from zs_nemo.rollout.episode import SearchSetting
from zs_nemo.types.question import Question

CLOSED_BOOK = "closed_book"
"""Name of the evaluation in which the policy answers without a search."""


class Evaluator:
    """Answers one set of questions under several settings and keeps the results in the run directory."""

    def __init__(
        self,
        collector: RolloutCollector,
        questions: Sequence[Question],
        run_dir: RunDir,
        progress: Progress,
        *,
        bootstrap_samples: int,
        conditions: Conditions,
    ) -> None:
        self._collector = collector
        self._questions = questions
        self._run_dir = run_dir
        self._progress = progress
        self._bootstrap_samples = bootstrap_samples
        self._conditions = conditions

    def evaluate(
        self,
        name: EvaluationName,
        search: SearchSetting | None,
        *,
        step: int,
        num_questions: int = 0,
        engine_is_told_answers: bool = False,
    ) -> None:
        """Run one evaluation of the policy after ``step`` updates, unless the run directory already holds it.

        ``num_questions`` is how many of the questions are asked, the first ones; 0 for all.
        An engine that is told the gold answers cannot do with regular expressions: such questions are left out.
        ``search=None`` is closed book. The same questions get the same sampling seeds before and after training, so
        that the paired difference is of the policy and not of the dice.
        """
        if self._run_dir.finished_evaluation(str(name), step=step) is not None:
            return
        able = [each for each in self._questions if not (engine_is_told_answers and each.answers_are_patterns)]
        questions = able[: num_questions or len(able)]
        if not questions:
            self._progress.say(f"evaluation {name} left out: the gold answers of all questions are regular expressions")
            return
        self._progress.begin(f"evaluation {name}", len(questions))
        trajectories = self._collector.evaluate(
            questions,
            search,
            Decoding(temperature=name.temperature),
            evaluation_index=stable_index(name),
            on_done=lambda _: self._progress.tick(),
        )
        rows = [EvaluationRow.of(trajectory) for trajectory in trajectories]
        summary = summarise(rows, name, bootstrap_samples=self._bootstrap_samples, baseline=self._baseline(name))
        manifest = self._conditions.manifest(
            questions,
            engine=name.engine,
            temperature=name.temperature,
            num_documents=search.num_documents if search else 0,
            step=step,
        )
        # Before the summary: where that exists, the evaluation is whole.
        manifest.write(manifest_file(self._run_dir.path / "evaluations" / f"{name}.jsonl"))
        self._run_dir.write_evaluation(str(name), summary, [row.to_json() for row in rows], step=step)
        self._progress.evaluated(str(name), summary)

    def _baseline(self, name: EvaluationName) -> list[EvaluationRow] | None:
        """Return the rows of the same evaluation before training, if this one is after it and they exist."""
        if name.when == "before":
            return None
        before = EvaluationName(when="before", engine=name.engine, temperature=name.temperature)
        rows = self._run_dir.finished_evaluation(str(before), step=0)
        return None if rows is None else [EvaluationRow.from_json(row) for row in rows]


def stable_index(name: EvaluationName) -> int:
    """Key the sampling by engine and temperature, not by when: before and after share their dice."""
    return zlib.crc32(f"{name.engine}/{name.decoding}".encode())
