import os
import threading
import time
from pathlib import Path

import pytest

from tests.unit.cluster.test_engine_pool import CalledRole, FakeReplacer, death, wait_for
from zs_nemo.cluster import watchdog as module
from zs_nemo.cluster.engine_pool import EnginePool
from zs_nemo.cluster.processes import Place
from zs_nemo.cluster.roles import Role
from zs_nemo.cluster.stop_request import PROCESS_STOP
from zs_nemo.cluster.watchdog import DriverHangs, Watchdog
from zs_nemo.observability.faults import FaultLog


class FakeRole(Role):
    """Has processes that nobody can see."""

    def __init__(self, name: str, *, started: bool = True) -> None:
        super().__init__(name, None, Path(f"{name}.log"))
        self.place = Place(node_id="n", host="node7", processes=()) if started else None
        self.asked_for_stacks = 0
        self.ended = threading.Event()

    def ask_for_stacks(self) -> None:
        self.asked_for_stacks += 1

    def end(self) -> None:
        self.ended.set()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WRITING_S", 0.01)


def test_a_silent_role_is_ended_after_all_have_written_their_stacks(tmp_path: Path) -> None:
    silent, busy, starting = FakeRole("rank"), FakeRole("engine"), FakeRole("new", started=False)
    faults = FaultLog()
    dog = Watchdog(lambda: [silent, busy, starting], 0.1, tmp_path, faults)
    for role in (silent, busy, starting):
        role.silence.asked()
    dog.start()
    while not silent.ended.is_set():
        busy.silence.answered()
        busy.silence.asked()
        time.sleep(0.01)
    silent.silence.answered()
    dog.close()
    assert silent.asked_for_stacks and busy.asked_for_stacks
    assert not busy.ended.is_set() and not starting.ended.is_set(), "a start has a limit of its own"
    assert {(row["kind"], row["role"], row["host"]) for row in faults.rows} == {("hang", "rank", "node7")}
    stacks = (tmp_path / "driver_stacks.log").read_text()
    assert "test_a_silent_role_is_ended" in stacks and "_watch" in stacks


@pytest.mark.parametrize("answers", [True, False])
def test_a_silent_role_is_ended_also_where_the_stacks_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setattr(module, "_OWN_WRITING_S", 0.05)
    logs = tmp_path / "logs"
    if not answers:
        # To open it blocks, like a file on a server that is gone, until somebody reads.
        logs.mkdir()
        os.mkfifo(logs / "driver_stacks.log")
    silent = FakeRole("rank")
    dog = Watchdog(lambda: [silent], 0.1, logs, FaultLog())
    silent.silence.asked()
    dog.start()
    try:
        assert silent.ended.wait(10)
    finally:
        dog.close()
        if not answers:
            with open(os.open(logs / "driver_stacks.log", os.O_RDONLY | os.O_NONBLOCK)):
                pass


def test_an_engine_is_found_by_a_limit_of_its_own_which_the_record_names(tmp_path: Path) -> None:
    engine, rank = FakeRole("engine"), FakeRole("rank")
    engine.hang_timeout_s = 0.05
    faults = FaultLog()
    dog = Watchdog(lambda: [engine, rank], 60.0, tmp_path, faults)
    for role in (engine, rank):
        role.silence.asked()
    time.sleep(0.1)
    assert dog.silent_roles() == [engine]
    dog._end([engine])
    assert engine.ended.is_set() and not rank.ended.is_set()
    (row,) = faults.rows
    assert "0.05 are allowed, by rollout.trajectory_deadline_s" in row["reason"]


def test_a_driver_that_stands_still_in_a_step_is_woken_with_its_stacks_written(tmp_path: Path) -> None:
    dog = Watchdog(list, 0.1, tmp_path, FaultLog())
    dog.start()
    time.sleep(0.3)
    with pytest.raises(DriverHangs, match=r"faults\.hang_timeout_s"), PROCESS_STOP.in_step():
        time.sleep(20)
    dog.close()
    assert "test_a_driver_that_stands_still" in (tmp_path / "driver_stacks.log").read_text()


def test_a_driver_that_waits_for_an_answer_or_gets_answers_is_at_work(tmp_path: Path) -> None:
    role = FakeRole("rank")
    dog = Watchdog(lambda: [role], 0.2, tmp_path, FaultLog())
    role.silence.asked()
    with PROCESS_STOP.in_step():
        time.sleep(0.25)
        assert not dog._driver_stands_still()
        role.silence.answered()
        assert not dog._driver_stands_still()
        time.sleep(0.25)
        assert dog._driver_stands_still()


def test_a_driver_that_waits_for_an_engine_s_successor_to_start_is_at_work(tmp_path: Path) -> None:
    dead, go = CalledRole("engine"), threading.Event()
    replacer = FakeReplacer(1, start=lambda: wait_for(go), new=CalledRole)
    pool = EnginePool([dead], [1], replacer=replacer)  # type: ignore[list-item, arg-type]
    dog = Watchdog(list, 0.1, tmp_path, FaultLog(), lambda: pool.is_replacing)
    with PROCESS_STOP.in_step():
        pool._lose(pool._engines[0], pool.roles[0], death())
        for _ in range(4):
            time.sleep(0.05)
            assert not dog._driver_stands_still()
        go.set()
        pool._settle()
        time.sleep(0.15)
        assert dog._driver_stands_still()


def test_nobody_looks_with_a_timeout_of_zero(tmp_path: Path) -> None:
    dog = Watchdog(list, 0.0, tmp_path, FaultLog())
    dog.start()
    assert not dog._thread.is_alive()
