"""What every recipe that rolls out episodes stands on: the processes, the questions, the search engines, the collector.

Owns starting and ending them and the record of what they cost. Owns no training: ``TrainingRun`` adds that.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Self

from zs_nemo.cluster.placement_drawing import placement_shown
from zs_nemo.cluster.search_engines import (
    SearchEngines,
    build_real_engines,
    build_remote_engines,
    check_own_corpus,
    corpus_of,
    warn_of_other_counts,
)
from zs_nemo.cluster.system import System
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.search import Bm25SearchConfig, SimulatedSearchConfig
from zs_nemo.evaluation.evaluator import Evaluator
from zs_nemo.evaluation.manifest import Conditions
from zs_nemo.observability.files import read_json
from zs_nemo.observability.memory import MemoryWatch
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.observability.timer import StageTimer
from zs_nemo.qa.facts import load_facts_world
from zs_nemo.qa.question_source import load_questions
from zs_nemo.rollout.build import build_collector, check_own_code, episode_limits
from zs_nemo.rollout.collector import check_prompts_fit
from zs_nemo.rollout.ledger import SearchLedger, State
from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.search.bm25 import Bm25Search
from zs_nemo.search.simulator import SimulatedSearchEngine
from zs_nemo.weights.pretrained import load_tokenizer, resolve_model


class EngineRun:
    """A run that samples from a policy. Use with ``with``: whatever ends the block, no process is left behind."""

    system: System
    timer: StageTimer

    def __init__(self, cfg: RecipeConfig, run_dir: RunDir, progress: Progress) -> None:
        """Check what can be checked, and start the system."""
        self._cfg = cfg
        self._run_dir = run_dir
        self._progress = progress
        run_dir.faults.listen(progress.say)
        self.timer = StageTimer(on_stage=progress.stage, timeline=run_dir.timeline)
        self._stack = ExitStack()
        try:
            with self.timer("start"):
                self._start()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
        finally:
            # Those of a step that has failed or was interrupted, too: they were made, and a quota counts them.
            self._keep_searches(self._ledger.state())

    def _start(self) -> None:
        cfg = self._cfg
        check_own_code(cfg)
        self._world = load_facts_world(cfg.data)
        self._tokenizer = load_tokenizer(resolve_model(cfg.policy.model, setting="policy.model"))
        self._questions = load_questions(cfg.data, self._world, self._progress.say)
        check_prompts_fit(
            [*self._questions.train, *self._questions.split(cfg.evaluation.split)],
            self._tokenizer,
            episode_limits(cfg),
            form=PromptForm(api=cfg.api),
        )
        simulator_tokenizer = (
            load_tokenizer(resolve_model(cfg.search.model, setting="search.model"))
            if isinstance(cfg.search, SimulatedSearchConfig) and cfg.search.needs_engines
            # Without engines of our own it only counts the tokens of documents, which are the policy's.
            else self._tokenizer
        )
        warn_of_other_counts(cfg)
        self._ledger = self._open_ledger()
        remote = build_remote_engines(cfg, self._ledger)
        if isinstance(cfg.search, Bm25SearchConfig):
            check_own_corpus(cfg.search, "search", cfg.data.beyond_facts("train"), self._world)
        if remote.judge is None:
            others = cfg.data.beyond_facts(cfg.evaluation.split)
            check_own_corpus(cfg.evaluation.search or cfg.search, "evaluation.search", others, self._world)
        self._memory = self._stack.enter_context(MemoryWatch())
        with ThreadPoolExecutor(1) as pool:
            # The index needs seconds of one core while the actors mostly wait for imports.
            real = pool.submit(build_real_engines, cfg, self._world, remote)
            self.system = self._stack.enter_context(
                System.start(
                    cfg, self._run_dir.path, placement_shown(self._run_dir, self._progress), self._run_dir.faults
                )
            )
        self._engines = SearchEngines(
            cfg, self._world, self._ledger, real.result(), self.system.simulator, simulator_tokenizer
        )
        self._collector = build_collector(cfg, self.system.generation, self._tokenizer)
        self._stack.callback(self._collector.close, self._engines.aclose)
        questions = self._questions.split(cfg.evaluation.split)
        self._evaluator = Evaluator(
            self._collector,
            questions[: cfg.evaluation.num_questions or len(questions)],
            self._run_dir,
            self._progress,
            bootstrap_samples=cfg.evaluation.bootstrap_samples,
            conditions=Conditions(
                policy=cfg.policy.model,
                seed=cfg.seed,
                limits=episode_limits(cfg),
                corpora={Bm25Search.name: corpus_of(cfg.evaluation.search or cfg.search, self._world)},
                models={SimulatedSearchEngine.name: cfg.search.model}
                if isinstance(cfg.search, SimulatedSearchConfig)
                else {},
            ),
        )

    def _open_ledger(self) -> SearchLedger:
        """Return the counts of earlier sessions, which go on and are kept while searches are made."""
        return SearchLedger(read_json(self._run_dir.path / "search.json", {}), keep=self._keep_searches)

    def _keep_searches(self, state: State) -> None:
        # Where it cannot be written the run has a worse error, or finds it with the next step.
        with suppress(OSError):
            self._run_dir.save_searches(state)

    @contextmanager
    def _engines_at_work(self) -> Iterator[None]:
        """Give the engines all cores, then the ranks memory."""
        with self.system.engines_alone():
            yield
        self.system.generation.release_memory()

    def _save_progress(self) -> None:
        self._run_dir.save_progress(
            self.timer,
            search=self._ledger.state(),
            peak_memory_gib=self._memory.peak_gib,
            roles=self._accounts(),
        )

    def _accounts(self) -> dict[str, dict[str, float]]:
        """Return what each role has held and done."""
        return self.system.accounts(wall_s=self.timer.wall_s, stage_s=self.timer.totals)
