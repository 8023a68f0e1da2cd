"""What counts as an action in the policy's text."""

import pytest

from zs_nemo.qa.actions import AnswerAction, SearchAction, parse_action


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>x</think>\n<search>capital of\n France</search>", SearchAction("capital of France")),
        ("<answer> Paris </answer>", AnswerAction("Paris")),
        ("<search>a<search>b</search>", SearchAction("b")),
        ("<answer>a</answer><search>b</search>", AnswerAction("a")),
        ("<search>a</answer>", None),
        ("Paris</answer>", None),
        ("<search></search>", None),
        ("<SEARCH>a</SEARCH>", None),
        ("no tags", None),
        ("", None),
    ],
)
def test_the_first_closed_tag_decides(text, expected):
    assert parse_action(text) == expected
