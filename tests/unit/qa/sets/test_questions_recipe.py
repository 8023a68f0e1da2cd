"""The command that fetches and checks sets before a run."""

from pathlib import Path

import pytest

from recipes.questions import main
from tests.unit.qa.sets.files import flashrag, write_lines


def test_a_set_is_summed_up_with_its_hash_and_first_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(
        tmp_path / "nq" / "test.jsonl", [flashrag(0, "who", "Ann", "Anne"), flashrag(1, "where", "Rome")]
    )
    assert main([str(path), "--show", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:4] == ["nq/test", "2", "questions", "sha256"] and len(printed[0].split()[4]) == 64
    assert printed[1:] == ["    nq/test/0000: who -> Ann | Anne"]


def test_bad_rows_end_it_unless_they_may_be_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "nq_test.jsonl", [flashrag(0, "who", "Ann"), flashrag(1, "where")])
    assert main([str(path)]) == 1
    assert "nq_test.jsonl:2: has no gold answer" in capsys.readouterr().err
    assert main([str(path), "--max-skipped-rows", "1"]) == 0
    assert "1 rows left out" in capsys.readouterr().err


def test_without_a_set_the_known_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert {"2wikimultihopqa:train|dev", "pyserini/curatedtrec:test"} <= set(capsys.readouterr().out.splitlines())
    assert main(["facts:test"]) == 1
    assert "recipes/build_facts.py" in capsys.readouterr().err
