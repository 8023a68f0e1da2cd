"""The questions of a run, from the sets that its configuration names."""

from collections import Counter
from pathlib import Path

import pytest

from tests.unit.qa.sets.files import flashrag, write_lines
from zs_nemo.config.experiment import DataConfig
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.qa.question_source import load_questions
from zs_nemo.qa.sets import pyserini_wheel


def write_set(folder: Path, name: str, count: int, *, split: str = "train") -> str:
    rows = [flashrag(number, f"{name} {number}", "a", split=split) for number in range(count)]
    return str(write_lines(folder / name / f"{split}.jsonl", rows))


def test_by_default_the_questions_are_those_of_the_facts_world(facts_world: FactsWorld) -> None:
    told: list[str] = []
    source = load_questions(DataConfig(), facts_world, told.append)
    for split in ("train", "validation", "test"):
        assert source.split(split) == facts_world.split(split)
    assert told == [], "its splits have no question in common"


def test_sets_are_mixed_with_the_facts_and_examined_beside_them(facts_world: FactsWorld, tmp_path: Path) -> None:
    sets = [write_set(tmp_path, name, 40) for name in ("nq", "hotpotqa")]
    tests = [write_set(tmp_path, "bamboogle", 5, split="test"), "facts:test"]
    data = DataConfig(train=[*sets, "facts:train"], train_counts=[20, 0, 10], test=tests, test_counts=[0, 30])
    source = load_questions(data, facts_world)
    assert Counter(question.id.split("/")[0] for question in source.train) == {"nq": 20, "hotpotqa": 40, "facts": 10}
    assert len(source.test) == 35 and [question.kind for question in source.test[0:10:2]] == ["bamboogle"] * 5
    assert source == load_questions(data, facts_world)
    assert source.train != load_questions(DataConfig(**{**vars(data), "seed": 1}), facts_world).train


def test_weights_are_shares_of_an_epoch(facts_world: FactsWorld, tmp_path: Path) -> None:
    data = DataConfig(train=[write_set(tmp_path, "nq", 40), write_set(tmp_path, "musique", 10)], train_weights=[1, 1])
    assert Counter(q.kind for q in load_questions(data, facts_world).train) == {"nq": 40, "musique": 40}


def test_a_question_that_is_trained_on_and_examined_is_refused(facts_world: FactsWorld, tmp_path: Path) -> None:
    path = write_set(tmp_path, "nq", 3)
    again = write_lines(tmp_path / "copy" / "nq_test.jsonl", [flashrag(2, "nq 2", "a", split="train")])
    with pytest.raises(ValueError, match=r"data\.train and data\.test share 1 questions, such as nq/train/0002"):
        load_questions(DataConfig(train=[path], test=[str(again)]), facts_world)


def test_a_question_that_is_trained_on_in_the_same_words_is_told(facts_world: FactsWorld, tmp_path: Path) -> None:
    rows = [flashrag(number, f"Who is the {number}th?", "a", split="train") for number in range(4)]
    train = write_lines(tmp_path / "nq_train.jsonl", rows)
    test = [flashrag(0, "who is 2th", "a"), flashrag(1, "Who is the 9th?", "a"), flashrag(2, "Who  is a 3th?", "a")]
    path, told = write_lines(tmp_path / "nq_test.jsonl", test), []
    data = DataConfig(train=[str(train)], test=[str(path)])
    assert len(load_questions(data, facts_world, told.append).test) == 3
    assert told == [
        "data.train asks 2 of the 3 questions of data.test in the same words, such as nq/test/0000 (nq/train/0002): "
        "'who is 2th'; scores on those are not of unseen questions"
    ]


def test_two_sets_under_one_name_are_refused(facts_world: FactsWorld, tmp_path: Path) -> None:
    paths = [write_set(tmp_path / folder, "nq", 3) for folder in ("one", "two")]
    with pytest.raises(ValueError, match=r"data\.train: 3 questions are in two of its sets.*nq/train/0000"):
        load_questions(DataConfig(train=paths), facts_world)


def test_regular_expressions_are_no_training_answers(
    facts_world: FactsWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZS_NEMO_CACHE", str(tmp_path))
    pyserini_wheel.sets_folder().mkdir(parents=True)
    topics = pyserini_wheel.sets_folder() / "topics.dpr.curated.test.txt"
    write_lines(topics, [{"question": "how tall", "answer": [r"20,?320\s*f(ee|oo)t"]}])
    name = "pyserini/curatedtrec:test"
    with pytest.raises(ValueError, match=r"data\.train holds curatedtrec/test/0000, whose gold answers are regular"):
        load_questions(DataConfig(train=[name]), facts_world)
    (question,) = load_questions(DataConfig(test=[name]), facts_world).test
    assert question.answers_are_patterns
    write_lines(topics, [{"question": "how tall", "answer": ["20(320"]}])
    with pytest.raises(ValueError, match=r"curated\.test\.txt:1: has the gold answer '20\(320', which is no regular"):
        load_questions(DataConfig(test=[name]), facts_world)


def test_rows_that_may_be_skipped_are_told_and_kept_in_mind(facts_world: FactsWorld, tmp_path: Path) -> None:
    path, told = write_lines(tmp_path / "nq_test.jsonl", [flashrag(0, "q", "a"), flashrag(1, "r")]), []
    source = load_questions(DataConfig(test=[str(path)], max_skipped_rows=1), facts_world, told.append)
    assert len(source.test) == 1
    assert [str(row) for row in source.skipped] == [f"{path}:2: has no gold answer"]
    assert told == [f"left out {path}:2: has no gold answer"]
