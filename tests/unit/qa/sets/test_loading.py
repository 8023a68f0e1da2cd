"""Sets of other people's making: every form is read right, and what is wrong with a row is named by its place."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.qa.sets.files import flashrag, load, search_r1, write_lines, write_parquet, zerosearch
from zs_nemo.qa.sets.loading import load_set
from zs_nemo.qa.sets.reference import parse_reference
from zs_nemo.qa.sets.rows import SkipBudget
from zs_nemo.types.question import Question

WHO = ("who wrote Nijinsky's diary", "Vaslav Nijinsky", "Nijinsky")


@pytest.mark.parametrize("make", [flashrag, search_r1, zerosearch])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_same_question_is_read_from_every_form_and_kind_of_file(make: Any, suffix: str, tmp_path: Path) -> None:
    write = write_lines if suffix == "jsonl" else write_parquet
    path = write(tmp_path / "nq" / f"test.{suffix}", [make(0, *WHO), make(17, "où est l'été ?", "là")])
    first, second = load(path)
    assert first == Question(
        id="nq/test/0000", text=WHO[0], answers=("Vaslav Nijinsky", "Nijinsky"), kind="nq", split="test"
    )
    assert (second.id, second.text, second.answers) == ("nq/test/0017", "où est l'été ?", ("là",))


def test_dpr_s_rows_have_no_identifier_and_are_numbered(tmp_path: Path) -> None:
    rows = [{"question": "q one", "answer": ["a"]}, {"question": "q two", "answer": "b"}]
    questions = load(write_lines(tmp_path / "webquestions_test.jsonl", rows))
    assert [(question.id, question.answers) for question in questions] == [
        ("webquestions/test/0000", ("a",)),
        ("webquestions/test/0001", ("b",)),
    ]


def test_a_file_of_several_sets_gives_each_its_name_and_ids_that_do_not_collide(tmp_path: Path) -> None:
    rows = [search_r1(0, "q a?", "a", name="nq"), search_r1(0, "q b?", "b", name="hotpotqa")]
    questions = load(write_parquet(tmp_path / "test.parquet", rows))
    assert [(question.id, question.kind) for question in questions] == [
        ("nq/test/0000", "nq"),
        ("hotpotqa/test/0000", "hotpotqa"),
    ]


def test_a_row_copied_out_of_its_set_keeps_its_identifier(tmp_path: Path) -> None:
    whole = [flashrag(number, f"q {number}", "a", split="dev") for number in range(3)]
    all_of_them = load(write_lines(tmp_path / "hotpotqa" / "dev.jsonl", whole))
    part = load(write_lines(tmp_path / "part" / "hotpotqa" / "dev.jsonl", whole[2:]))
    # Search-R1 tests on hotpotqa's dev split and calls it test.
    peers = load(write_lines(tmp_path / "test.jsonl", [zerosearch(2, "q 2", "a", name="hotpotqa", split="dev")]))
    assert part == all_of_them[2:] == peers
    assert part[0].id == "hotpotqa/dev/0002" and part[0].split == "validation"


def test_the_split_of_a_file_that_does_not_say_is_what_it_is_used_for(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "mine.jsonl", [{"question": "q", "golden_answers": ["a"]}])
    assert load(path, default_split="train")[0].id == "mine/train/0000"
    assert load(path, default_split="test")[0].id == "mine/test/0000"


def test_blank_lost_and_repeated_gold_answers_are_left_out(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "nq_test.jsonl", [flashrag(0, "q", "a", " ", "a", " b ", "\ufffd")])
    assert load(path)[0].answers == ("a", "b")


BAD_ROWS = {
    "has no gold answer": flashrag(1, "q"),
    "has no question": {**flashrag(1, " ", "a")},
    "byte 14 is not UTF-8": b'{"question": "\xe9t\xe9", "golden_answers": ["a"]}',
    "is not JSON": b'{"question": "q", "golden_answers": ["a"]',
    "is not a JSON object but a list": b"[1]",
    "has gold answers of the type int": {**flashrag(1, "q"), "golden_answers": 5},
    "has the gold answer 5, which is no text": {**flashrag(1, "q"), "golden_answers": [5]},
    "holds half a character": b'{"question": "q", "golden_answers": ["a \\ud83d"]}',
    "has gold answers with lost characters alone": flashrag(1, "q", "caf\N{REPLACEMENT CHARACTER}"),
    "has the identifier nq/test/0000 that": flashrag(0, "another q", "a"),
}


@pytest.mark.parametrize(("reason", "row"), BAD_ROWS.items(), ids=BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line_and_stops_unless_it_may_be_skipped(
    reason: str, row: Any, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "nq" / "test.jsonl", [flashrag(0, "q", "a"), row, flashrag(2, "r", "b")])
    with pytest.raises(ValueError, match=rf"1 rows cannot be used \(.*test\.jsonl:2: {reason}") as caught:
        load(path)
    assert "data.max_skipped_rows=1" in str(caught.value)
    assert [question.id for question in load(path, 1)] == ["nq/test/0000", "nq/test/0002"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**search_r1(0, "q", "a"), "reward_model": {"style": "rule"}}, r"lacks reward_model\.ground_truth"),
        ({**search_r1(0, "q", "a"), "prompt": [{"role": "user", "content": "q"}]}, "no message of the user with"),
        ({**search_r1(0, "q"), "prompt": "Question: q"}, "has no gold answer"),
    ],
)
def test_a_bad_row_of_search_r1_says_what_it_lacks(row: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"x\.jsonl:1: .*{reason}"):
        load(write_lines(tmp_path / "x.jsonl", [row]))


def test_a_bad_row_of_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    rows = [flashrag(0, "q", "a"), {**flashrag(1, "r"), "golden_answers": []}, flashrag(2, "s", "c")]
    with pytest.raises(ValueError, match=r"test\.parquet, row 2: has no gold answer"):
        load(write_parquet(tmp_path / "nq" / "test.parquet", rows))


def test_the_skip_budget_is_for_all_sets_together(tmp_path: Path) -> None:
    budget, told = SkipBudget(1), []
    for name in ("nq", "popqa"):
        path = write_lines(tmp_path / name / "test.jsonl", [flashrag(0, "q", "a"), flashrag(1, "no answer")])
        reference = parse_reference(str(path))
        if name == "nq":
            load_set(reference, budget, default_split="test", say=told.append)
    with pytest.raises(ValueError, match=r"2 in all sets so far.*leave them out with data\.max_skipped_rows=2"):
        load_set(reference, budget, default_split="test", say=told.append)
    assert len(told) == 1 and "nq/test.jsonl:2: has no gold answer" in told[0]


def test_a_form_that_is_not_known_is_refused_with_what_was_found_and_what_would_do(tmp_path: Path) -> None:
    for path in (
        write_lines(tmp_path / "a.jsonl", [{"query": "q", "reply": "a"}]),
        write_parquet(tmp_path / "b.parquet", [{"query": "q", "reply": "a"}]),
    ):
        with pytest.raises(ValueError, match=r"has the columns query, reply.*FlashRAG: question, golden_answers"):
            load(path)


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"empty\.jsonl' holds no question"):
        load(write_lines(tmp_path / "empty.jsonl", []))
    only_bad = write_lines(tmp_path / "bad.jsonl", [flashrag(0, "q")])
    with pytest.raises(ValueError, match=r"bad\.jsonl' holds no question"):
        load(only_bad, 5)


def test_other_encodings_of_a_whole_file_are_told_and_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "nq_test.jsonl", [flashrag(0, "q", "a")])
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert load(path)[0].text == "q"
    path.write_text(path.read_text(encoding="utf-8-sig"), encoding="utf-16")
    with pytest.raises(ValueError, match=r"UTF-16; convert it: iconv"):
        load(path)


def test_a_file_that_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "nq_test.parquet"
    path.write_bytes(b"PAR1 but then nothing that follows it")
    with pytest.raises(ValueError, match=r"nq_test\.parquet cannot be read as Parquet"):
        load(path)


def test_a_path_with_characters_of_patterns_is_one_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a1" / "nq_test.parquet", [flashrag(0, "wrong", "a")])
    path = write_parquet(tmp_path / "a[1]*" / "nq_test.parquet", [flashrag(0, "right", "a")])
    assert [question.text for question in load(path)] == ["right"]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl' is no file on this machine"):
        load(tmp_path / "nowhere.jsonl")


def test_no_set_may_pass_for_the_facts_world(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "facts.jsonl", [{"question": "q", "golden_answers": ["a"]}])
    with pytest.raises(ValueError, match=r"name the file after the set"):
        load(path)
