"""The folder of a run's checkpoints: which are whole, which is newest, which go. Knows nothing of what is inside."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from zs_nemo.observability.files import CHECKSUMS, read_json, wrong_length
from zs_nemo.observability.run_dir import package_versions

_LOGGER = logging.getLogger(__name__)
POLICY, CRITIC = "policy", "critic"
"""Folders of a checkpoint."""
CURRICULUM = "curriculum"
"""Key of the curriculum's state in a checkpoint's state."""
EPISODES = "episodes"
"""Key of what belongs to the episodes that were under way; there only with ``rollout.max_staleness``."""
FORMAT = 1
"""Of what a checkpoint holds. Raise it where older code cannot go on from a new one, or new code from an old one."""
STATE_FILE = "driver_state.json"
"""Written last: a checkpoint without it was torn by a crash."""


class CheckpointFolder:
    """Checkpoints ``step_NNNNNN`` under one root. ``step`` counts finished steps: the run goes on with that one."""

    def __init__(self, root: Path, *, keep: int) -> None:
        """``keep`` newest checkpoints stay, at least 1."""
        self._root = root
        self._keep = keep
        root.mkdir(parents=True, exist_ok=True)

    def begin(self, step: int) -> Path:
        """Return an empty folder to be filled; ``commit`` makes a checkpoint of it."""
        partial = self._path(step).with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        return partial

    def commit(self, step: int, state: dict[str, Any]) -> Path:
        """Add ``state`` to the folder of ``begin``, and only then give it its name; older checkpoints go."""
        final = self._path(step)
        partial = final.with_suffix(".partial")
        with open(partial / STATE_FILE, "w", encoding="utf-8") as file:
            json.dump({"step": step, "format": FORMAT, "version": _version()} | state, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync_folder(self._root)
        # A later one was passed over as damaged, and is none to be kept in place of those that can be gone on from.
        for old in [each for each in self.whole() if each <= step][: -self._keep]:
            _remove(self._path(old))
        return final

    def whole(self) -> list[int]:
        """Return the steps of whole checkpoints, oldest first. Torn ones are passed over."""
        named = ((re.fullmatch(r"step_(\d+)", path.name), path) for path in self._root.iterdir())
        return sorted(int(match[1]) for match, path in named if match and (path / STATE_FILE).is_file())

    def check(self) -> None:
        """Raise ``ValueError`` when there are checkpoints and none to go on from, as far as a glance can tell.

        Looked at are the newest one's format, which must be this code's, and the lengths of files.
        """
        self._check_format()
        problems = [_cut_short(self._path(step)) for step in reversed(self.whole())]
        if problems and all(problems):
            raise self._nothing_to_go_on_from(f" ({problems[0]})")

    def _check_format(self) -> None:
        path, state = next(self.newest_first(), (self._root, {}))
        found = state.get("format", FORMAT)
        if found != FORMAT:
            raise ValueError(
                f"checkpoint {path} was written by zs-nemo {state.get('version', '(unknown)')} in format {found}, "
                f"but this is zs-nemo {_version()}, which goes on from format {FORMAT}; resume it with the version "
                "that wrote it, or start a new run with another exp_manager.name and policy.model=the folder that "
                "recipes/export.py makes of the checkpoint"
            )

    def newest_first(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield the whole checkpoints and their states, without those whose state cannot be read."""
        for step in reversed(self.whole()):
            state, problem = _read_state(self._path(step))
            if not problem:
                yield self._path(step), state

    def newest_undamaged(
        self, damage_of: Callable[[Path, dict[str, Any]], list[str]], say: Callable[[str], None]
    ) -> tuple[Path, dict[str, Any]]:
        """Return the newest checkpoint in which ``damage_of`` finds nothing, and its state; ``say`` which are damaged.

        Raises ``ValueError`` when there is none: to begin anew would throw away what the damaged ones still hold.
        """
        for step in reversed(self.whole()):
            path = self._path(step)
            state, problem = _read_state(path)
            damage = [problem] if problem else damage_of(path, state)
            if not damage:
                return path, state
            say(f"passed over the damaged checkpoint {path}: {damage[0]}")
        raise self._nothing_to_go_on_from()

    def _nothing_to_go_on_from(self, reason: str = "") -> ValueError:
        return ValueError(
            f"no checkpoint under {self._root} is as it was written{reason}; put back a copy of one, or start a new "
            "run with another exp_manager.name"
        )

    def _path(self, step: int) -> Path:
        return self._root / f"step_{step:06d}"


def locate_policy(run_dir: Path, step: int | None = None) -> tuple[Path, dict[str, Any]]:
    """Return the policy's folder in a run's checkpoint, the newest without ``step``, and the run's ``policy`` settings.

    Raises ``ValueError`` when there is no such run or checkpoint.
    """
    config, root = run_dir / "config.yaml", run_dir / "checkpoints"
    if not config.is_file() or not root.is_dir():
        raise ValueError(
            f"{run_dir} is no run directory: config.yaml or checkpoints/ is missing; give the folder "
            "exp_manager.exp_dir/exp_manager.name of a run that has begun, or a checkpoint together with --model"
        )
    folder = CheckpointFolder(root, keep=1)
    steps = folder.whole()
    chosen = step if step is not None else max(steps, default=None)
    if chosen not in steps:
        asked = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        raise ValueError(f"{run_dir} does not hold {asked}; it has those of steps {steps}")
    settings = OmegaConf.to_container(OmegaConf.load(config))
    assert isinstance(settings, dict)
    return root / f"step_{chosen:06d}" / POLICY, settings["policy"]


def _read_state(path: Path) -> tuple[dict[str, Any], str]:
    """Return the state of a checkpoint, and why it cannot be read, if so."""
    try:
        return json.loads((path / STATE_FILE).read_text(encoding="utf-8")), ""
    except (OSError, ValueError) as error:
        return {}, f"{path / STATE_FILE} cannot be read ({error})"


def _cut_short(path: Path) -> str:
    """Return which file of a checkpoint is missing or of another length than was written; "" if none is known to be."""
    problem = _read_state(path)[1]
    for part in (POLICY, CRITIC):
        try:
            files = read_json(path / part / CHECKSUMS, {})
        except (OSError, ValueError) as error:
            return f"{path / part / CHECKSUMS} cannot be read ({error})"
        for name, entry in files.items():
            problem = problem or wrong_length(path / part / name, entry["bytes"]) or ""
    return problem


def _remove(path: Path) -> None:
    """Delete a checkpoint; what cannot be deleted ends no run, and is none any more."""
    try:
        (path / STATE_FILE).unlink()
        # Of a file that is open somewhere NFS keeps a copy, and with it the folder.
        shutil.rmtree(path)
    except OSError as error:
        _LOGGER.warning("the old checkpoint %s is left, whole or in part, and can be deleted: %s", path, error)


def _version() -> str:
    return package_versions().get("zs-nemo", "(not installed)")


def _sync_folder(path: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
