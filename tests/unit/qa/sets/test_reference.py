import pytest

from zs_nemo.qa.sets.reference import (
    FLASHRAG,
    HUB_SETS,
    PUBLISHED_TEST_SETS,
    Place,
    name_of_file,
    parse_reference,
)


def test_the_seven_published_test_sets_are_known_and_lie_on_the_hub() -> None:
    references = [parse_reference(text) for text in PUBLISHED_TEST_SETS]
    assert {reference.name for reference in references} == set(HUB_SETS)
    assert {(reference.place, reference.repository) for reference in references} == {(Place.hub, FLASHRAG)}
    assert [reference.folder for reference in references] == [reference.name for reference in references]


def test_a_set_is_told_by_where_it_lies() -> None:
    assert parse_reference("facts:train").place is Place.facts
    wheel = parse_reference("pyserini/curatedtrec:test")
    assert (wheel.place, wheel.name, wheel.split) == (Place.wheel, "curatedtrec", "test")
    assert parse_reference("pyserini/nq_test.jsonl").place is Place.file


def test_a_data_set_on_the_hub_is_named_by_owner_name_folder_split_and_revision() -> None:
    whole = parse_reference("hub:RUC-NLPIR/FlashRAG_datasets/nq:test@0123abc")
    assert (whole.repository, whole.folder, whole.split, whole.revision) == (FLASHRAG, "nq", "test", "0123abc")
    assert whole.name == "nq"
    short = parse_reference("hub:Alibaba-NLP/ZeroSearch_dataset:train")
    assert (short.repository, short.folder, short.split) == ("Alibaba-NLP/ZeroSearch_dataset", "", "train")
    assert (short.revision, short.name) == ("main", "zerosearch_dataset")


@pytest.mark.parametrize(
    "text", ["nq", "nq:dev2", "bamboogle:train", "pyserini/popqa:test", "facts:dev", "natural:test"]
)
def test_a_name_that_is_not_known_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(ValueError, match=rf"'{text}' is unknown; known are .*bamboogle:test.*pyserini/nq:dev\|test"):
        parse_reference(text)


@pytest.mark.parametrize("text", ["hub:nq:test", "hub:owner/name", "hub:/name:test"])
def test_a_name_on_the_hub_that_lacks_a_part_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"must read hub:OWNER/NAME:SPLIT"):
        parse_reference(text)


def test_a_split_on_the_hub_that_no_question_can_belong_to_is_refused_before_it_is_fetched() -> None:
    with pytest.raises(ValueError, match=r"'test_hard' must be one of train, dev, validation, test.* give its path"):
        parse_reference("hub:owner/name:test_hard")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/nq/test.jsonl", ("nq", "test")),
        ("nq_test.jsonl", ("nq", "test")),
        ("My Set-dev.parquet", ("my_set", "dev")),
        ("bamboogle.jsonl", ("bamboogle", "")),
        ("test.jsonl", ("", "test")),
    ],
)
def test_a_file_is_named_after_its_set_and_split(path: str, expected: tuple[str, str]) -> None:
    assert name_of_file(path) == expected
