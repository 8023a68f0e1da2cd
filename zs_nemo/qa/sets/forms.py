"""The forms in which QA sets are published, told apart by their columns, and what a row of each says."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from zs_nemo.qa.rewards import compiled_pattern
from zs_nemo.qa.sets.reference import SPLITS, clean_name

_NUMBERED = re.compile(rf"({'|'.join(SPLITS)})[_-](\d+)")
"""FlashRAG's identifiers, such as ``test_17``."""
_LOST = "\N{REPLACEMENT CHARACTER}"
"""What decoders put where they could not read a text."""
_ASKED = "Question:"
"""What stands before the question in Search-R1's prompt."""


class Form(Enum):
    """A form by the columns that tell it."""

    zerosearch = ("question", "golden_answers", "prompt", "reward_model")
    search_r1 = ("prompt", "reward_model")
    flashrag = ("question", "golden_answers")
    dpr = ("question", "answer")


COLUMNS = ("id", "question", "golden_answers", "answer", "data_source", "prompt", "reward_model", "extra_info")
"""All columns that any form is read from."""
_TITLES = {
    Form.zerosearch: "ZeroSearch",
    Form.search_r1: "Search-R1",
    Form.flashrag: "FlashRAG",
    Form.dpr: "DPR",
}


@dataclass(frozen=True, kw_only=True)
class RawQuestion:
    """What one row says, before it has a place among other questions."""

    text: str
    answers: tuple[str, ...]
    name: str = ""
    """Of the set; empty if the row does not say."""
    split: str = ""
    """As the row calls it; empty if it does not say."""
    number: str = ""
    """The row's own identifier within set and split, which holds wherever the row is copied; empty if it has none."""


class RowError(ValueError):
    """A row that does not hold what its form promises."""


def detect_form(columns: Collection[str], where: str) -> Form:
    """Return the form that has these columns; raise ``ValueError`` saying what was found and what is understood."""
    for form in Form:
        if set(form.value) <= set(columns):
            return form
    understood = "; ".join(f"{_TITLES[form]}: {', '.join(form.value)}" for form in reversed(Form))
    found = ", ".join(sorted(map(str, columns))) or "(none)"
    raise ValueError(
        f"{where} has the columns {found}, which is no form that is understood ({understood}); rename the columns"
    )


def read_row(form: Form, values: Mapping[str, Any], *, patterns: bool = False) -> RawQuestion:
    """Read one row of a form; raise ``RowError`` with what it lacks. ``patterns``: the answers are regular expressions.

    Gold answers are left out that no answer could match: blank ones, which everything would contain, and those of which
    an earlier conversion has lost characters. A row that has no others is an error. What is there twice is kept once.
    """
    answers = _answers(_ANSWERS[form](values))
    if patterns:
        _check_patterns(answers)
    named, asked = values.get("data_source"), values.get("question")
    extra = values.get("extra_info")
    split, number = _own_number(values.get("id"), extra if isinstance(extra, Mapping) else {})
    return RawQuestion(
        text=_text(_asked_in_prompt(values.get("prompt")) if form is Form.search_r1 and not asked else asked),
        answers=answers,
        name=clean_name(named) if isinstance(named, str) else "",
        split=split,
        number=number,
    )


def _target(values: Mapping[str, Any]) -> Any:
    """Return what the published trainers grade by."""
    model = values.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    if isinstance(truth, Mapping):
        return truth.get("target")
    if truth is None:
        raise RowError("lacks reward_model.ground_truth")
    return truth


_ANSWERS: dict[Form, Callable[[Mapping[str, Any]], Any]] = {
    Form.zerosearch: _target,
    Form.search_r1: _target,
    Form.flashrag: lambda values: values.get("golden_answers"),
    Form.dpr: lambda values: values.get("answer"),
}


def _answers(value: Any) -> tuple[str, ...]:
    listed = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        raise RowError(f"has gold answers of the type {type(value).__name__} instead of a list of texts")
    if strange := [answer for answer in listed if not isinstance(answer, str)]:
        raise RowError(f"has the gold answer {strange[0]!r}, which is no text")
    given = dict.fromkeys(_encodable(answer).strip() for answer in listed if answer.strip())
    kept = tuple(answer for answer in given if _LOST not in answer)
    if not kept:
        raise RowError(
            f"has gold answers with lost characters alone ({listed[0]!r})" if given else "has no gold answer"
        )
    return kept


def _check_patterns(answers: tuple[str, ...]) -> None:
    for answer in answers:
        try:
            compiled_pattern(answer)
        except re.error as error:
            raise RowError(f"has the gold answer {answer!r}, which is no regular expression ({error})") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError("has no question")
    return " ".join(_encodable(value).split())


def _encodable(text: str) -> str:
    """Return the text; raise ``RowError`` for one that JSON lets pass and that no file or tokenizer could take."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"holds half a character ({text[error.start]!a}) in {text[:40]!a}") from error
    return text


def _asked_in_prompt(prompt: Any) -> str:
    """Return the question that ends Search-R1's prompt, a list of chat messages."""
    messages = [prompt] if isinstance(prompt, Mapping) else prompt
    contents = [
        message["content"]
        for message in (messages if isinstance(messages, list | tuple) else ())
        if isinstance(message, Mapping) and isinstance(message.get("content"), str) and message.get("role") == "user"
    ]
    found = [content.rpartition(_ASKED)[2] for content in contents if _ASKED in content]
    if not found:
        raise RowError(f"has no message of the user with {_ASKED!r} in its prompt, and no column question")
    return found[-1]


def _own_number(identifier: Any, extra: Mapping[str, Any]) -> tuple[str, str]:
    """Return split and number by which the row knows itself.

    FlashRAG's identifier comes first: Search-R1 says ``test`` of all rows that it tests on, and some are of ``dev``.
    """
    if isinstance(identifier, str) and identifier.strip():
        if match := _NUMBERED.fullmatch(identifier.strip()):
            return match[1], f"{int(match[2]):04d}"
        number = re.sub(r"[\s/]+", "_", identifier.strip())
    elif isinstance(identifier, int):
        number = f"{identifier:04d}"
    else:
        index = extra.get("index")
        number = f"{index:04d}" if isinstance(index, int) else ""
    split = extra.get("split")
    return (split if isinstance(split, str) and split in SPLITS else ""), number
