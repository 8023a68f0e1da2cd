import json
from dataclasses import replace
from pathlib import Path

import pytest

from zs_nemo.evaluation.manifest import (
    Conditions,
    EvaluationManifest,
    chat_template_sha256,
    file_sha256,
    manifest_differences,
    manifest_file,
    prompt_sha256,
    set_contents,
    texts_sha256,
)
from zs_nemo.qa import prompts
from zs_nemo.rollout.episode import EpisodeLimits
from zs_nemo.types.question import Question

LIMITS = EpisodeLimits(
    max_turns=3, max_turn_tokens=48, max_document_tokens=160, max_sequence_tokens=768, search_deadline_s=60.0
)


def question(number: int, *, name: str = "nq/test", answers: tuple[str, ...] = ("a",)) -> Question:
    return Question(id=f"{name}/{number:04d}", text=f"q {number}", answers=answers, kind="nq", split="test")


QUESTIONS = [question(0), question(1), question(0, name="popqa/test")]


@pytest.fixture
def conditions(tmp_path: Path) -> Conditions:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("a document\n")
    return Conditions(policy="folder", seed=1, limits=LIMITS, corpora={"bm25": corpus}, models={"simulator": "a model"})


def make(conditions: Conditions, engine: str = "bm25", **more: object) -> EvaluationManifest:
    made = conditions.manifest(QUESTIONS, engine=engine, temperature=0.0, num_documents=2, step=7)
    return replace(made, **more)


def test_a_manifest_says_all_that_scores_depend_on(conditions: Conditions) -> None:
    manifest = make(conditions)
    assert {name: content.num_questions for name, content in manifest.sets.items()} == {"nq/test": 2, "popqa/test": 1}
    assert (manifest.policy, manifest.num_documents, manifest.max_turns) == ("folder, step 7", 2, 3)
    assert manifest.corpus_sha256 == file_sha256(conditions.corpora["bm25"]) and manifest.engine_model == ""
    assert manifest.versions["numpy"]
    simulated = make(conditions, "simulator")
    assert (simulated.engine_model, simulated.corpus_sha256) == ("a model", "")


def test_a_manifest_survives_the_way_through_its_file(conditions: Conditions, tmp_path: Path) -> None:
    path = tmp_path / "manifests" / "x.json"
    make(conditions).write(path)
    again = EvaluationManifest.read(path)
    assert again == make(conditions) and again.differences(make(conditions)) == []
    again.check_repeats(make(conditions))


def test_what_differs_is_named_with_both_values(conditions: Conditions) -> None:
    mine = make(conditions)
    other = replace(
        mine, temperature=1.0, versions=mine.versions | {"vllm": "9.9"}, sets={"nq/test": mine.sets["nq/test"]}
    )
    changed = mine.differences(other)
    assert "temperature: 0.0 -> 1.0" in changed
    assert "sets.popqa/test.num_questions: 1 -> (absent)" in changed
    assert any(line.startswith("versions.vllm: ") and line.endswith(" -> 9.9") for line in changed)
    assert len(changed) == 4
    with pytest.raises(ValueError, match=r"would not repeat .*temperature: 0\.0 -> 1\.0; set these back") as caught:
        other.check_repeats(mine)
    assert "versions" not in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        [question(0), question(1, answers=("a", "b"))],
        [question(1), question(0)],
        [question(0)],
        [question(0), replace(question(1), text="q 1?")],
        [question(0), replace(question(1), answers_are_patterns=True)],
    ],
)
def test_the_hash_of_a_set_changes_with_everything_that_is_asked_and_graded(other: list[Question]) -> None:
    questions = [question(0), question(1)]
    assert set_contents(questions) == set_contents(list(questions))
    assert set_contents(questions)["nq/test"].sha256 != set_contents(other)["nq/test"].sha256


def test_the_facts_world_is_named_by_its_split() -> None:
    fact = Question(id="facts/capital/FRA", text="q", answers=("a",), kind="capital", split="validation")
    assert list(set_contents([fact])) == ["facts/validation"]


def test_another_corpus_or_prompt_is_another_evaluation(
    conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make(conditions)
    conditions.corpora["bm25"].write_text("another document\n")
    monkeypatch.setattr(prompts, "POLICY_PROMPT", prompts.POLICY_PROMPT.replace("Answer", "Do answer"))
    names = [line.partition(":")[0] for line in before.differences(make(conditions))]
    assert names == ["corpus_sha256", "prompt_sha256"]
    assert len(prompt_sha256()) == 64


def test_another_wording_of_the_simulator_or_chat_template_is_another_evaluation(conditions: Conditions) -> None:
    frozen = make(
        conditions,
        "simulator",
        engine_settings={"template": "a.j2"},
        engine_template_sha256=texts_sha256("a wording"),
        chat_template_sha256=texts_sha256("a chat"),
    )
    replace(frozen, engine_settings={"template": "moved/a.j2"}).check_repeats(frozen)
    with pytest.raises(ValueError, match="engine_template_sha256: "):
        replace(frozen, engine_template_sha256=texts_sha256("another")).check_repeats(frozen)
    with pytest.raises(ValueError, match="chat_template_sha256: "):
        replace(frozen, chat_template_sha256=texts_sha256("another")).check_repeats(frozen)
    from_before = replace(frozen, engine_template_sha256="", chat_template_sha256="")
    frozen.check_repeats(from_before)
    with pytest.raises(ValueError, match=r"engine_settings\.template: a\.j2 -> moved"):
        replace(frozen, engine_settings={"template": "moved/a.j2"}).check_repeats(from_before)


def test_a_chat_template_among_the_tokenizers_settings_has_a_hash_of_its_own(tmp_path: Path) -> None:
    settings = tmp_path / "tokenizer_config.json"
    assert chat_template_sha256(tmp_path) == ""
    settings.write_text(json.dumps({"model_max_length": 8}))
    assert chat_template_sha256(tmp_path) == ""
    settings.write_text(json.dumps({"chat_template": "{{ messages }}"}))
    first = chat_template_sha256(tmp_path)
    settings.write_text(json.dumps({"chat_template": "{{ messages[0] }}"}))
    assert len(first) == 64 and chat_template_sha256(tmp_path) != first


def test_a_file_that_is_no_whole_manifest_is_refused(conditions: Conditions, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    make(conditions).write(path)
    values = json.loads(path.read_text())
    for broken, message in (
        (values | {"format": 0}, "no evaluation manifest of format 1"),
        ({name: value for name, value in values.items() if name != "seed"}, r"lacks the fields \['seed'\]"),
        (values | {"temprature": 1}, r"has besides \['temprature'\]"),
        ([1], "no evaluation manifest"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            EvaluationManifest.read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is no JSON document"):
        EvaluationManifest.read(path)


def test_policies_and_versions_may_differ_between_evaluations_that_are_compared(
    conditions: Conditions, tmp_path: Path
) -> None:
    first, second, third = (tmp_path / "evaluations" / f"{name}.jsonl" for name in "abc")
    make(conditions).write(manifest_file(first))
    make(conditions, policy="another", versions={}).write(manifest_file(second))
    assert manifest_differences(first, second) == []
    make(conditions, num_documents=5).write(manifest_file(second))
    assert manifest_differences(first, second) == ["num_documents: 2 -> 5"]
    assert manifest_differences(first, third) == []


@pytest.mark.parametrize(
    ("wording", "differs"),
    [("another", ["engine_template_sha256"]), ("a wording", []), ("", [])],
    ids=["another wording", "a chat template of the policy's", "made before wordings had a hash"],
)
def test_of_two_templates_only_another_wording_of_the_simulator_is_another_condition(
    wording: str, differs: list[str], conditions: Conditions, tmp_path: Path
) -> None:
    first, second = (tmp_path / "evaluations" / f"{name}.jsonl" for name in "ab")
    make(conditions, "simulator", engine_template_sha256="a wording").write(manifest_file(first))
    changed = make(conditions, "simulator", engine_template_sha256=wording, chat_template_sha256="a chat")
    changed.write(manifest_file(second))
    for pair in ((first, second), (second, first)):
        assert [line.partition(":")[0] for line in manifest_differences(*pair)] == differs
