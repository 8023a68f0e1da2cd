"""An evaluation run from its settings to its report, with a scripted policy and a fixed engine for the processes."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes import compare, report
from recipes.evaluate import evaluate
from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from zs_nemo.cluster import evaluation_run
from zs_nemo.cluster.answering import Answering, AskedPolicy
from zs_nemo.cluster.engine_pool import EngineUsage
from zs_nemo.cluster.stop_request import StoppedBySignal, StopRequest
from zs_nemo.config.cost import CostConfig
from zs_nemo.config.evaluate import EvaluateConfig, EvaluateRecipeConfig, Method
from zs_nemo.config.experiment import DataConfig, ExpManagerConfig
from zs_nemo.config.rollout import RolloutConfig
from zs_nemo.config.search import Bm25SearchConfig, SearchConfig, SimulatedSearchConfig
from zs_nemo.observability.files import read_json, read_json_lines, write_json_lines
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.rollout.callbacks import EngineSearch
from zs_nemo.rollout.collector import SearchBudgetExceeded
from zs_nemo.rollout.episode import SearchSetting
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.types.search import SearchFailureKind

NAMES = ["agent_bm25_greedy", "retrieve_then_read_bm25_greedy", "direct_closed_book_greedy"]
METHODS = [Method.agent, Method.retrieve_then_read, Method.direct]


def script(prompt: str) -> str:
    """Answer what the last question's number is, once there are documents; without them guess."""
    number = prompt.rpartition("Question: ")[2].partition("?")[0].split()[-1]
    if prompt.endswith("<answer>"):
        return (number if "Doc 1: It" in prompt else "guess") + "</answer>"
    return f"<answer>the {number}</answer>" if "Doc 1: It" in prompt else f"<search>number {number}</search>"


class World:
    """What the run would find on the machine."""

    def __init__(self, folder: Path) -> None:
        self.policy, self.search = ScriptedEngine(script), FixedSearch(("It is known.",), name="bm25")
        self.parts: dict[str, object] = {}
        """Whatever else belongs to the policy that answers."""
        self.corpus, self.model = folder / "corpus.jsonl", folder / "model"
        self.corpus.write_text('{"id": "1", "contents": "It is known."}\n')
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        self.sets = [folder / "nq_test.jsonl", folder / "popqa_test.jsonl"]
        for path in self.sets:
            write_json_lines(path, [{"question": f"Which is {n}?", "answer": [str(n)]} for n in range(5)])

    def settings(self, name: str = "run", search: SearchConfig | None = None, **evaluate: object):
        evaluate = {"methods": METHODS, "bootstrap_samples": 50} | evaluate
        return EvaluateRecipeConfig(
            search=search or Bm25SearchConfig(corpus=str(self.corpus)),
            data=DataConfig(test=[str(path) for path in self.sets]),
            rollout=RolloutConfig(max_sequence_tokens=3000),
            exp_manager=ExpManagerConfig(name=name, create_tensorboard_logger=False),
            evaluate=EvaluateConfig(**evaluate),  # type: ignore[arg-type]
            manifest="",
        )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)

    @contextmanager
    def answering(cfg: EvaluateRecipeConfig, world: object, ledger: SearchLedger, *more) -> Iterator[Answering]:
        more[-1](CharTokenizer())
        form = PromptForm()
        policy = AskedPolicy(engine=made.policy, tokenizer=CharTokenizer(), form=form, **made.parts)  # type: ignore[arg-type]
        setting = SearchSetting(callback=EngineSearch(ledger.watch(made.search)), num_documents=1)
        yield Answering(policy=policy, search=setting, remote=None, simulator=None)

    monkeypatch.setattr(evaluation_run, "answering", answering)
    monkeypatch.setattr(evaluation_run, "load_facts_world", lambda data: SimpleNamespace(corpus=made.corpus))
    monkeypatch.setattr(evaluation_run, "resolve_model", lambda source, setting: made.model)
    return made


def run(folder: Path, cfg: EvaluateRecipeConfig) -> Path:
    with RunDir(folder / cfg.exp_manager.name, cfg) as run_dir, Progress("run") as progress:
        run_dir.begin()
        evaluate(cfg, run_dir, progress)
        return run_dir.path


def test_every_method_is_scored_by_set_and_in_the_mean_on_one_page(world: World, tmp_path: Path) -> None:
    path = run(tmp_path, world.settings())
    found = read_json(path / "report.json", None)
    assert (found["recipe"], found["finished"], list(found["evaluation"])) == ("evaluate", True, NAMES)
    agent, reading, direct = found["evaluation"].values()
    assert (agent["n"], agent["macro"]["em"], agent["macro"]["published_em"]) == (10, 1.0, 1.0), "the article is none"
    assert (reading["em"], reading["searches_per_question"], direct["em"]) == (1.0, 1.0, 0.0)
    assert set(agent["by_set"]) == {"nq", "popqa"}
    assert agent["by_set"]["nq"]["f1_ci95"] == pytest.approx([0.566, 1.0], abs=1e-3)
    assert direct["policy_tokens_per_question"] == len("guess</answer>") and direct["decoding"] == "greedy"
    assert found["search"]["engines"]["bm25"]["calls"] == 20
    compared = {(each["second_evaluation"], each["set_name"], each["measure"]) for each in found["comparisons"]}
    assert ("direct_closed_book_greedy", "macro average", "em") in compared
    page = (path / "report.html").read_text()
    assert "EM as published (containment)" in page and "retrieve then read, BM25" in page and "<svg" in page
    before = (path / "report.json").read_bytes()
    assert report.main([str(path)]) == 0 and (path / "report.json").read_bytes() == before


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text()))


def test_the_page_shows_what_was_held_searched_and_paid_as_that_of_a_training_does(
    world: World, tmp_path: Path
) -> None:
    world.search = FixedSearch(("It is known.",), name="simulator", tokens=(30, 12))
    held = {"generation": {"held_gpu_s": 7200.0, "busy_gpu_s": 3600.0, "prompt_tokens": 90, "completion_tokens": 8}}
    held["simulator"] = {"held_gpu_s": 3600.0, "busy_gpu_s": 900.0, "prompt_tokens": 600, "completion_tokens": 240}
    world.parts["system"] = SimpleNamespace(accounts=lambda **spent: held, engines_alone=nullcontext)
    path = run(tmp_path, world.settings(search=SimulatedSearchConfig(template="open"), methods=METHODS))
    cost = read_json(path / "report.json", None)["cost"]
    assert (cost["searches"], cost["simulator_tokens"]) == ({"simulator": 20}, {"simulator": 20 * 42})
    told = text_of(path / "report.html")
    assert "evaluation Simulator 20 0 600 / 240" in told
    assert "generation 2.00 GPU-h 50% 90 / 8 $2.95" in told and "simulator 1.00 GPU-h 25% 600 / 240 $1.48" in told
    assert "the run $4.4" in told and "20 searches, simulated and bought" in told and "bought $0.18 $9.17" in told


def test_a_policy_behind_an_endpoint_is_paid_by_the_token_and_the_simulator_beside_it_by_the_hour(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.parts["endpoint"] = SimpleNamespace(num_requests=40, prompt_tokens=2_000_000, completion_tokens=100_000)
    world.parts["simulator"] = SimpleNamespace(usage=EngineUsage(num_requests=20))
    monkeypatch.setattr(
        evaluation_run,
        "simulator_roles",
        lambda cfg, usage, *, wall_s: {"simulator": {"held_gpu_s": 3600.0, "requests": usage.num_requests}},
    )
    cfg = world.settings(search=SimulatedSearchConfig(template="open"), methods=[Method.agent])
    cfg.cost = CostConfig(usd_per_million_prompt_tokens=0.5, usd_per_million_completion_tokens=2.0)
    path = run(tmp_path, cfg)
    cost = read_json(path / "report.json", None)["cost"]
    assert cost["roles"]["policy"]["usd"] == pytest.approx(2 * 0.5 + 0.1 * 2.0)
    assert cost["roles"]["simulator"]["requests"] == 20
    assert cost["run_usd"] == pytest.approx(1.2 + cfg.cost.usd_per_gpu_hour)
    assert "policy – – 2,000,000 / 100,000 $1.20" in text_of(path / "report.html")


def test_a_run_that_was_broken_off_asks_only_what_is_missing(world: World, tmp_path: Path) -> None:
    cfg = world.settings(methods=[Method.direct])
    path = run(tmp_path, cfg)
    for file in (path / "evaluations").glob("*.json*"):
        file.unlink()
    log = path / "answers" / NAMES[2] / "nq_test.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    world.policy.calls.clear()
    run(tmp_path, cfg)
    assert len(world.policy.calls) == 2
    assert read_json(path / "report.json", None)["evaluation"][NAMES[2]]["n"] == 10


def test_a_scheduler_s_signal_ends_the_run_at_once_and_the_next_session_asks_what_is_left(
    world: World, tmp_path: Path
) -> None:
    cfg = world.settings(methods=[Method.agent])
    cfg.rollout.max_concurrency = 1

    def stopped(prompt: str) -> str:
        if len(world.policy.calls) == 9:
            os.kill(os.getpid(), signal.SIGUSR1)
        return script(prompt)

    world.policy.script = stopped
    kept = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    try:
        StopRequest().listen()
        with pytest.raises(StoppedBySignal):
            run(tmp_path, cfg)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGUSR1), kept, strict=True):
            signal.signal(number, handler)
    world.policy.script = script
    world.policy.calls.clear()
    path = run(tmp_path, cfg)
    # A question takes two calls; the ninth was the first of the fifth question.
    assert len(world.policy.calls) == 12
    assert read_json(path / "report.json", None)["evaluation"][NAMES[0]]["em"] == 1.0


def test_questions_without_a_search_result_have_no_score_and_are_named(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.search.failures, world.search.failure_kind = 1, SearchFailureKind.refused
    path = run(tmp_path, world.settings(methods=[Method.agent], max_failed_share=0.1))
    entry = read_json(path / "report.json", None)["evaluation"][NAMES[0]]
    assert (entry["n"], entry["em"]) == (9, 1.0), "a 0 for it would make 0.9"
    assert entry["unscored"] == {
        "num_questions": 1,
        "share": 0.1,
        "question_ids": ["nq/test/0000"],
        "failures": {"refused": 1},
    }
    assert "1 questions (10.00 %) have no score" in (path / "report.html").read_text()
    world.search.requests.clear()
    world.search.failures = 0
    other = run(tmp_path, world.settings("other", methods=[Method.agent]))
    assert compare.main([str(path), str(other), "--samples", "50"]) == 0
    told = capsys.readouterr().out
    assert "1 questions are left out, because their search failed or their time ran out: nq/test/0000" in told
    assert "| macro average | 9 |" in told
    world.policy.calls.clear()
    # The evaluation was done, its run had others to do.
    run(tmp_path, world.settings(methods=[Method.agent], max_failed_share=0.1))
    assert len(world.policy.calls) == 2, "one question, a turn before its search and one after it"
    entry = read_json(path / "report.json", None)["evaluation"][NAMES[0]]
    assert (entry["n"], entry["unscored"]["num_questions"]) == (10, 0)


def test_above_the_budget_the_run_stops_and_goes_on_later(world: World, tmp_path: Path) -> None:
    world.search.failures, world.search.failure_kind = 3, SearchFailureKind.refused
    cfg = world.settings(methods=[Method.agent])
    with pytest.raises(SearchBudgetExceeded, match=r"1 out of 10 questions .*max_failed_share=0\.02"):
        run(tmp_path, cfg)
    world.search.failures = 0
    entry = read_json(run(tmp_path, cfg) / "report.json", None)["evaluation"][NAMES[0]]
    assert entry["n"] == 10 and entry["unscored"]["num_questions"] == 0


def test_an_engine_that_finds_nothing_gives_no_score(world: World, tmp_path: Path) -> None:
    world.search.texts = ()
    with pytest.raises(
        SearchBudgetExceeded, match=r"10 searches, 100 % of all, .*max_empty_share=0\.5 .* nq/test/0000"
    ):
        run(tmp_path, world.settings(methods=[Method.retrieve_then_read]))
    assert not list((tmp_path / "run" / "evaluations").glob("*.json*"))
    entry = read_json(
        run(tmp_path, world.settings(methods=[Method.retrieve_then_read], max_empty_share=1.0)) / "report.json", None
    )["evaluation"][NAMES[1]]
    assert entry["empty_searches"]["share"] == 1.0 and entry["em"] == 0.0


def test_patterns_are_not_asked_of_a_simulator_and_that_is_said(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = evaluation_run.load_test_questions

    def with_patterns(*arguments: object, **options: object):
        questions = load(*arguments, **options)
        object.__setattr__(questions[0], "answers_are_patterns", True)
        return questions

    monkeypatch.setattr(evaluation_run, "load_test_questions", with_patterns)
    path = run(
        tmp_path, world.settings(search=SimulatedSearchConfig(template="open"), methods=[Method.agent, Method.direct])
    )
    entries = read_json(path / "report.json", None)["evaluation"]
    assert {name: (each["n"], each["left_out"]) for name, each in entries.items()} == {
        "agent_simulator_greedy": (9, 1),
        "direct_closed_book_greedy": (10, 0),
    }
    assert "A simulator wrote documents here" in (path / "report.html").read_text()


def test_a_sample_is_named_and_a_set_that_has_changed_is_refused(world: World, tmp_path: Path) -> None:
    cfg = world.settings(methods=[Method.direct], limit=3)
    path = run(tmp_path, cfg)
    frozen = read_json(path / "manifest.json", None)["evaluations"][NAMES[2]]
    assert frozen["sample"].startswith("at most 3 of ") and frozen["sample"].endswith("drawn by data.seed=0")
    assert {each["num_questions"] for each in frozen["sets"].values()} == {3}
    rows = read_json_lines(world.sets[0])
    write_json_lines(world.sets[0], [{**row, "answer": ["other"]} for row in rows])
    with pytest.raises(ValueError, match=r"sets\.nq/test\.sha256: "):
        run(tmp_path, cfg)
    again = world.settings("again", methods=[Method.direct], limit=3)
    again.manifest = str(path / "manifest.json")
    with pytest.raises(ValueError, match=r"would not repeat the one of the manifest: sets\.nq/test\.sha256: "):
        run(tmp_path, again)


def test_a_template_whose_text_has_changed_is_refused_wherever_it_lies(world: World, tmp_path: Path) -> None:
    wording = tmp_path / "own.j2"
    wording.write_text("{{ noisy }} {{ question }} {{ answers }} {{ query }}:")
    cfg = world.settings(search=SimulatedSearchConfig(template=str(wording)), methods=[Method.agent])
    path = run(tmp_path, cfg)
    moved = wording.rename(tmp_path / "moved.j2")
    again = world.settings("again", search=SimulatedSearchConfig(template=str(moved)), methods=[Method.agent])
    again.manifest = str(path / "manifest.json")
    run(tmp_path, again)
    moved.write_text(moved.read_text() + " now")
    again.exp_manager.name = "once_more"
    with pytest.raises(ValueError, match=r"would not repeat .*engine_template_sha256: "):
        run(tmp_path, again)


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_asked_or_kept(world: World, tmp_path: Path) -> None:
    cfg = world.settings(methods=[Method.retrieve_then_read])
    cfg.rollout.max_sequence_tokens = 500
    with pytest.raises(ValueError, match=r"max_sequence_tokens=500 cannot hold .* its documents \(rollout\.max_doc"):
        run(tmp_path, cfg)
    assert not world.policy.calls
    assert run(tmp_path, world.settings(methods=[Method.direct])), "the corrected command may keep the name"
