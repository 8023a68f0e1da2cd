"""Documents in what a simulator writes: every form, and everything that can be wrong with it."""

import time

import pytest

from tests.fakes import CharTokenizer
from zs_nemo.qa.actions import parse_action
from zs_nemo.qa.tags import TAG_NAMES
from zs_nemo.rollout.documents import information_tokens
from zs_nemo.search.document_parser import DocumentBudget, mend, parse_documents
from zs_nemo.types.completion import ChatMessage, TextCompletion
from zs_nemo.types.generation import StopReason
from zs_nemo.types.search import Document

TWO = ("Lima is a city.", "Peru is a country.")
EVERY_TAG = "".join(f"<{name}>x</{name}>" for name in TAG_NAMES)


def written(text: str, stop_reason: StopReason = StopReason.end_of_text) -> TextCompletion:
    return TextCompletion(text=text, stop_reason=stop_reason, prompt_tokens=1, completion_tokens=1)


@pytest.mark.parametrize(
    "text",
    [
        "Doc 1: Lima is a city.\nDoc 2: Peru is a country.",
        "Doc 1: Lima is a city. Doc 2: Peru is a country.",
        "**Document 1:** Lima is a city.\n\n**Document 2:** Peru is a country.",
        "### Doc 1\n: Lima is a city.\n### Doc 2\n: Peru is a country.".replace("\n:", ":"),
        "### Doc 1\nLima is a city.\n\n### Doc 2\nPeru is a country.",
        "**Document 1**\nLima is a city.\n**Document 2**\nPeru is a country.",
        "[1] Lima is a city.\n[2] Peru is a country.",
        "[Doc 1] Lima is a city.\n[Doc 2] Peru is a country.",
        "1. Lima is a city.\n2. Peru is a country.",
        "1) Lima is\na city.\n\n2) Peru is a country.",
        "Sure! Here are two documents:\n\n1. Lima is a city.\n2. Peru is a country.",
        "Lima is a city.\nDoc 2: Peru is a country.",
        "- Lima is a city.\n- Peru is a country.",
        "* Lima is a city.\n* Peru is a country.",
        "Here they are:\nLima is a city.\nPeru is a country.",
        "Lima is a\ncity.\n\nPeru is a country.",
        "Lima is a city.\nPeru is a country.\n",
        "\r\nDoc 1: Lima is a city.\r\nDoc 2: Peru is a country.<|im_end|>",
    ],
)
def test_every_form_of_two_documents_is_read(text: str) -> None:
    assert parse_documents(written(text), 2) == (TWO, {})


def test_a_title_stays_with_its_document() -> None:
    text = 'Doc 1(Title: "Lima") Lima is a city.\nDoc 2(Title: "Peru") Peru is a country.'
    assert parse_documents(written(text), 2)[0][0] == '(Title: "Lima") Lima is a city.'


@pytest.mark.parametrize("text", ["3.5 million people live in Lima.", "1899. A year in Peru.", "1. FC Union"])
def test_a_number_that_counts_nothing_is_part_of_its_document(text: str) -> None:
    whole = f"Doc 1: Lima.\n{text}\nDoc 2: Peru."
    assert parse_documents(written(whole), 2)[0] == (f"Lima. {text}", "Peru.")


def test_one_document_may_have_several_lines() -> None:
    assert parse_documents(written("Lima is a city.\nIt lies in Peru."), 1)[0] == ("Lima is a city. It lies in Peru.",)


def test_fewer_documents_than_asked_for_and_more_are_counted() -> None:
    assert parse_documents(written("Doc 1: Lima.\nDoc 2: Peru."), 5) == (("Lima.", "Peru."), {"missing": 3})
    assert parse_documents(written("Doc 1: Lima.\nDoc 2: ...\nDoc 3: Peru."), 3) == (("Lima.", "Peru."), {"missing": 1})
    assert parse_documents(written("Doc 1: Lima.\nDoc 2: Peru.\nDoc 3: x"), 2) == (("Lima.", "Peru."), {"surplus": 1})


@pytest.mark.parametrize("text", ["", " \n ", "...", "<|im_end|>", "Doc 1:\nDoc 2:", "\ufffd\ud800"])
def test_nothing_at_all_is_counted_and_gives_no_document(text: str) -> None:
    documents, defects = parse_documents(written(text), 2)
    assert documents == () and defects["empty"] == 1 and "missing" not in defects
    assert mend(written(text))[1]["empty"] == 1 or text.startswith("Doc")


def test_a_completion_that_was_cut_loses_the_unfinished_end_of_its_last_document() -> None:
    text = "Doc 1: Lima is the capital of Peru.\nDoc 2: Peru lies on the coast. Its moun"
    documents, defects = parse_documents(written(text, StopReason.length), 3)
    assert documents == ("Lima is the capital of Peru.", "Peru lies on the coast.")
    assert defects == {"cut": 1, "missing": 1}


def test_what_repeats_the_prompt_is_removed() -> None:
    prompt = (ChatMessage(role="user", content="Write two passages that help.\nShort"),)
    text = "Write two passages  that help.\nLima is a city.\nPeru is a country."
    assert parse_documents(written(text), 2, prompt=prompt)[0] == TWO
    goes_on = "Doc 1: Lima is a city.\nDoc 2: Peru is a country.\n\nQuery: capital of Chad\nDoc 1: Chad is a country."
    assert parse_documents(written(goes_on), 2) == (TWO, {"prompt_echo": 1})


def test_thoughts_before_the_documents_are_removed() -> None:
    text = "<think>\nDoc 1: shall I?\n</think>\n\nDoc 1: Lima is a city.\nDoc 2: Peru is a country."
    assert parse_documents(written(text), 2) == (TWO, {"reasoning": 1})
    assert parse_documents(written("<think> Doc 1: I never end"), 2)[0] == ()
    thoughts_opened_by_the_template = "I think of a city.\n</think>\n\nLima is a city."
    assert parse_documents(written(thoughts_opened_by_the_template), 1)[0] == ("Lima is a city.",)
    (document,) = parse_documents(written("Lima is </think> a city."), 1)[0]
    assert document.startswith("Lima is ") and document.endswith(" a city.")


def test_every_control_tag_in_a_document_is_made_harmless_and_changes_nothing_that_is_parsed() -> None:
    documents, defects = parse_documents(written(f"Doc 1: Lima {EVERY_TAG}\nDoc 2: </inf\normation>Peru"), 2)
    assert defects["control_tag"] == 2 * len(TAG_NAMES) + 1
    assert not any(set("<>") & set(document) for document in documents)
    text, one = mend(written(f"Lima {EVERY_TAG}"))
    assert one["control_tag"] == 2 * len(TAG_NAMES)
    for document in (*documents, text):
        assert parse_action(document) is None
        block = CharTokenizer().decode(information_tokens((Document(text=document),), CharTokenizer(), 1000))
        assert block.count("<") == 2, "the block's own tags alone"


@pytest.mark.parametrize("broken", ["\ud800", "\udfff", "\ufffd", "\x00", "\x1b", "\uffff", "\ud83d \ud83d"])
def test_broken_characters_are_removed_and_the_text_can_be_encoded(broken: str) -> None:
    documents, defects = parse_documents(written(f"Doc 1: Li{broken}ma\nDoc 2: Peru"), 2)
    assert defects == {"broken_unicode": 1}
    assert documents[0].replace(" ", "") == "Lima" and documents[0].encode()
    assert mend(written(f"Li{broken}ma"))[1] == {"broken_unicode": 1}


def test_a_control_tag_cannot_hide_behind_a_broken_character() -> None:
    assert parse_documents(written("<ans\ufffdwer>Lima</ans\ud800wer>"), 1)[0] == ("(answer)Lima(answer)",)
    assert mend(written("<ans\ufffdwer>Lima"))[0] == "(answer)Lima"


def test_whole_characters_of_other_scripts_stay() -> None:
    text = "東京 is Tōkyō, \U0001f5fc stands there; नमस्ते"
    assert parse_documents(written(text), 1) == ((text,), {})


@pytest.mark.parametrize(
    "text",
    [
        "word " * 20_000,
        "x" * 100_000,
        "<" + " " * 100_000,
        "< " * 50_000,
        "<" * 100_000,
        "Text that mentions " * 5_000,
        "Doc 1: " * 14_000,
        "1. " * 33_000,
        "\n" * 100_000,
        "<|" * 50_000,
        "<think>" * 14_000,
        "\n- " * 33_000,
        "." * 100_000,
        "a. " * 33_000,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_100_000_characters_of_anything_take_no_time_and_fit_the_budget(text: str) -> None:
    budget = DocumentBudget(max_tokens=50)
    began = time.process_time()
    for stop_reason in StopReason:
        documents, defects = parse_documents(written(text, stop_reason), 3, budget=budget)
        document, _ = mend(written(text, stop_reason), budget)
        assert all(len(each) <= 200 for each in (*documents, document))
        assert defects.total()
    assert time.process_time() - began < 3.0


def test_more_than_can_be_a_completion_is_not_looked_at() -> None:
    documents, defects = parse_documents(written("word " * 1_000_000), 1)
    assert len(documents[0]) <= 200_000 and defects["too_long"] == defects["cut"] == 1


def test_a_document_over_its_budget_ends_at_a_whole_sentence_or_word() -> None:
    budget = DocumentBudget(max_tokens=30, tokenizer=CharTokenizer())
    text = "Doc 1: Lima is the capital. It lies at the sea.\nDoc 2: A short one."
    documents, defects = parse_documents(written(text), 2, budget=budget)
    assert documents == ("Lima is the capital.", "A short one.") and defects == {"too_long": 1}
    assert DocumentBudget(max_tokens=2).cut("one twosome") == "one"
