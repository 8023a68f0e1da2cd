"""An engine that takes a dead one's place gets its weights beside a refit of all; the processes are stand-ins."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zs_nemo.cluster import engine_pool, system
from zs_nemo.cluster.engine_pool import EnginePool
from zs_nemo.cluster.roles import RoleError
from zs_nemo.cluster.system import System
from zs_nemo.cluster.waking_hours import WakingHours
from zs_nemo.config.recipe import GrpoRecipeConfig


class Engine:
    """Reads the files that it is to load."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loaded: list[int] = []

    def submit(self, method: str, path: str, version: int) -> Callable[[], None]:
        def load() -> None:
            assert method == "load_weights" and Path(path).read_text() == "weights"
            self.loaded.append(version)

        return load


class Policy:
    """Writes a file where the ranks export weights."""

    def export_refit(self, path: str) -> None:
        Path(path).write_text("weights")


def call_all(roles: Sequence[Engine], references: Sequence[Callable[[], None]], *_: object) -> list[None]:
    """Do what ``roles.gather`` does."""
    return [reference() for reference in references]


@pytest.fixture
def system_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Engine], Any], System]:
    """Make a system of these engines, as it is after its start, with what puts others in their place."""
    monkeypatch.setattr(engine_pool, "gather", call_all)
    monkeypatch.setattr(system, "engine_weight_bytes", lambda setup: 1)

    def made(engines: list[Engine], replacer: Any) -> System:
        handle = object.__new__(System)
        handle._cfg = GrpoRecipeConfig()
        handle._layout = SimpleNamespace(policy_engines=[None], num_ranks=1)  # type: ignore[assignment]
        handle._session = SimpleNamespace(shm_folder=tmp_path, num_machines=1)  # type: ignore[assignment]
        handle._one_load = threading.Lock()
        handle._waking_hours = WakingHours([], [])
        handle.policy = Policy()  # type: ignore[assignment]
        handle.generation = EnginePool(
            engines,  # type: ignore[arg-type]
            [1] * len(engines),
            replacer=replacer,
            load_weights=handle._load_weights,
        )
        handle._refit = handle._build_refit()
        return handle

    return made


def test_an_engine_that_starts_during_a_refit_of_all_takes_no_weights_from_them(
    system_of: Callable[[list[Engine], Any], System], tmp_path: Path
) -> None:
    dead, other, new = Engine("engine-0"), Engine("engine-1"), Engine("engine-0")

    def replace(_: Engine) -> Engine:
        # It is ready when the refit of all has written its file and told the version.
        while handle.generation._version != 5:
            time.sleep(0.001)
        return new

    handle = system_of([dead, other], SimpleNamespace(claim=lambda error: None, replace=replace))
    handle.refit(4)
    error = RoleError("engine-0 died")
    error.died = True
    # A request of the next step's collection has found it out.
    handle.generation._lose(handle.generation._engines[0], dead, error)  # type: ignore[arg-type]
    handle.refit(5)
    assert (new.loaded, other.loaded) == ([5, 5], [4, 5])
    assert handle.generation.num_replaced == 1 and list(tmp_path.iterdir()) == []
