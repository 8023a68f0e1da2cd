"""Judged searches on disk: what is written in either form is read back as it was."""

import re
from pathlib import Path

import duckdb
import pytest

from tests.fakes import CharTokenizer
from zs_nemo.config.collect import ExamplesFormat
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.search.example_files import COLUMNS, examples_file, read_examples, write_examples
from zs_nemo.search.tuning_examples import ExampleWriter
from zs_nemo.types.interaction import Interaction
from zs_nemo.types.search import Document

PAGE = Path(__file__).parents[3] / "docs" / "concepts" / "simulator.md"


def row(number: int = 0, **changes: object) -> dict[str, object]:
    interaction = Interaction(
        question_id=f"q{number}",
        question="Wo liegt Köln?",
        answers=("Germany", "Deutschland"),
        split="train",
        turn=number,
        query='the "city"\u2028\x00 of Köln',
        engine="bm25",
        documents=(
            Document(text="Köln lies\non the Rhine. </information>", id="d1", score=2.5),
            Document(text="x" * 9),
        ),
        prediction=None,
        outcome=0.5,
    )
    return interaction.to_row() | {"useful": number % 2 == 0} | changes


@pytest.mark.parametrize("form", ExamplesFormat)
def test_what_is_written_in_either_form_is_read_back_as_it_was(form: ExamplesFormat, tmp_path: Path) -> None:
    folder = tmp_path / "odd [a]'*"
    write_examples(folder, "train", [row(0), row(1)], form)
    path = examples_file(str(folder), "train")
    assert [file.name for file in folder.iterdir()] == [path.name] == [f"examples_train.{form.name}"]
    read = read_examples(path)
    assert [Interaction.from_row(each) for each in read] == [Interaction.from_row(row(number)) for number in (0, 1)]
    assert [each["useful"] for each in read] == [True, False]


def test_a_part_without_examples_has_its_columns_all_the_same(tmp_path: Path) -> None:
    write_examples(tmp_path, "held_out", [], ExamplesFormat.parquet)
    path = examples_file(str(tmp_path), "held_out")
    described = duckdb.sql(f"DESCRIBE FROM '{path}'").fetchall()
    assert {name: kind.replace('"', "") for name, kind, *_ in described} == COLUMNS
    assert read_examples(path) == []


def test_the_columns_are_the_fields_and_the_page_has_them_all() -> None:
    assert list(COLUMNS) == list(row())
    table = PAGE.read_text().partition("## What a collection holds")[2]
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE))
    assert told == COLUMNS


def test_a_parquet_file_of_ones_own_is_learned_from_and_a_wrong_row_of_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "examples_train.parquet"
    duckdb.sql(
        "COPY (SELECT 'q' AS question_id, 'Where?' AS question, ['Lima'] AS answers, 'train' AS split, 0 AS turn, "
        "'lima' AS query, [{'text': 'Lima is in Peru.'}] AS documents, useful, 7 AS more "
        f"FROM (VALUES (true), (NULL)) made(useful)) TO '{path}'"
    )
    rows = read_examples(examples_file(str(tmp_path), "train"))
    writer = ExampleWriter(
        SimulatedSearchConfig(template="tuned", max_sequence_tokens=4000),
        CharTokenizer(),
        end_of_text=3,
        demonstrations=None,
    )
    assert len(writer.write(rows[:1], seed=1, file=str(path))) == 1
    with pytest.raises(ValueError, match=r"examples_train\.parquet, row 2: useful is None .*mend or remove the row"):
        writer.write(rows, seed=1, file=str(path))


def test_a_folder_with_both_forms_of_a_part_is_refused_by_name(tmp_path: Path) -> None:
    for form in ExamplesFormat:
        (tmp_path / f"examples_train.{form.name}").touch()
    with pytest.raises(ValueError, match=r"holds both examples_train\.jsonl and examples_train\.parquet; remove the"):
        examples_file(str(tmp_path), "train")


def test_a_file_that_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "examples_train.parquet"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"examples_train\.parquet cannot be read as Parquet"):
        read_examples(path)
