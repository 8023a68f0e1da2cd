"""The command that builds the facts world, from its command line on."""

import subprocess
import sys
from pathlib import Path

import pytest

from recipes import build_facts as recipe


def test_help_is_answered_without_anything_being_built() -> None:
    ended = subprocess.run(
        [sys.executable, "recipes/build_facts.py", "--help"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0 and "python recipes/build_facts.py seed=1 num_test_questions=400" in ended.stdout


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("num_test_question=3", "unknown setting num_test_question: did you mean num_test_questions?"),
        ("nonsense=3", "unknown setting nonsense"),
        ("seed=x", "seed: Value 'x' of type 'str' could not be converted to Integer"),
        ("max_skipped_rows=-1", "data.max_skipped_rows=-1 must be 0 (none) or positive"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(typed: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main([typed]) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_settings_are_taken() -> None:
    assert recipe.data_settings(["seed=3", "num_test_questions=40"]).seed == 3
