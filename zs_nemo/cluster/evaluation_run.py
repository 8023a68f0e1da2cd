"""A run that evaluates a policy by one or several methods over the same questions.

Layout of its run directory, besides what every run has::

    manifest.json                       what it is made of; with it anyone repeats the run
    answers/NAME/nq_test.jsonl          every answer of one evaluation and set as it came, whole episodes
    evaluations/NAME.json, NAME.jsonl   summary and rows of an evaluation that has ended
    report.json, report.html

What is answered is not asked again by a later session; questions whose search failed or whose time ran out are.
"""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from zs_nemo.cluster.answering import answering, policy_form
from zs_nemo.cluster.engine_run import EngineRun
from zs_nemo.cluster.placement_drawing import placement_shown
from zs_nemo.cluster.search_engines import check_own_corpus, corpus_of, engine_name
from zs_nemo.cluster.simulator_system import simulator_roles
from zs_nemo.config.endpoints import ApiKind
from zs_nemo.config.evaluate import EvaluateRecipeConfig, Method
from zs_nemo.config.search import Bm25SearchConfig, NoSearchConfig, SimulatedSearchConfig
from zs_nemo.evaluation.answer_log import AnswerLog
from zs_nemo.evaluation.answer_run import FailureBudget, answer_all
from zs_nemo.evaluation.answer_summary import check_empty_searches, summarise_answers
from zs_nemo.evaluation.answerer import OPENED, PROMPTS, Answerer, limits_of, question_key
from zs_nemo.evaluation.evaluation_report import write_evaluation_report
from zs_nemo.evaluation.evaluator import CLOSED_BOOK, stable_index
from zs_nemo.evaluation.frozen_run import FrozenRun
from zs_nemo.evaluation.manifest import (
    EvaluationManifest,
    chat_template_sha256,
    engine_settings,
    file_sha256,
    manifest_file,
    model_sha256,
    prompt_sha256,
    set_contents,
    texts_sha256,
)
from zs_nemo.evaluation.scores import EvaluationName
from zs_nemo.observability.cost import POLICY
from zs_nemo.observability.memory import MemoryWatch
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.run_dir import package_versions
from zs_nemo.qa.facts import FactsWorld, load_facts_world
from zs_nemo.qa.question_source import load_test_questions
from zs_nemo.rollout.build import episode_limits
from zs_nemo.rollout.collector import Decoding, check_prompts_fit
from zs_nemo.search.prompt_template import load_template
from zs_nemo.types.generation import Tokenizer
from zs_nemo.types.question import Question
from zs_nemo.types.trajectory import Status
from zs_nemo.weights.pretrained import resolve_model


class EvaluationRun(EngineRun):
    """Answers questions, keeps the answers, and scores them."""

    _cfg: EvaluateRecipeConfig

    def _start(self) -> None:
        cfg = self._cfg
        world = load_facts_world(cfg.data)
        self._test_questions = load_test_questions(cfg.data, world, self._progress.say, limit=cfg.evaluate.limit)
        needs_search = any(method.searches for method in cfg.evaluate.methods)
        if needs_search and isinstance(cfg.search, Bm25SearchConfig):
            check_own_corpus(cfg.search, "search", cfg.data.beyond_facts("test"), world)
        self._manifests = self._freeze(world)
        frozen = self._checked_against_manifests()
        self._ledger = self._open_ledger()
        self._ledger.phase = Phase.evaluation
        self._memory = self._stack.enter_context(MemoryWatch())
        asked = cfg if needs_search else replace(cfg, search=NoSearchConfig())
        shown = placement_shown(self._run_dir, self._progress)
        self._parts = self._stack.enter_context(
            answering(asked, world, self._ledger, self._run_dir.path, shown, self._check_prompts)
        )
        # Not before: of what is refused nothing is left that the corrected settings would be held against.
        if not self._kept_manifest.exists():
            frozen.write(self._kept_manifest)
        self._loop = self._stack.enter_context(asyncio.Runner())
        self._stack.callback(lambda: self._loop.run(self._parts.aclose()))

    def evaluate(self, method: Method) -> None:
        """Answer all questions by one method and keep the outcome, unless an earlier session has done so.

        Questions whose search failed then, or whose time ran out, are asked again.
        """
        cfg, settings, name = self._cfg, self._cfg.evaluate, self._name(method)
        kept = self._run_dir.finished_evaluation(str(name), step=0)
        if kept is not None and not any(Status[row["status"]].is_lost for row in kept):
            return
        questions = self._asked(method)
        log = AnswerLog(self._run_dir.path / "answers" / str(name), questions)
        known = log.read()
        todo = [each for each in questions if each.id not in known or not known[each.id].has_answer]
        self._progress.begin(f"evaluation {name}", len(questions), len(questions) - len(todo))
        policy = self._parts.policy
        answerer = Answerer(
            method, policy.engine, policy.tokenizer, episode_limits(cfg), policy.form, self._parts.search
        )
        alone = policy.system.engines_alone if policy.system else nullcontext
        try:
            with self.timer("evaluation"), alone():
                self._loop.run(
                    answer_all(
                        answerer,
                        todo,
                        log,
                        FailureBudget(len(questions), settings.max_failed_share),
                        decoding=Decoding(temperature=settings.temperature, top_p=settings.top_p),
                        key_of=partial(question_key, run_seed=cfg.seed, step=-1 - stable_index(name)),
                        max_concurrency=cfg.rollout.max_concurrency,
                        on_done=self._progress.tick,
                    )
                )
        finally:
            self._save_progress()
        self._keep(method, log, questions)

    def finish(self) -> Path:
        """Mark the run as done, write its report, and return the path of that."""
        self._save_progress()
        if (asked := self._parts.policy.endpoint) is not None:
            self._progress.say(
                f"the endpoints were asked {asked.num_requests:,} times, and read {asked.prompt_tokens:,} and wrote "
                f"{asked.completion_tokens:,} tokens by their own count"
            )
        self._run_dir.finish()
        write_evaluation_report(self._run_dir.path)
        return self._run_dir.path / "report.html"

    def _accounts(self) -> dict[str, dict[str, float]]:
        """Return what our own engines have held and done, and what a policy's servers were asked."""
        policy, wall_s = self._parts.policy, self.timer.wall_s
        if policy.system is not None:
            return policy.system.accounts(wall_s=wall_s, stage_s=self.timer.totals)
        accounts: dict[str, dict[str, float]] = {}
        if (asked := policy.endpoint) is not None:
            accounts[POLICY] = {
                "requests": asked.num_requests,
                "prompt_tokens": asked.prompt_tokens,
                "completion_tokens": asked.completion_tokens,
            }
        if policy.simulator is not None:
            accounts |= simulator_roles(self._cfg, policy.simulator.usage, wall_s=wall_s)
        return accounts

    def _keep(self, method: Method, log: AnswerLog, questions: Sequence[Question]) -> None:
        name, known = self._name(method), log.read()
        records = [known[question.id] for question in questions]
        summary = summarise_answers(
            records,
            name,
            self._manifests[method],
            bootstrap_samples=self._cfg.evaluate.bootstrap_samples,
            left_out=len(self._test_questions) - len(questions),
        )
        check_empty_searches(summary, self._cfg.evaluate.max_empty_share)
        # Before the summary: where that exists, the evaluation is whole.
        self._manifests[method].write(manifest_file(self._run_dir.path / "evaluations" / f"{name}.jsonl"))
        self._run_dir.write_evaluation(str(name), summary, [each.row.to_json() for each in records], step=0)
        self._progress.evaluated(str(name), summary)
        if failed := summary["unscored"]["num_questions"]:
            self._progress.say(
                f"evaluation {name}: {failed} of {len(records)} questions have no score, because their search failed "
                f"or their time ran out; answers/{name} has them"
            )

    def _name(self, method: Method) -> EvaluationName:
        engine = engine_name(self._cfg.search) if method.searches else CLOSED_BOOK
        return EvaluationName(when=method.name, engine=engine, temperature=self._cfg.evaluate.temperature)

    def _asked(self, method: Method) -> list[Question]:
        """Return the questions of a method: a simulator, which is told answers, cannot do with patterns for them."""
        if not (method.searches and isinstance(self._cfg.search, SimulatedSearchConfig)):
            return self._test_questions
        asked = [question for question in self._test_questions if not question.answers_are_patterns]
        if not asked:
            raise ValueError(
                f"data.test={self._cfg.data.test} holds questions alone whose gold answers are regular expressions, "
                "and search=simulated can write no document for those; choose search=bm25, retriever or web"
            )
        return asked

    def _freeze(self, world: FactsWorld) -> dict[Method, EvaluationManifest]:
        """Return what each evaluation is made of, as it is found now."""
        cfg, search = self._cfg, self._cfg.search
        by_endpoint = bool(cfg.endpoint.addresses)
        policy_folder = None if by_endpoint else resolve_model(cfg.policy.model, setting="policy.model")
        common = {
            "policy": cfg.endpoint.served_model if by_endpoint else cfg.policy.model,
            "policy_sha256": model_sha256(policy_folder) if policy_folder else "",
            "precision": "" if by_endpoint else _precision(cfg),
            "api": cfg.api.name,
            "chat_template_sha256": _chat_template(policy_folder, cfg.api),
            "temperature": cfg.evaluate.temperature,
            "top_p": cfg.evaluate.top_p,
            "seed": cfg.seed,
            "sample": self._sample(),
            "versions": package_versions(),
        }
        engine = {
            "engine_model": "",
            "engine_settings": engine_settings(search),
            "num_documents": search.num_documents,
        }
        if isinstance(search, SimulatedSearchConfig):
            engine["engine_model"] = search.model if search.needs_engines else search.served_model
            wording = [load_template(search.template, search.documents_per_completion).source]
            if search.needs_engines:
                folder = resolve_model(search.model, setting="search.model")
                engine["engine_model_sha256"] = model_sha256(folder)
                wording.append(_chat_template(folder, search.api))
            engine["engine_template_sha256"] = texts_sha256(*wording)
        elif isinstance(search, Bm25SearchConfig):
            engine["corpus_sha256"] = file_sha256(corpus_of(search, world))
        return {method: self._manifest(method, common, engine) for method in cfg.evaluate.methods}

    def _manifest(self, method: Method, common: dict[str, object], engine: dict[str, object]) -> EvaluationManifest:
        limits = limits_of(method, episode_limits(self._cfg))
        own = () if method is Method.agent else (PROMPTS[method],)
        return EvaluationManifest(
            **common,  # type: ignore[arg-type]
            **(engine if method.searches else {"num_documents": 0}),
            sets=set_contents(self._asked(method)),
            method=method.name,
            engine=self._name(method).engine,
            max_turns=limits.max_turns,
            max_turn_tokens=limits.max_turn_tokens,
            max_document_tokens=limits.max_document_tokens,
            max_sequence_tokens=limits.max_sequence_tokens,
            prompt_sha256=prompt_sha256(*own),
        )

    def _sample(self) -> str:
        data, limit = self._cfg.data, self._cfg.evaluate.limit
        counts = [limit] * len(data.test) if limit else data.test_counts
        drawn = [f"{count} of {text}" for text, count in zip(data.test, counts, strict=False) if count]
        return f"at most {', '.join(drawn)}, drawn by data.seed={data.seed}" if drawn else ""

    @property
    def _kept_manifest(self) -> Path:
        return self._run_dir.path / "manifest.json"

    def _checked_against_manifests(self) -> FrozenRun:
        """Return what is evaluated; refuse to go on with, or to repeat, an evaluation of something else."""
        evaluations = {str(self._name(method)): manifest for method, manifest in self._manifests.items()}
        for path in (self._kept_manifest, Path(self._cfg.manifest).expanduser()):
            if (path == self._kept_manifest and not path.exists()) or path == Path():
                continue
            for line in FrozenRun.read(path).check_repeated_by(evaluations):
                self._progress.say(f"unlike in {path}: {line}")
        return FrozenRun.of(self._cfg, evaluations)

    def _check_prompts(self, tokenizer: Tokenizer) -> None:
        for method in self._cfg.evaluate.methods:
            limits = episode_limits(self._cfg)
            check_prompts_fit(
                self._asked(method),
                tokenizer,
                limits,
                form=policy_form(self._cfg),
                prompt=PROMPTS[method] + OPENED[method],
                document_tokens=limits.max_document_tokens if method is Method.retrieve_then_read else 0,
            )


def _chat_template(folder: Path | None, api: ApiKind) -> str:
    return chat_template_sha256(folder) if folder is not None and api is ApiKind.chat else ""


def _precision(cfg: EvaluateRecipeConfig) -> str:
    return cfg.policy.precision.name if cfg.generation.dtype == "auto" else cfg.generation.dtype
