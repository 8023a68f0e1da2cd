"""Episodes over engines: order of events, concurrency, searches."""

import pytest

from zs_nemo.cluster.simulation.batching_engine import EngineSpeed, EngineWork
from zs_nemo.cluster.simulation.episodes import EpisodesUnderWay, SearchWork, TurnWork, rollout_s
from zs_nemo.cluster.simulation.events import Events
from zs_nemo.cluster.simulation.fleet import Fleet

SPEED = EngineSpeed(step_s=lambda batch: 1.0, prompt_token_s=0.0, room=100)


def turn(tokens: float, search: SearchWork | None = None) -> TurnWork:
    return TurnWork(generation=EngineWork(prompt_tokens=0, new_tokens=tokens), search=search)


def seconds(episodes, *, engines: int = 1, simulators: int = 0, max_concurrency: int = 100) -> float:
    def build(events: Events) -> EpisodesUnderWay:
        simulator = Fleet(events, SPEED, simulators) if simulators else None
        return EpisodesUnderWay(events, Fleet(events, SPEED, engines), simulator, max_concurrency=max_concurrency)

    return rollout_s(build, episodes)


def test_an_episode_takes_its_turns_and_its_searches_one_after_the_other():
    assert seconds([[turn(3, SearchWork(latency_s=2)), turn(4)]]) == pytest.approx(9)


def test_no_episode_waits_for_another_one_s_search():
    slow, fast = [turn(1, SearchWork(latency_s=50)), turn(1)], [turn(1, SearchWork(latency_s=1)), turn(30)]
    assert seconds([slow, fast]) == pytest.approx(52)


def test_a_search_ends_with_the_last_of_its_requests_to_the_simulator():
    requests = (EngineWork(prompt_tokens=0, new_tokens=2), EngineWork(prompt_tokens=0, new_tokens=7))
    assert seconds([[turn(1, SearchWork(requests=requests)), turn(1)]], simulators=2) == pytest.approx(9)


def test_at_most_so_many_episodes_run_at_once():
    assert seconds([[turn(5)]] * 4, max_concurrency=2) == pytest.approx(10)


def test_a_request_goes_to_the_engine_with_the_fewest():
    events = Events()
    fleet = Fleet(events, EngineSpeed(step_s=lambda batch: float(batch), prompt_token_s=0.0, room=9), 2)
    ended = []
    for _ in range(2):
        fleet.ask(EngineWork(prompt_tokens=0, new_tokens=3), lambda: ended.append(events.now))
    events.run()
    assert ended == [pytest.approx(3), pytest.approx(3)]


def test_a_refit_waits_for_the_turns_under_way_and_holds_later_ones_back():
    events, log = Events(), []
    fleet = Fleet(events, SPEED, 1)
    fleet.ask(EngineWork(prompt_tokens=0, new_tokens=4), lambda: log.append(("first", events.now)))
    fleet.drain(lambda: log.append(("drained", events.now)))
    fleet.ask(EngineWork(prompt_tokens=0, new_tokens=1), lambda: log.append(("second", events.now)))
    events.after(10.0, fleet.resume)
    events.run()
    assert log == [("first", 4.0), ("drained", 4.0), ("second", 11.0)]
