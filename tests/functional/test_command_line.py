"""The recipe's command line before anything starts: its help, and what it refuses."""

import time

import pytest

from tests.functional.test_grpo_recipe import finish, start


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_step=3", "max_step"),
        ("policy.model=no/such/folder", "policy.model"),
        ("rollout.max_sequence_tokens=100", "rollout.max_sequence_tokens=100"),
    ],
)
def test_bad_input_is_refused_before_any_worker_starts(override, message, tmp_path):
    began = time.monotonic()
    process = start([override, f"exp_manager.exp_dir={tmp_path}"])
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert message in output and "Traceback" not in output
    assert time.monotonic() - began < 60
    assert not list(tmp_path.rglob("session_*"))


def test_help_answers_at_once():
    began = time.monotonic()
    output = finish(start(["--help"]), timeout_s=20)
    assert "max_steps" in output
    assert time.monotonic() - began < 8
