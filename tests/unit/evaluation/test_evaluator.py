"""An evaluation from questions to the files in the run directory, with a scripted policy."""

from pathlib import Path

import pytest
from rich.console import Console

from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from tests.unit.observability.runs import config
from zs_nemo.evaluation.evaluator import CLOSED_BOOK, Evaluator
from zs_nemo.evaluation.manifest import Conditions, EvaluationManifest
from zs_nemo.evaluation.scores import EvaluationName
from zs_nemo.observability.files import read_json, read_json_lines
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.rollout.callbacks import EngineSearch
from zs_nemo.rollout.collector import RolloutCollector, StepBudgets
from zs_nemo.rollout.episode import EpisodeLimits, EpisodeRunner, SearchSetting
from zs_nemo.rollout.rewards import f1
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchFailureKind

LIMITS = EpisodeLimits(
    max_turns=2, max_turn_tokens=60, max_document_tokens=80, max_sequence_tokens=800, search_deadline_s=0.2
)
QUESTIONS = [
    Question(id="nq/test/0000", text="who", answers=("Ann",), kind="nq", split="test"),
    Question(
        id="curatedtrec/test/0000",
        text="how tall",
        answers=(r"1\.?8\d?\s*m",),
        kind="curatedtrec",
        split="test",
        answers_are_patterns=True,
    ),
    Question(id="nq/test/0001", text="where", answers=("Rome",), kind="nq", split="test"),
]
ANSWERS = {"who": "Ann Other", "how tall": "1.85 m or so", "where": "Rome"}


def answer(prompt: str) -> str:
    asked = prompt.split("Question: ")[1].splitlines()[0]
    return f"<answer>{ANSWERS[asked]}</answer>"


def searching(prompt: str) -> str:
    return answer(prompt) if "</information>" in prompt.split("Question: ")[1] else "<search>it</search>"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(answer)


@pytest.fixture
def run(tmp_path: Path, engine: ScriptedEngine):
    runner = EpisodeRunner(engine, CharTokenizer(), LIMITS)
    # As generous as the defaults of training are with deadlines.
    collector = RolloutCollector(
        runner, CharTokenizer(), f1, run_seed=1, max_concurrency=1, budgets=StepBudgets(failed=0.5)
    )
    progress = Progress("test", Console(file=(tmp_path / "told").open("w")))
    conditions = Conditions(policy="folder", seed=1, limits=LIMITS, corpora={}, models={"simulator": "a model"})
    with RunDir(tmp_path, config()) as run_dir:
        yield Evaluator(collector, QUESTIONS, run_dir, progress, bootstrap_samples=100, conditions=conditions)
    collector.close()


def setting() -> SearchSetting:
    return SearchSetting(callback=EngineSearch(FixedSearch()), num_documents=3)


def test_every_set_is_graded_by_its_own_rule_and_the_conditions_are_frozen(run: Evaluator, tmp_path: Path) -> None:
    name = EvaluationName(when="after", engine="bm25", temperature=0.0)
    run.evaluate(name, setting(), step=5)
    rows = read_json_lines(tmp_path / "evaluations" / f"{name}.jsonl")
    grades = {row["question_id"]: (row["em"], row["published_em"], row["f1"]) for row in rows}
    assert grades == {
        "nq/test/0000": (0.0, 1.0, pytest.approx(2 / 3)),
        "curatedtrec/test/0000": (1.0, 1.0, 1.0),
        "nq/test/0001": (1.0, 1.0, 1.0),
    }
    summary = read_json(tmp_path / "evaluations" / f"{name}.json", None)
    assert (summary["macro"]["em"], summary["by_set"]["nq"]["em"]) == (0.75, 0.5)
    manifest = EvaluationManifest.read(tmp_path / "evaluations" / "manifests" / f"{name}.json")
    assert (manifest.engine, manifest.num_documents, manifest.policy) == ("bm25", 3, "folder, step 5")
    assert {each: content.num_questions for each, content in manifest.sets.items()} == {
        "curatedtrec/test": 1,
        "nq/test": 2,
    }


def test_questions_that_the_search_engine_lost_are_no_wrong_answers_before_or_after(
    run: Evaluator, engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.script = searching
    before, after = (EvaluationName(when=when, engine="bm25", temperature=0.0) for when in ("before", "after"))
    lossy = FixedSearch(failures=1, failure_kind=SearchFailureKind.refused)
    run.evaluate(before, SearchSetting(callback=EngineSearch(lossy), num_documents=3), step=0)
    run.evaluate(after, setting(), step=5)
    summaries = [read_json(tmp_path / "evaluations" / f"{name}.json", None) for name in (before, after)]
    assert [each["n"] for each in summaries] == [2, 3]
    assert [each["unscored"]["num_questions"] for each in summaries] == [1, 0]
    assert summaries[0]["unscored"]["question_ids"] == ["nq/test/0000"] and summaries[0]["em"] == 1.0
    gain = summaries[1]["gain"]
    assert (gain["n"], gain["f1"], gain["questions_better"]) == (2, 0.0, 0), "the policy is the same"
    assert "n 2  unscored 1" in (tmp_path / "told").read_text()


def test_an_engine_that_is_told_the_answers_is_not_asked_for_regular_expressions(
    run: Evaluator, tmp_path: Path
) -> None:
    name = EvaluationName(when="after", engine="simulator", temperature=0.0)
    run.evaluate(name, setting(), step=5, num_questions=2, engine_is_told_answers=True)
    rows = read_json_lines(tmp_path / "evaluations" / f"{name}.jsonl")
    assert [row["question_id"] for row in rows] == ["nq/test/0000", "nq/test/0001"]
    assert EvaluationManifest.read(tmp_path / "evaluations" / "manifests" / f"{name}.json").engine_model == "a model"


def test_closed_book_has_no_documents(run: Evaluator, tmp_path: Path) -> None:
    name = EvaluationName(when="after", engine=CLOSED_BOOK, temperature=0.0)
    run.evaluate(name, None, step=5, num_questions=1)
    manifest = EvaluationManifest.read(tmp_path / "evaluations" / "manifests" / f"{name}.json")
    assert (manifest.num_documents, manifest.corpus_sha256) == (0, "")
