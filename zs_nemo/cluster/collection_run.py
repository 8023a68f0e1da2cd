"""A run that records what a policy asks a real engine, and makes examples for a simulator of it.

Layout of its run directory, besides what every run has::

    interactions/step_0007.jsonl   the searches of one round of questions (types/interaction.py); whole or absent
    interactions/episodes_0007.jsonl   its episodes, as they end (rollout/round_record.py), until the round has all
    judgements.jsonl               verdicts of a language model, one a search (or document), as they come, each with the
                                   tokens that it took
    examples_train.jsonl, examples_held_out.jsonl   the searches to learn from, each with ``useful``; with
                                   ``collect.unit=document`` each has one of a search's documents; .parquet with
                                   ``collect.examples_format=parquet``
    report.json, report.html       what was asked, judged and kept
"""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zs_nemo.cluster.engine_run import EngineRun
from zs_nemo.cluster.judgement import LlmJudgement
from zs_nemo.cluster.preflight import check_judge
from zs_nemo.config.collect import CollectRecipeConfig, JudgedUnit, JudgeName
from zs_nemo.observability.cost import JUDGE
from zs_nemo.observability.files import read_json_lines, write_json
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.preparation_page import write_preparation_page
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.report import RunFiles, account_of
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.qa.rewards import token_f1
from zs_nemo.rollout.collector import Decoding
from zs_nemo.rollout.interactions import Judged, interactions_of, one_by_one, select, without_documents
from zs_nemo.rollout.round_record import RoundRecord
from zs_nemo.search.example_files import write_examples
from zs_nemo.search.judges import ContainmentJudge, EvidenceJudge, Judge, OutcomeJudge
from zs_nemo.types.interaction import HELD_OUT, TRAIN, Interaction
from zs_nemo.types.question import Question
from zs_nemo.types.trajectory import Trajectory


class CollectionRun(EngineRun):
    """Rolls episodes out, judges their searches, selects. What is done is not done again by a later session."""

    _cfg: CollectRecipeConfig
    _report: dict[str, Any]
    _asked_models: dict[str, dict[str, float]]
    """What models behind endpoints were asked, as roles of the run's cost."""
    _num_held_out = 0
    _num_episodes_ended = _num_episodes_wanted = 0

    def __init__(self, cfg: CollectRecipeConfig, run_dir: RunDir, progress: Progress) -> None:
        """Check what can be checked, and start the policy's engines."""
        self._folder = run_dir.path / "interactions"
        self._asked_models = {}
        check_judge(cfg.collect)
        super().__init__(cfg, run_dir, progress)

    def roll_out(self) -> None:
        """Have the policy answer the questions, and record its searches, round by round.

        It ends before all are answered when the engine refuses: what may be spent on it is spent.
        """
        rounds = self._rounds()
        records = [RoundRecord(self._folder, step) for step in range(len(rounds))]
        todo = [step for step, record in enumerate(records) if not record.is_whole(self._num_episodes(rounds[step]))]
        self._ledger.phase = Phase.rl
        self._progress.begin("collection", len(rounds), len(rounds) - len(todo))
        refusal = ""
        for step in todo:
            refusal = self._roll_out_round(records[step], step, rounds[step])
            self._save_progress()
            self._progress.advance(records[step].means())
            if refusal:
                break
        ended = [record.num_ended(self._num_episodes(asked)) for record, asked in zip(records, rounds, strict=True)]
        self._num_episodes_ended, self._num_episodes_wanted = sum(ended), sum(map(self._num_episodes, rounds))
        if self._num_episodes_ended < self._num_episodes_wanted:
            self._progress.say(
                f"{refusal}. {self._num_episodes_ended} of {self._num_episodes_wanted} episodes are recorded, and are "
                "judged as they are; the same command goes on from here once the engine may be asked again"
            )

    def _roll_out_round(self, record: RoundRecord, step: int, questions: Sequence[Question]) -> str:
        """Run those episodes of a round that are not recorded; return why the engine refused, empty if it did not."""
        settings, generation = self._cfg.rollout, self._cfg.generation
        group_size = settings.num_generations_per_prompt
        plans = self._collector.plan_step(questions, step=step, group_size=group_size)
        lost: list[Trajectory] = []

        def note(trajectory: Trajectory) -> None:
            if trajectory.status.is_lost:
                # Recorded when the round ends: one that fails before it is asked again.
                lost.append(trajectory)
            else:
                self._record(record, trajectory, token_f1(trajectory.answer, trajectory.question.answers))

        with self.timer("rollout"), self._engines_at_work():
            self._collector.collect_within_quota(
                [plan for plan in plans if not record.has(plan.key)],
                self._engines.training(0.0),
                Decoding(temperature=generation.temperature, top_p=generation.top_p),
                on_done=note,
            )
        for trajectory in lost:
            # An episode that was refused its first search has cost nothing yet, and is asked again.
            if trajectory.num_searches or not trajectory.is_refused:
                self._record(record, trajectory, None)
        record.write_searches()
        if record.is_whole(settings.num_prompts_per_step * group_size):
            record.seal()
        return next((each.last_search_failure for each in lost if each.is_refused), "")

    def _record(self, record: RoundRecord, trajectory: Trajectory, outcome: float | None) -> None:
        share = self._cfg.collect.held_out_share
        record.add(trajectory.key, outcome, interactions_of(trajectory, outcome=outcome, held_out_share=share))

    def _num_episodes(self, questions: Sequence[Question]) -> int:
        return len(questions) * self._cfg.rollout.num_generations_per_prompt

    def _rounds(self) -> list[Sequence[Question]]:
        questions = self._asked()[: self._cfg.collect.num_questions or None]
        size = self._cfg.rollout.num_prompts_per_step
        return [questions[number * size : (number + 1) * size] for number in range(math.ceil(len(questions) / size))]

    def _asked(self) -> Sequence[Question]:
        return self._questions.split(self._cfg.collect.split)

    def judge(self) -> None:
        """Judge every recorded search that brought documents, or each of these, and write the examples."""
        files = sorted(self._folder.glob("step_*.jsonl"))
        found = [Interaction.from_row(row) for path in files for row in read_json_lines(path)]
        by_document = self._cfg.collect.unit is JudgedUnit.document
        all_parts = one_by_one(found) if by_document else [each for each in found if each.documents]
        parts = without_documents(all_parts, self._evidence_of_held_out())
        self._num_held_out = len(all_parts) - len(parts)
        with self.timer("judge"):
            self._progress.begin("judgement", len(parts))
            verdicts, told = asyncio.run(self._verdicts(parts))
        judged = [Judged(interaction=i, useful=v) for i, v in zip(parts, verdicts, strict=True) if v is not None]
        kept = select(judged, balance=self._cfg.collect.balance)
        for split in (TRAIN, HELD_OUT):
            rows = [
                each.interaction.to_row() | {"useful": each.useful} for each in kept if each.interaction.split == split
            ]
            write_examples(self._run_dir.path, split, rows, self._cfg.collect.examples_format)
        self._report = self._told(found, verdicts, kept) | told

    def _evidence_of_held_out(self) -> set[str]:
        """Return the documents that answer held-out questions, as far as these name them: not to be learned from."""
        if self._cfg.collect.split != "train":
            return set()
        held_out = [*self._questions.split("validation"), *self._questions.split("test")]
        return {name for question in held_out for name in question.evidence}

    async def _verdicts(self, found: Sequence[Interaction]) -> tuple[list[bool | None], dict[str, Any]]:
        """Return the verdicts, and what the report tells of the judge."""
        if self._cfg.collect.judge is not JudgeName.llm:
            judge = self._judge()
            return [await judge.is_useful(interaction) for interaction in found], {}
        path = self._run_dir.path / "judgements.jsonl"
        judgement = LlmJudgement(self._cfg.collect.llm, path, seed=self._cfg.seed, on_done=self._progress.tick)
        verdicts = await judgement.verdicts(found)
        self._asked_models = {JUDGE: judgement.account}
        return verdicts, await judgement.told(found)

    def _judge(self) -> Judge:
        match self._cfg.collect.judge:
            case JudgeName.outcome:
                return OutcomeJudge(threshold=self._cfg.collect.outcome_threshold)
            case JudgeName.evidence:
                return EvidenceJudge({question.id: question.evidence for question in self._asked()})
            case _:
                return ContainmentJudge()

    def _told(
        self, found: Sequence[Interaction], verdicts: Sequence[bool | None], kept: Sequence[Judged]
    ) -> dict[str, Any]:
        counts = Counter((each.interaction.split, each.useful) for each in kept)
        return {
            "recipe": "collect_interactions",
            "seed": self._cfg.seed,
            "judge": self._cfg.collect.judge.value,
            "unit": self._cfg.collect.unit.value,
            "engine": self._engines.training_name,
            "split": self._cfg.collect.split,
            "episodes": self._num_episodes_ended,
            "episodes_wanted": self._num_episodes_wanted,
            "questions": len({interaction.question_id for interaction in found}),
            "searches": len(found),
            "different_searches": len({interaction.id for interaction in found}),
            "without_documents": sum(not interaction.documents for interaction in found),
            "useful": sum(verdict is True for verdict in verdicts),
            "useless": sum(verdict is False for verdict in verdicts),
            "undecided": sum(verdict is None for verdict in verdicts),
            "of_held_out_questions": self._num_held_out,
            "examples": {
                split: {"useful": counts[split, True], "useless": counts[split, False]} for split in (TRAIN, HELD_OUT)
            },
        }

    def finish(self) -> Path:
        """Write the report with what the run took, and return the page's path.

        The run is marked as done unless the engine has refused to go on: a later session may.
        """
        self._save_progress()
        path = self._run_dir.path
        write_json(path / "report.json", self._report | account_of(RunFiles.read(path), self._asked_models))
        page = write_preparation_page(path)
        if self._num_episodes_ended == self._num_episodes_wanted:
            self._run_dir.finish()
        return page
