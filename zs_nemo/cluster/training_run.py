"""A run as a recipe sees it: the system, the questions, the run directory, and what surrounds every training loop.

Owns starting, resuming, the warm start, evaluation, checkpoints and the report. Owns no algorithm: the loop and the
loss are the recipe's.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from zs_nemo.algorithms.supervised_loss import SupervisedLoss
from zs_nemo.cluster.checkpoints import CRITIC, CURRICULUM, EPISODES, POLICY, CheckpointFolder
from zs_nemo.cluster.engine_run import EngineRun
from zs_nemo.cluster.rank_groups import CriticGroup
from zs_nemo.cluster.setups import num_updates
from zs_nemo.cluster.stop_causes import StopCause, cause_of, is_death_of_policy_engine
from zs_nemo.cluster.stop_request import PROCESS_STOP, StoppedBySignal
from zs_nemo.config.algorithm import KlPlace
from zs_nemo.config.policy import SchedConfig
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.curriculum import NoiseCurriculum
from zs_nemo.evaluation.evaluator import CLOSED_BOOK
from zs_nemo.evaluation.scores import EvaluationName
from zs_nemo.observability.guards import PREFIX, Guards, Verdict, gravest
from zs_nemo.observability.metrics import staleness_metrics, step_metrics, update_metrics
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.report import write_report
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.qa.prompts import policy_prompt
from zs_nemo.qa.warm_start import scripted_episode
from zs_nemo.rollout import saved_episodes
from zs_nemo.rollout.collector import Decoding, SearchBudgetExceeded, questions_of_step
from zs_nemo.rollout.overlap import StepDraw, StepsAhead
from zs_nemo.rollout.packing import pack_scripted
from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.rollout.rewards import RewardFailed
from zs_nemo.search.simulator import SimulatedSearchEngine
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.keys import SampleKey, seed_of_attempt
from zs_nemo.types.trajectory import Role, TrajectoryGroup


class TrainingRun(EngineRun):
    """Everything a loop needs. Use with ``with``: whatever ends the block, no process is left behind."""

    curriculum: NoiseCurriculum
    """Its state is part of every checkpoint, and goes back with it."""

    _ahead: StepsAhead | None = None
    """Collects while a step trains; None where ``rollout.max_staleness`` is 0."""

    def __init__(self, cfg: RecipeConfig, run_dir: RunDir, progress: Progress) -> None:
        """Check what can be checked, start the system, and load the newest checkpoint if there is one."""
        self._checkpoints = CheckpointFolder(run_dir.path / "checkpoints", keep=cfg.exp_manager.save_top_k)
        self._checkpoints.check()
        self._reference_folder = run_dir.path / "reference"
        self._guards = Guards(cfg.guards)
        self.curriculum = NoiseCurriculum.from_config(cfg.curriculum, max_steps=cfg.trainer.max_steps)
        self._served_version = -1
        super().__init__(cfg, run_dir, progress)
        try:
            self._resume()
        except BaseException:
            self._stack.close()
            raise

    def _start(self) -> None:
        super()._start()
        settings = self._cfg.rollout
        if max_staleness := settings.max_staleness:
            episodes_per_step = settings.num_prompts_per_step * settings.num_generations_per_prompt
            self._ahead = StepsAhead(
                self._collector,
                lambda step: self._draw(step, noise=self.noise_at(step)),
                max_staleness=max_staleness,
                num_steps=self._cfg.trainer.max_steps,
                # With more, those of later steps would slow down what the next update waits for.
                max_concurrency=min(settings.max_concurrency, max_staleness * episodes_per_step),
            )
            self._stack.callback(self._ahead.drop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self._ranks_are_well(error):
                # And as the last step has left them.
                self._save_before_end()
            elif isinstance(error, KeyboardInterrupt):
                # What is as good as written is not thrown away. A failed run's ranks may never answer.
                with suppress(Exception):
                    self._commit_checkpoint()
        finally:
            super().__exit__(kind, error, trace)

    def _resume(self) -> None:
        self._resumed = bool(self._checkpoints.whole())
        self._next_step = 0
        self._saving: tuple[int, dict[str, Any]] | None = None
        self._saved_step = 0
        if not self._resumed:
            return
        with self.timer("checkpoint"):
            self.system.policy.load_reference(str(self._reference_folder))
            folder = self._load_newest()
        self._run_dir.truncate_after(self._next_step - 1)
        self._progress.say(f"resumed from {folder} at step {self._next_step}")

    def _load_newest(self) -> Path:
        """Load the newest checkpoint whose files are as they were written."""
        folder, state = self._checkpoints.newest_undamaged(self._damage, self._progress.say)
        self._next_step = self._saved_step = int(state["step"])
        self.curriculum.restore(state.get(CURRICULUM, {}))
        if self._ahead is not None:
            rows = saved_episodes.read_episodes(folder)
            self._ahead.restore(state[EPISODES], rows, attempt=len(self._run_dir.rollbacks))
        self.system.policy.load_checkpoint(str(folder / POLICY))
        if self.system.critic is not None:
            self.system.critic.load_checkpoint(str(folder / CRITIC))
        return folder

    def _damage(self, folder: Path, state: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with the files of a checkpoint."""
        damage = self.system.policy.checkpoint_damage(str(folder / POLICY))
        if self.system.critic is not None:
            damage += self.system.critic.checkpoint_damage(str(folder / CRITIC))
        if self._ahead is not None:
            damage += saved_episodes.damage(folder, state[EPISODES]["file"])
        return damage

    @property
    def critic(self) -> CriticGroup:
        """The critic of an algorithm that has one."""
        assert self.system.critic is not None, "this recipe's configuration has no critic"
        return self.system.critic

    def warm_start(self) -> None:
        """Teach the tags by imitation, make the result the reference, and save it as checkpoint 0. Once per run."""
        if self._resumed:
            return
        policy, settings = self.system.policy, self._cfg.warm_start
        with self.timer("warm_start"):
            self._progress.begin("warm start", settings.steps)
            self._run_dir.truncate_after(-1, Phase.warm_start)
            # Constant: the schedule that is configured is laid out for reinforcement learning.
            optim = dataclasses.replace(self._cfg.policy.optim, lr=settings.lr, sched=SchedConfig())
            policy.reset_optimizer(optim, max_steps=settings.steps)
            for step in range(settings.steps):
                update = policy.train_step(self._scripted_batch(step), SupervisedLoss())
                metrics = {f"train/{name}": value for name, value in update.items()}
                self._run_dir.log_step(step, metrics, Phase.warm_start)
                if update["num_skipped_updates"]:
                    # No guard watches the warm start: a model that breaks here has nothing to go back to.
                    raise RuntimeError(
                        f"warm-start update {step} was not made: its gradient norm is {update['grad_norm']:g}; lower "
                        f"warm_start.lr={settings.lr:g} under another exp_manager.name, or raise guards.max_grad_norm "
                        "if it is the limit"
                    )
                self._progress.advance(metrics)
            policy.set_reference()
            policy.reset_optimizer(self._cfg.policy.optim, max_steps=num_updates(self._cfg))
            policy.export_hf(str(self._reference_folder))
            if self.system.critic is not None:
                self.system.critic.load(str(self._reference_folder))
        self._save(0)
        self._save_progress()

    def _scripted_batch(self, step: int) -> TrainBatch:
        # Of the facts world, whatever is trained on afterwards: only there the steps of a question are known.
        count, seed = self._cfg.warm_start.global_batch_size, self._cfg.seed
        questions = questions_of_step(self._world.train, step, count, seed, stream=Phase.warm_start.value)
        episodes = []
        for prompt, question in enumerate(questions):
            key = SampleKey(run_seed=seed, step=step, prompt=prompt, member=0)
            script = scripted_episode(question, self._world, key)
            episodes.append([(policy_prompt(question.text), Role.prompt), *script])
        return pack_scripted(episodes, self._tokenizer, PromptForm(api=self._cfg.api))

    def refit(self, version: int) -> None:
        """Bring the policy's weights after ``version`` updates steps into the generation engines, if not there yet."""
        if version != self._served_version:
            self.system.refit(version)
            self._served_version = version

    def noise_at(self, step: int) -> float:
        """Return P(noisy) of a step: the curriculum's, at the time when the step's prompts were or are drawn.

        It is 0 for a real engine, which returns no noise; a callback of the user's own may make some.
        """
        if not (isinstance(self._cfg.search, SimulatedSearchConfig) or self._cfg.rollout.callback):
            return 0.0
        drawn = None if self._ahead is None else self._ahead.noise_of(step)
        return self.curriculum.noise_at(step) if drawn is None else drawn

    def collect(
        self, step: int, round_number: int = 0, num_prompts: int | None = None, *, noise: float
    ) -> list[TrajectoryGroup]:
        """Return the episodes of one step; in a round after the first, of ``num_prompts`` other questions.

        With ``rollout.max_staleness`` they may have been under way for some time, and those of later steps begin.
        """
        draw = self._draw(step, round_number, num_prompts, noise=noise)
        if self._ahead is not None:
            groups = self._ahead.collect(draw)
            self.system.generation.release_memory()
        else:
            with self._engines_at_work():
                groups = self._collector.collect(
                    draw.questions,
                    draw.search,
                    draw.decoding,
                    step=step,
                    group_size=draw.group_size,
                    first_prompt=draw.first_prompt,
                    attempt=draw.attempt,
                )
        # Without overlap the ranks had nothing else to do meanwhile: what they were writing is written.
        self._commit_checkpoint()
        return groups

    def _draw(self, step: int, round_number: int = 0, num_prompts: int | None = None, *, noise: float) -> StepDraw:
        settings, attempt = self._cfg.rollout, len(self._run_dir.rollbacks)
        per_step, seed = settings.num_prompts_per_step, seed_of_attempt(self._cfg.seed, attempt)
        stream = f"{Phase.rl.value}, round {round_number}" if round_number else Phase.rl.value
        questions = questions_of_step(self._questions.train, step, per_step, seed, stream=stream)[:num_prompts]
        return StepDraw(
            step=step,
            questions=questions,
            search=self._engines.training(noise),
            decoding=Decoding(temperature=self._cfg.generation.temperature, top_p=self._cfg.generation.top_p),
            group_size=settings.num_generations_per_prompt,
            first_prompt=round_number * per_step,
            attempt=attempt,
        )

    def with_logprobs(self, batch: TrainBatch) -> TrainBatch:
        """Add the reference's logprobs if there is a KL term, and the policy's own if more than one look needs them."""
        algorithm = self._cfg.algorithm
        if algorithm.kl.where is not KlPlace.off:
            batch = batch.replace(reference_logprobs=self.system.policy.reference_logprobs(batch))
        # Later updates of a step compare with the policy that the step began with; one update is its own start.
        if batch.num_sequences > self._cfg.policy.global_batch_size or algorithm.kl.where is KlPlace.reward:
            batch = batch.replace(policy_logprobs=self.system.policy.logprobs(batch))
        return batch

    def finish_step(
        self,
        step: int,
        groups: Sequence[TrajectoryGroup],
        batch: TrainBatch | None,
        updates: Sequence[Mapping[str, float]],
        *,
        noise: float,
        critic_updates: Sequence[Mapping[str, float]] = (),
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Log the step, write a sample of its trajectories, and save a checkpoint when it is due.

        ``groups`` are all that were rolled out, ``batch`` what was trained on, ``metrics`` the algorithm's own.
        """
        stage_s = self.timer.take()
        row = (
            step_metrics(groups, updates, batch=batch, noise=noise, stage_s=stage_s)
            | ({"tokens/trained": 0.0} if batch is None else {})
            | self._overlap_metrics(step, groups, step_s=sum(stage_s.values()))
            | update_metrics(critic_updates, prefix="critic")
            | self._engines.metrics()
            | self._run_dir.faults.metrics()
            | dict(metrics or {})
        )
        if not row["rollout/episodes"]:
            self._progress.say(
                f"step {step}: all its trajectories were lost, as rollout.max_deadline_share, search_max_failure_share "
                "and search_max_empty_share allow; nothing was trained"
            )
        findings = self._guards.findings(row, updates, critic_updates)
        row |= {PREFIX + finding.name: 1.0 for finding in findings}
        self._run_dir.log_step(step, row)
        self._run_dir.write_trajectories(step, groups, self._tokenizer, self._cfg.exp_manager.trajectories_per_step)
        for finding in findings:
            self._progress.say(f"step {step}: {finding.message}")
        verdict = gravest(findings)
        if verdict is not Verdict.go_on:
            self._leave_step(step, verdict, [finding.message for finding in findings])
            return
        self.curriculum.observe(groups)
        # The log comes before the checkpoint: a resume drops rows that are too many, but could not make missing ones.
        finished = self._next_step = step + 1
        if finished % self._cfg.exp_manager.save_every_n_steps == 0 or finished == self._cfg.trainer.max_steps:
            self._save(finished)
        self._save_progress()
        self._progress.advance(row)

    def _overlap_metrics(self, step: int, groups: Sequence[TrajectoryGroup], *, step_s: float) -> dict[str, float]:
        if self._ahead is None:
            return {}
        tokens = sum(item.num_policy_tokens for group in groups for item in group.trajectories)
        # The rollout stage is only what training waited for: the engines work all through the step.
        speed = {"rollout/policy_tokens_per_s": tokens / step_s} if step_s else {}
        return staleness_metrics(groups, weight_version=step) | self._ahead.metrics() | speed

    def _leave_step(self, step: int, verdict: Verdict, reasons: list[str]) -> None:
        """Return to the newest checkpoint, which holds nothing of this step, or end the run."""
        self._commit_checkpoint()
        self._save_progress()
        rollbacks, limit = len(self._run_dir.rollbacks), self._cfg.guards.max_rollbacks
        if verdict is Verdict.stop or rollbacks >= limit:
            spent = "" if verdict is Verdict.stop else f" after {rollbacks} rollbacks (guards.max_rollbacks={limit})"
            raise RuntimeError(f"step {step} ended the run{spent}: {'; '.join(reasons)}")
        with self.timer("checkpoint"):
            folder = self._load_newest()
        # An engine that was replaced within the step may have weights of an update that is taken back.
        self._served_version = -1
        self._run_dir.record_rollback(step=step, to_step=self._next_step, reasons=reasons)
        if self._ahead is not None:
            # What the checkpoint kept is of the draws that failed.
            self._ahead.drop()
        self._progress.say(f"returned to {folder}; going on at step {self._next_step} with other draws")
        self._progress.begin("training", self._cfg.trainer.max_steps, self._next_step)

    def steps(self) -> Iterator[int]:
        """Yield the steps that are still to be trained; after a return to a checkpoint some of them once more.

        Raises ``StoppedBySignal`` after a step in which the process was asked to stop.
        """
        self._ledger.phase = Phase.rl
        self._progress.begin("training", self._cfg.trainer.max_steps, self._next_step)
        # Start-up and evaluation are no part of the first step.
        self.timer.take()
        while self._next_step < self._cfg.trainer.max_steps:
            with PROCESS_STOP.in_step():
                yield self._next_step
            if PROCESS_STOP.requested:
                self._stop()

    def _stop(self) -> None:
        """Save what has been trained, and end the run; the same command goes on from here."""
        with PROCESS_STOP.ending():
            self._save_what_is_trained()
        raise StoppedBySignal

    def _save_what_is_trained(self) -> None:
        if self._saved_step != self._next_step:
            self._save(self._next_step)
        self._commit_checkpoint()
        self._save_progress()

    def _ranks_are_well(self, error: BaseException) -> bool:
        """Whether a run failed by its reward, or for want of a search engine or of engines that are no ranks."""
        if isinstance(error, SearchBudgetExceeded | RewardFailed):
            return True
        if PROCESS_STOP.requested:
            # A signal to all processes of a job ends engines first, and the ranks next.
            return False
        # In a refit the ranks may be waiting for the dead engine; after it, engines work before the ranks train.
        is_refitted = self._served_version == self._next_step
        return cause_of(error, self._run_dir.path) is StopCause.simulator_lost or (
            is_refitted and is_death_of_policy_engine(error)
        )

    def _save_before_end(self) -> None:
        """Save what was trained before the episodes of this step failed; what prevents it is told, and hides nothing.

        With episodes of later steps under way, only what is being written becomes a checkpoint: a new one would hold
        the episodes whose searches have failed, and a resumed run would fail by them again.
        """
        try:
            if self._ahead is None:
                self._save_what_is_trained()
            else:
                self._commit_checkpoint()
        except Exception as problem:  # noqa: BLE001  (the error that ends the run is the one to be raised)
            self._progress.say(f"what was trained since the last checkpoint could not be saved: {problem}")

    def evaluate(self, when: str, *, step: int) -> None:
        """Evaluate the policy after ``step`` steps on the real engine; at the end (``after``) also without it."""
        temperatures = self._cfg.evaluation.temperatures
        names = [EvaluationName(when=when, engine=self._engines.judge, temperature=value) for value in temperatures]
        if when == "after":
            names.append(EvaluationName(when=when, engine=CLOSED_BOOK, temperature=0.0))
            if self._engines.evaluates_with_simulator:
                names.append(EvaluationName(when=when, engine=SimulatedSearchEngine.name, temperature=0.0))
        # An evaluation may be long: what was trained before it is safe from a crash in it.
        self._commit_checkpoint()
        with self.timer("evaluation"), self._ahead.paused() if self._ahead is not None else nullcontext():
            phase, self._ledger.phase = self._ledger.phase, Phase.evaluation
            for name in names:
                if self._run_dir.finished_evaluation(str(name), step=step) is None:
                    self.refit(step)
                    simulated = name.engine == SimulatedSearchEngine.name
                    count = self._cfg.evaluation.num_simulator_questions if simulated else 0
                    with self._engines_at_work():
                        search = self._engines.evaluation(name.engine)
                        self._evaluator.evaluate(
                            name, search, step=step, num_questions=count, engine_is_told_answers=simulated
                        )
                    self._save_progress()
            self._ledger.phase = phase

    def finish(self) -> Path:
        """Export the policy, mark the run as done, and return the path of its report."""
        self._commit_checkpoint()
        with self.timer("export"):
            self.system.policy.export_hf(str(self._run_dir.path / "policy"))
        self._save_progress()
        write_report(self._run_dir.path)
        self._run_dir.finish()
        write_report(self._run_dir.path)
        return self._run_dir.path / "report.html"

    def _save(self, step: int) -> None:
        self._commit_checkpoint()
        in_background = self._cfg.exp_manager.async_save
        with self.timer("checkpoint"):
            folder = self._checkpoints.begin(step)
            self.system.policy.save_checkpoint(str(folder / POLICY), in_background=in_background)
            if self.system.critic is not None:
                self.system.critic.save_checkpoint(str(folder / CRITIC), in_background=in_background)
            self._saving = step, {CURRICULUM: self.curriculum.state()} | self._save_episodes(folder)
            self._saved_step = step
        if not in_background:
            self._commit_checkpoint()

    def _save_episodes(self, folder: Path) -> dict[str, Any]:
        """Write the episodes under way into a checkpoint, and return what belongs to them in its state."""
        if self._ahead is None:
            return {}
        facts, rows = self._ahead.state()
        return {EPISODES: facts | {"file": saved_episodes.write_episodes(folder, rows)}}

    def _commit_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written, if any, and make it the newest."""
        if self._saving is None:
            return
        with self.timer("checkpoint"):
            self.system.policy.finish_saving()
            if self.system.critic is not None:
                self.system.critic.finish_saving()
            self._checkpoints.commit(*self._saving)
        self._saving = None
