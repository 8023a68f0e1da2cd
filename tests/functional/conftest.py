"""What several functional tests look at, made once."""

from pathlib import Path

import pytest

from tests.functional.test_grpo_recipe import finish, overrides, start


@pytest.fixture(scope="session")
def whole_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a run of the quickstart's recipe on the tiny model, without a break, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    output = finish(start(overrides(tiny_model, folder, "whole")))
    return folder / "whole", output
