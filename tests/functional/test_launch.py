"""The launch scripts from nothing: what a person reads when an installation cannot work."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_package_that_cannot_be_installed_is_named_with_the_remedy(tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    for folder in ("launch", "requirements"):
        shutil.copytree(ROOT / folder, clone / folder)
    shutil.copy(ROOT / "pyproject.toml", clone)
    # No index at all, as on a machine without a network.
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "ZS_NEMO_ACCELERATOR": "cpu"}
    tried = subprocess.run(
        [str(clone / "launch" / "quickstart.sh")],
        env={**os.environ, **offline, "ZS_NEMO_SKIP_CHECKS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert tried.returncode == 1
    assert "error: pip could not install setuptools==" in tried.stderr
    assert "PIP_EXTRA_INDEX_URL" in tried.stderr and "run the same command" in tried.stderr
    assert (clone / ".venv" / ".installed-runtime").read_text() == "cpu unfinished\n"
