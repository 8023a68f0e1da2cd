import shutil
from pathlib import Path

import pytest

from zs_nemo.refit.shared_memory import SharedMemoryRefit


class Policy:
    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def export_refit(self, path: str) -> None:
        Path(path).write_text("weights")
        if self._error is not None:
            raise self._error


class Engines:
    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.loaded: list[tuple[str, int]] = []

    def load_weights(self, path: str, version: int) -> None:
        if self._error is not None:
            raise self._error
        self.loaded.append((Path(path).read_text(), version))


def test_the_engines_read_what_the_policy_wrote_and_the_file_is_gone(tmp_path: Path) -> None:
    engines = Engines()
    refit = SharedMemoryRefit(Policy(), engines, tmp_path, num_bytes=100)
    refit.refit(4)
    refit.refit(5)
    assert engines.loaded == [("weights", 4), ("weights", 5)]
    assert list(tmp_path.iterdir()) == []
    tmp_path.rmdir()
    refit.refit(6)
    assert engines.loaded[-1] == ("weights", 6)


@pytest.mark.parametrize("failing", ["policy", "engines"])
def test_a_failure_on_either_side_is_raised_and_leaves_no_file(tmp_path: Path, failing: str) -> None:
    error = RuntimeError("no")
    policy = Policy(error if failing == "policy" else None)
    engines = Engines(error if failing == "engines" else None)
    with pytest.raises(RuntimeError, match="no"):
        SharedMemoryRefit(policy, engines, tmp_path, num_bytes=100).refit(1)
    assert list(tmp_path.iterdir()) == []
    assert engines.loaded == []


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    engines = Engines()
    too_much = shutil.disk_usage(tmp_path).free * 2
    with pytest.raises(OSError, match=r"refit needs .* are free"):
        SharedMemoryRefit(Policy(), engines, tmp_path, num_bytes=too_much).refit(1)
    assert engines.loaded == []
