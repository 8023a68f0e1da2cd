"""What several functional tests look at, made once."""

from pathlib import Path
from typing import Any

import pytest

from tests.functional.test_grpo_recipe import finish, overrides, start

# Files whose tests keep one core busy at most, and wait for nothing that must come within seconds; runs take all cores,
# and the memory of a small machine.
_LIGHT = {"test_command_line.py", "test_engine.py", "test_launch.py", "test_serve_search.py"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With processes of pytest-xdist: give the runs to one of them, in their order, and what is light to another."""
    from xdist.scheduler import LoadScopeScheduling

    class RunsInOneProcess(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder, _, file = nodeid.partition("::")[0].rpartition("/")
            if folder != "tests/functional":
                return f"{folder}/{file}"
            return "light" if file in _LIGHT else "runs"

    return RunsInOneProcess(config, log)


@pytest.fixture(scope="session")
def whole_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a run of the quickstart's recipe on the tiny model, without a break, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    output = finish(start(overrides(tiny_model, folder, "whole")))
    return folder / "whole", output
