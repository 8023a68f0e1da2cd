"""What a collection keeps and resumes, with a scripted policy and a fixed engine in place of processes."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from tests.completion_server import completion
from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from tests.loopback import serving
from zs_nemo.cluster.collection_run import CollectionRun
from zs_nemo.config.collect import (
    CollectConfig,
    CollectRecipeConfig,
    ExamplesFormat,
    JudgedUnit,
    JudgeName,
    LlmJudgeConfig,
)
from zs_nemo.config.cost import CostConfig
from zs_nemo.config.endpoints import EndpointPoolConfig
from zs_nemo.config.experiment import ExpManagerConfig
from zs_nemo.config.rollout import RolloutConfig
from zs_nemo.config.search import Bm25SearchConfig
from zs_nemo.observability.files import read_json, read_json_lines
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.qa.question_source import QuestionSource
from zs_nemo.rollout.callbacks import EngineSearch
from zs_nemo.rollout.collector import RolloutCollector, SearchBudgetExceeded, StepBudgets
from zs_nemo.rollout.episode import EpisodeLimits, EpisodeRunner, SearchSetting
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.rollout.rewards import f1
from zs_nemo.search.endpoint_trial import TRIAL_PROMPT
from zs_nemo.search.example_files import examples_file, read_examples
from zs_nemo.search.judges import LlmJudge, LlmVerdict
from zs_nemo.types.interaction import Interaction
from zs_nemo.types.question import Question
from zs_nemo.types.search import Document, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

LIMITS = EpisodeLimits(
    max_turns=2, max_turn_tokens=60, max_document_tokens=80, max_sequence_tokens=800, search_deadline_s=5.0
)
QUESTIONS = [
    Question(id=f"q{i}", text=f"Question {i}?", answers=(f"answer {i}",), kind="k", split="train", evidence=())
    for i in range(20)
]


def script(prompt: str) -> str:
    number = int(prompt.split("Question: Question ")[1].split("?")[0])
    # Even questions are answered right.
    return (
        f"<answer>answer {number if number % 2 == 0 else 'x'}</answer>"
        if "Doc 1:" in prompt
        else f"<search>find {number}</search>"
    )


def settings(**collect: object) -> CollectRecipeConfig:
    return CollectRecipeConfig(
        search=Bm25SearchConfig(),
        exp_manager=ExpManagerConfig(create_tensorboard_logger=False),
        rollout=RolloutConfig(num_prompts_per_step=8, num_generations_per_prompt=1),
        collect=CollectConfig(**collect),
    )


@pytest.fixture
def engine() -> FixedSearch:
    """Return the real engine that every run of the test has."""
    return FixedSearch(("It is answer 4.",), name="bm25")


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch, engine: FixedSearch) -> ScriptedEngine:
    """Return the policy that every run of the test has."""
    scripted = ScriptedEngine(script)

    def start(run: CollectionRun) -> None:
        runner = EpisodeRunner(scripted, CharTokenizer(), LIMITS)
        run._collector = RolloutCollector(
            runner, CharTokenizer(), f1, run_seed=7, max_concurrency=64, budgets=StepBudgets(failed=0.1)
        )
        run._stack.callback(run._collector.close)
        run._questions = QuestionSource(train=QUESTIONS, validation=[], test=QUESTIONS[:3])
        run._ledger, run._memory = run._open_ledger(), SimpleNamespace(peak_gib=1.0)
        found = SearchSetting(callback=EngineSearch(run._ledger.watch(engine)), num_documents=1)
        run._engines = SimpleNamespace(training=lambda noise: found, training_name="bm25")
        run.system = SimpleNamespace(
            accounts=lambda **spent: {"generation": {"held_core_s": 3600.0, "busy_core_s": 900.0}},
            engines_alone=nullcontext,
            generation=SimpleNamespace(release_memory=lambda: None),
        )

    monkeypatch.setattr(CollectionRun, "_start", start)
    return scripted


def without_account(report: dict) -> dict:
    """Return a report without what grows with every session."""
    return {name: value for name, value in report.items() if name not in ("wall_s", "stage_s", "search", "cost")}


def collected(path: Path, cfg: CollectRecipeConfig) -> dict:
    """Run or resume a collection; return its report."""
    with RunDir(path, cfg) as run_dir, Progress("run") as progress, CollectionRun(cfg, run_dir, progress) as run:
        run.roll_out()
        run.judge()
        page = run.finish()
    assert page.name == "report.html" and "judged by" in page.read_text()
    return read_json(path / "report.json", {})


def test_rounds_that_are_there_are_not_asked_again(policy: ScriptedEngine, tmp_path: Path) -> None:
    cfg = settings(held_out_share=0.3, balance=False)
    report = collected(tmp_path, cfg)
    assert (report["searches"], report["questions"]) == (20, 20)
    assert (report["useful"], report["useless"]) == (1, 19), "the document holds the answer to one question"
    rounds = {path.name: path.read_text() for path in (tmp_path / "interactions").iterdir()}
    assert sorted(rounds) == ["episodes_0002.jsonl", *(f"step_{number:04d}.jsonl" for number in range(3))], (
        "more questions may be asked for"
    )
    (tmp_path / "interactions" / "step_0001.jsonl").unlink()
    policy.calls.clear()
    again = collected(tmp_path, cfg)
    asked = {prompt.split("Question: Question ")[1].split("?")[0] for prompt, _, _ in policy.calls}
    assert asked == {str(number) for number in range(8, 16)}
    assert without_account(again) == without_account(report)
    assert {path.name: path.read_text() for path in (tmp_path / "interactions").iterdir()} == rounds


def test_the_report_says_what_the_collection_took_and_cost(policy: ScriptedEngine, tmp_path: Path) -> None:
    report = collected(tmp_path, settings())
    cost = report["cost"]
    assert (cost["searches"], cost["run_usd"]) == ({"bm25": 20}, pytest.approx(CostConfig().usd_per_core_hour))
    assert cost["roles"]["generation"]["busy_share"] == 0.25
    assert report["search"]["engines"]["bm25"]["calls"] == 20
    assert report["seed"] == 1 and report["wall_s"] >= report["stage_s"]["rollout"] > 0


def test_documents_are_judged_one_by_one_where_the_simulator_writes_one_by_one(
    policy: ScriptedEngine, engine: FixedSearch, tmp_path: Path
) -> None:
    engine.texts = ("It is answer 4.", "There are rivers.")
    whole = collected(tmp_path / "whole", settings(balance=False, held_out_share=0.0))
    assert (whole["unit"], whole["useful"], whole["useless"]) == ("search", 1, 19)
    report = collected(tmp_path / "parts", settings(balance=False, held_out_share=0.0, unit=JudgedUnit.document))
    assert (report["unit"], report["searches"], report["useful"], report["useless"]) == ("document", 20, 1, 39)
    rows = read_json_lines(tmp_path / "parts" / "examples_train.jsonl")
    (useful,) = (row for row in rows if row["useful"])
    assert [document["text"] for document in useful["documents"]] == ["It is answer 4."]
    assert len(rows) == 40, "what stood beside the useful document is an example of a useless one"


def test_the_examples_can_be_parquet_and_are_the_same(policy: ScriptedEngine, tmp_path: Path) -> None:
    whole = {"held_out_share": 0.3, "balance": False}
    collected(tmp_path / "lines", settings(**whole))
    collected(tmp_path / "parquet", settings(**whole, examples_format=ExamplesFormat.parquet))
    for split in ("train", "held_out"):
        lines, parquet = (examples_file(str(tmp_path / name), split) for name in ("lines", "parquet"))
        assert (lines.suffix, parquet.suffix) == (".jsonl", ".parquet")
        assert read_examples(parquet) == read_examples(lines) != []


def test_nothing_that_answers_a_held_out_question_is_learned_from(
    policy: ScriptedEngine, engine: FixedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, start = engine.search, CollectionRun._start

    async def search(request: SearchRequest) -> SearchResult:
        found = await asked(request)
        name = "held" if request.query == "find 3" else "d"
        return replace(found, documents=(Document(text="A fact.", id=name),))

    def started(run: CollectionRun) -> None:
        start(run)
        held_out = replace(QUESTIONS[0], id="t", evidence=("held",))
        run._questions = QuestionSource(train=QUESTIONS, validation=[], test=[held_out])

    monkeypatch.setattr(engine, "search", search)
    monkeypatch.setattr(CollectionRun, "_start", started)
    report = collected(tmp_path / "train", settings(balance=False, held_out_share=0.0))
    learned = {row["query"] for row in read_json_lines(tmp_path / "train" / "examples_train.jsonl")}
    assert "find 3" not in learned and len(learned) == 19
    assert (report["searches"], report["of_held_out_questions"]) == (20, 1)
    measured = collected(tmp_path / "test", settings(balance=False, split="test"))
    assert measured["of_held_out_questions"] == 0, "searches to measure on are held out anyway"


def fail_after(engine: FixedSearch, count: int, kind: SearchFailureKind, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = engine.search

    async def until_then(request: SearchRequest) -> SearchResult:
        if len(engine.requests) == count:
            raise SearchFailure(kind, "the quota is spent")
        return await asked(request)

    monkeypatch.setattr(engine, "search", until_then)


def twice(prompt: str) -> str:
    """Search twice, then answer."""
    number = prompt.split("Question: Question ")[1].split("?")[0]
    num_searches = prompt.count("Doc 1:")
    return (
        f"<search>find {number}, {num_searches}</search>" if num_searches < 2 else f"<answer>answer {number}</answer>"
    )


def test_what_was_bought_before_the_quota_was_spent_is_kept_judged_and_not_asked_again(
    policy: ScriptedEngine,
    engine: FixedSearch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = engine.search
    fail_after(engine, 11, SearchFailureKind.refused, monkeypatch)
    report = collected(tmp_path, settings(balance=False))
    assert (report["searches"], report["episodes"], report["episodes_wanted"]) == (11, 11, 20)
    assert sum(sum(kinds.values()) for kinds in report["examples"].values()) == 11
    assert "the quota is spent. 11 of 20 episodes are recorded" in capsys.readouterr().out
    assert not read_json(tmp_path / "state.json", {})["finished"], "the same command goes on"
    assert SearchLedger(read_json(tmp_path / "search.json", {})).asked("bm25") == 11
    engine.requests.clear()
    monkeypatch.setattr(engine, "search", asked)
    report = collected(tmp_path, settings(balance=False))
    assert (len(engine.requests), report["searches"], report["questions"]) == (9, 20, 20)
    assert read_json(tmp_path / "state.json", {})["finished"]
    rows = read_json_lines(tmp_path / "interactions" / "step_0001.jsonl")
    assert [row["question_id"] for row in rows] == [f"q{number}" for number in range(8, 16)]
    assert SearchLedger(read_json(tmp_path / "search.json", {})).asked("bm25") == 20


def test_an_episode_that_is_refused_a_later_search_keeps_its_first_and_is_not_run_again(
    policy: ScriptedEngine, engine: FixedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, policy.script = engine.search, twice
    monkeypatch.setitem(globals(), "LIMITS", replace(LIMITS, max_turns=3))
    cfg = settings(judge=JudgeName.outcome, balance=False, num_questions=8)
    fail_after(engine, 11, SearchFailureKind.refused, monkeypatch)
    report = collected(tmp_path, cfg)
    assert (report["searches"], report["useful"], report["undecided"]) == (11, 6, 5), "it has no outcome"
    engine.requests.clear()
    monkeypatch.setattr(engine, "search", asked)
    report = collected(tmp_path, cfg)
    assert (len(engine.requests), report["searches"]) == (0, 11)


def test_a_round_that_failed_asks_its_lost_episodes_again_and_no_others(
    policy: ScriptedEngine, engine: FixedSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = engine.search
    fail_after(engine, 11, SearchFailureKind.missing, monkeypatch)
    with pytest.raises(SearchBudgetExceeded, match="the quota is spent"):
        collected(tmp_path, settings())
    kept = len(read_json_lines(tmp_path / "interactions" / "episodes_0001.jsonl"))
    engine.requests.clear()
    monkeypatch.setattr(engine, "search", asked)
    report = collected(tmp_path, settings())
    assert report["searches"] == 20 and len(engine.requests) == 12 - kept <= 12


def test_more_questions_are_asked_by_a_collection_that_goes_on(
    policy: ScriptedEngine, engine: FixedSearch, tmp_path: Path
) -> None:
    assert collected(tmp_path, settings(num_questions=10))["searches"] == 10
    engine.requests.clear()
    report = collected(tmp_path, settings(num_questions=13))
    assert (len(engine.requests), report["searches"]) == (3, 13)


def test_a_search_that_brought_nothing_is_recorded_and_makes_no_example(
    policy: ScriptedEngine, engine: FixedSearch, tmp_path: Path
) -> None:
    engine.texts, after = (), lambda prompt: prompt.partition("Question: Question ")[2]
    policy.script = lambda prompt: "<answer>x</answer>" if "<information>" in after(prompt) else script(prompt)
    report = collected(tmp_path, settings(balance=False))
    assert (report["searches"], report["without_documents"], report["useless"]) == (20, 20, 0)
    assert read_json_lines(tmp_path / "examples_train.jsonl") == []


def test_the_parts_hold_different_questions_and_the_outcome_can_judge(policy: ScriptedEngine, tmp_path: Path) -> None:
    report = collected(tmp_path, settings(held_out_share=0.3, balance=False, judge=JudgeName.outcome))
    assert (report["useful"], report["useless"]) == (10, 10)
    parts = [read_json_lines(tmp_path / f"examples_{name}.jsonl") for name in ("train", "held_out")]
    train, held_out = ({row["question_id"] for row in rows} for rows in parts)
    assert train and held_out and not train & held_out and len(train | held_out) == 20
    assert all(row["useful"] is (int(row["question_id"][1:]) % 2 == 0) for rows in parts for row in rows)


def test_nothing_of_a_collection_over_test_questions_can_be_learned_from(
    policy: ScriptedEngine, tmp_path: Path
) -> None:
    report = collected(tmp_path, settings(split="test", balance=False))
    assert report["searches"] == 3 and report["examples"]["train"] == {"useful": 0, "useless": 0}


EXTRA = {"chat_template_kwargs": {"enable_thinking": False}}
"""A thinking model would spend the verdict's few tokens on its thoughts."""


def judge_that_says(
    answer: Callable[[str], str | web.Response], asked: list[str], *, model: str = "judge"
) -> Callable[[], web.Application]:
    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        assert body.items() >= EXTRA.items()
        prompt = body["messages"][-1]["content"]
        if prompt == TRIAL_PROMPT:
            return completion("Hello.", chat=True)
        asked.append(prompt)
        said = answer(prompt)
        return completion(said, chat=True) if isinstance(said, str) else said

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": model}]})

    def make() -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        app.router.add_get("/v1/models", models)
        return app

    return make


def judged_by(url: str, **changes: object) -> CollectRecipeConfig:
    llm = LlmJudgeConfig(endpoints=[url], served_model="judge", extra_body=EXTRA, **changes)
    return settings(balance=False, judge=JudgeName.llm, llm=llm)


def verdict_on(prompt: str) -> str:
    return "Verdict: " + ("useful" if "Question 4" in prompt else "useless")


def test_a_language_model_judges_each_search_once(policy: ScriptedEngine, tmp_path: Path) -> None:
    asked: list[str] = []
    with serving(judge_that_says(verdict_on, asked)) as url:
        cfg = judged_by(url)
        report = collected(tmp_path, cfg)
        assert (report["useful"], report["useless"], report["asked"], report["nonsense"]) == (1, 19, 20, 0)
        assert report["disagreements_with_containment"] == 0
        # Half of the verdicts are lost with a crash, which has torn one: the others are not asked for again.
        path = tmp_path / "judgements.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{line}\n" for line in lines[:10]) + lines[10][:9])
        assert without_account(collected(tmp_path, cfg)) == without_account(report) and len(asked) == 30
        assert sorted(read_json_lines(path), key=str) == sorted(map(json.loads, lines), key=str)


def test_the_report_has_what_the_judge_has_read_and_written_in_all_sessions_and_its_price(
    policy: ScriptedEngine, tmp_path: Path
) -> None:
    prices = CostConfig(usd_per_million_prompt_tokens=100_000.0, usd_per_million_completion_tokens=10_000.0)
    written = len("Verdict: useful") + 19 * len("Verdict: useless")
    with serving(judge_that_says(verdict_on, [])) as url:
        cfg = judged_by(url)
        cfg.cost = prices
        cost = collected(tmp_path, cfg)["cost"]
        counted = {"requests": 20, "prompt_tokens": 20 * 7, "completion_tokens": written}
        assert {name: cost["roles"]["judge"][name] for name in counted} == counted
        assert cost["roles"]["judge"]["usd"] == pytest.approx(20 * 7 * 0.1 + written * 0.01)
        assert cost["run_usd"] == pytest.approx(cost["roles"]["judge"]["usd"] + cost["roles"]["generation"]["usd"])
        # A session that asked for half of the verdicts and died has paid for them.
        path = tmp_path / "judgements.jsonl"
        path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:10]))
        assert collected(tmp_path, cfg)["cost"]["roles"]["judge"] == cost["roles"]["judge"]
    assert "judge" not in collected(tmp_path / "other", settings())["cost"]["roles"]


def test_a_judge_that_talks_nonsense_ends_the_collection_however_often_it_is_asked(
    policy: ScriptedEngine, tmp_path: Path
) -> None:
    asked: list[str] = []
    told = r"20 of 20 answers of the judge are no verdict.*max_nonsense_share=0\.1"
    with serving(judge_that_says(lambda prompt: "I think so.", asked)) as url:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=told):
                collected(tmp_path, judged_by(url))
        assert not (tmp_path / "report.json").exists() and len(asked) == 20
        assert collected(tmp_path, judged_by(url, max_nonsense_share=1.0))["undecided"] == 20


def test_one_answer_without_a_verdict_among_the_few_that_are_left_is_no_large_share(
    policy: ScriptedEngine, tmp_path: Path
) -> None:
    asked: list[str] = []
    nonsense = "Question 7?"
    with serving(judge_that_says(lambda prompt: "Hm." if nonsense in prompt else verdict_on(prompt), asked)) as url:
        cfg = judged_by(url)
        assert collected(tmp_path, cfg)["undecided"] == 1
        # The verdicts of all searches but three are there, and one of these three is the odd one.
        path = tmp_path / "judgements.jsonl"
        rows = sorted(read_json_lines(path), key=lambda row: row["useful"] is None)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-3]))
        assert collected(tmp_path, cfg)["undecided"] == 1 and len(asked) == 23


def test_a_request_that_the_judges_server_rejects_leaves_its_search_undecided(
    policy: ScriptedEngine, tmp_path: Path
) -> None:
    def answer(prompt: str) -> str | web.Response:
        too_long = "Question 3?" in prompt
        return web.json_response({"error": "too long"}, status=400) if too_long else verdict_on(prompt)

    with serving(judge_that_says(answer, [])) as url:
        report = collected(tmp_path, judged_by(url))
        assert (report["undecided"], report["rejected"], report["asked"]) == (1, 1, 20)
        with pytest.raises(RuntimeError, match=r"1 of 20 .*1 of the requests were rejected; the last: .*too long"):
            collected(tmp_path, judged_by(url, max_nonsense_share=0.0))


def test_verdicts_that_came_before_the_judge_was_lost_are_kept(
    policy: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = LlmJudge.verdict
    asked: list[str] = []

    async def verdict(judge: LlmJudge, interaction: Interaction) -> LlmVerdict:
        if len(asked) == 12:
            raise SearchFailure(SearchFailureKind.timeout, "no answer within 45 s")
        return await answered(judge, interaction)

    monkeypatch.setattr(LlmJudge, "verdict", verdict)
    told = r"the judge did not answer \(timeout: no answer.*collect\.llm\.pool\.deadline_s"
    one_at_a_time = EndpointPoolConfig(max_concurrency=1)
    with serving(judge_that_says(verdict_on, asked)) as url, pytest.raises(RuntimeError, match=told):
        collected(tmp_path, judged_by(url, pool=one_at_a_time))
    assert len(read_json_lines(tmp_path / "judgements.jsonl")) == 12


def test_a_judge_that_cannot_be_asked_is_found_before_anything_is_rolled_out(
    policy: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(judge_that_says(verdict_on, [], model="another")) as url:
        with pytest.raises(ValueError, match=r"collect\.llm\.endpoints: none of 1 can be used .*serves another"):
            collected(tmp_path, judged_by(url))
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        with pytest.raises(ValueError, match=r"collect\.llm\.api_key_variable=JUDGE_KEY.*not set"):
            collected(tmp_path, judged_by(url, api_key_variable="JUDGE_KEY"))
    assert not policy.calls
