"""In which order engines and ranks take up and give up the memory that they share."""

from typing import Any, cast

import pytest

from zs_nemo.cluster.waking_hours import WakingHours

Log = list[str]


class Pool:
    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log, self.is_asleep = name, log, False

    def sleep(self) -> None:
        self.is_asleep = True
        self.log.append(f"{self.name} sleeps")

    def wake(self) -> None:
        self.is_asleep = False
        self.log.append(f"{self.name} wakes")


class Ranks:
    def __init__(self, log: Log) -> None:
        self.log = log

    def release_memory(self) -> None:
        self.log.append("ranks release")


@pytest.fixture
def log() -> Log:
    return []


@pytest.fixture
def pools(log: Log) -> list[Any]:
    return [Pool("policy", log), Pool("simulator", log)]


@pytest.fixture
def hours(log: Log, pools: list[Any]) -> WakingHours:
    return WakingHours(pools, [cast(Any, Ranks(log))])


def test_ranks_free_memory_before_engines_take_it_and_engines_before_ranks_go_on(log: Log, hours: WakingHours) -> None:
    hours.sleep()
    with hours:
        log.append("episodes")
    asleep = ["policy sleeps", "simulator sleeps"]
    assert log == [*asleep, "ranks release", "policy wakes", "simulator wakes", "episodes", *asleep]


def test_engines_that_a_refit_has_woken_stay_as_they_are(log: Log, pools: list[Any], hours: WakingHours) -> None:
    hours.sleep()
    hours.wake(pools[:1])
    hours.wake(pools[:1])
    assert log[2:] == ["ranks release", "policy wakes"]
    del log[:]
    with hours:
        pass
    assert log[:2] == ["ranks release", "simulator wakes"]


def test_after_an_error_nobody_is_sent_to_sleep(log: Log, hours: WakingHours) -> None:
    with pytest.raises(RuntimeError, match="a dead engine"), hours:
        raise RuntimeError("a dead engine")
    assert log == []
