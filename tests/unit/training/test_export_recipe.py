"""What ``recipes/export.py`` says and leaves when it cannot write."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from recipes import export
from zs_nemo.training import export as exporting


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_an_export_that_breaks_off_leaves_nothing_and_a_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: BaseException
) -> None:
    def half(_source: Path, _model: Path, target: Path, **_options: Any) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise failure

    monkeypatch.setattr(exporting, "export_checkpoint", half)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    target = tmp_path / "exported"
    code = export.main([str(tmp_path / "checkpoint"), str(target), "--model", str(tmp_path / "model")])
    # Left there, it would be refused by the next attempt and look like a model to others.
    assert not target.exists()
    said = capsys.readouterr().err
    if isinstance(failure, OSError):
        assert code == 1 and f"error: {target} was not written ([Errno 28] No space left on device)" in said
        assert "if the disk is full, free some room or name a folder elsewhere" in said
    else:
        assert code == 130 and "interrupted; nothing is left behind" in said
