"""Finds what the policy asked for in the text of one turn. Only text that the policy wrote ever gets here."""

from dataclasses import dataclass

from zs_nemo.qa.tags import ANSWER_CLOSE, ANSWER_OPEN, SEARCH_CLOSE, SEARCH_OPEN


@dataclass(frozen=True)
class SearchAction:
    """The turn ended in a search."""

    query: str


@dataclass(frozen=True)
class AnswerAction:
    """The turn ended in an answer."""

    answer: str


def parse_action(text: str) -> SearchAction | AnswerAction | None:
    """Return the action that ``text`` ends in, or None.

    Generation stops at the first closing tag, so there is at most one. The action's text runs from the last opening
    tag of its kind: ``<search>a<search>b</search>`` asks for ``b``. Empty queries and answers are no action.
    """
    found = [(position, tag) for tag in (SEARCH_CLOSE, ANSWER_CLOSE) if (position := text.find(tag)) >= 0]
    if not found:
        return None
    end, closing = min(found)
    opening = SEARCH_OPEN if closing == SEARCH_CLOSE else ANSWER_OPEN
    start = text.rfind(opening, 0, end)
    content = " ".join(text[start + len(opening) : end].split()) if start >= 0 else ""
    if not content:
        return None
    return SearchAction(content) if closing == SEARCH_CLOSE else AnswerAction(content)
