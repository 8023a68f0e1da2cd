"""An engine's time: batches, prompts, room."""

import math

import pytest

from zs_nemo.cluster.simulation.batching_engine import BatchingEngine, EngineSpeed, EngineWork


def engine(room: int = 8) -> BatchingEngine:
    """A step takes one second and a tenth for every sequence, a token of a prompt a hundredth."""
    return BatchingEngine(EngineSpeed(step_s=lambda batch: 1 + 0.1 * batch, prompt_token_s=0.01, room=room))


def ends(busy: BatchingEngine) -> dict[int, float]:
    """Let everything end; return when."""
    times = {}
    while (at := busy.next_s()) < math.inf:
        times |= dict.fromkeys(busy.finish(at), at)
    return times


def test_a_lone_request_takes_its_prompt_and_its_steps():
    one = engine()
    one.add(2.0, 0, EngineWork(prompt_tokens=100, new_tokens=10))
    assert ends(one) == {0: pytest.approx(2 + 1 + 10 * 1.1)}
    assert one.busy_s == pytest.approx(12) and one.num_unfinished == 0


def test_two_share_the_steps_until_the_shorter_one_is_done():
    two = engine()
    two.add(0.0, 0, EngineWork(prompt_tokens=0, new_tokens=5))
    two.add(0.0, 1, EngineWork(prompt_tokens=0, new_tokens=8))
    assert ends(two) == {0: pytest.approx(5 * 1.2), 1: pytest.approx(5 * 1.2 + 3 * 1.1)}
    assert two.sequence_s == pytest.approx(2 * 6 + 3.3)


def test_a_later_request_slows_the_one_that_runs_and_its_prompt_stops_it():
    late = engine()
    late.add(0.0, 0, EngineWork(prompt_tokens=0, new_tokens=10))
    late.add(5.5, 1, EngineWork(prompt_tokens=50, new_tokens=10))
    assert ends(late)[0] == pytest.approx(5.5 + 0.5 + 5 * 1.2)


def test_those_without_room_wait_in_line():
    narrow = engine(room=1)
    for number in range(3):
        narrow.add(0.0, number, EngineWork(prompt_tokens=0, new_tokens=1))
    assert ends(narrow) == {number: pytest.approx(1.1 * (number + 1)) for number in range(3)}
