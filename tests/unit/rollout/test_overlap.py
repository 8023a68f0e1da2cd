"""Episodes of later steps while an earlier one trains, against a scripted policy whose weights change."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from tests.unit.rollout.test_collector import LIMITS, QUESTIONS, script
from zs_nemo.rollout.callbacks import SimulatedSearch
from zs_nemo.rollout.collector import Decoding, RolloutCollector, StepBudgets
from zs_nemo.rollout.episode import EpisodeRunner, SearchSetting
from zs_nemo.rollout.loop_thread import LoopThread
from zs_nemo.rollout.overlap import StepDraw, StepsAhead
from zs_nemo.rollout.rewards import Reward, RewardFailed, f1
from zs_nemo.types.generation import Completion, SamplingParams
from zs_nemo.types.trajectory import Trajectory

NUM_STEPS, GROUP, PER_STEP = 4, 2, 3
EPISODES = GROUP * PER_STEP
SECOND_TURN, NO_PROMPT = "Doc 1:", "in no prompt"


@dataclass
class Policy(ScriptedEngine):
    """A scripted engine that serves ``version``; prompts with all of ``held`` wait, as for a refit."""

    version: int = 0
    held: tuple[str, ...] = ()
    failing: str = NO_PROMPT
    asked: int = 0
    completed: int = 0

    async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
        self.asked += 1
        prompt = "".join(map(chr, prompt_ids))
        while self.held and all(text in prompt for text in self.held):
            await asyncio.sleep(0.001)
        if self.failing in prompt:
            raise ConnectionError("the engine is gone")
        version = self.version
        completion = await super().generate(prompt_ids, sampling, seed)
        self.completed += 1
        return replace(completion, weight_version=version)


@dataclass
class Run:
    """What a training run would hold of a step's collecting."""

    policy: Policy
    ahead: StepsAhead
    collector: RolloutCollector
    search: FixedSearch
    noise: dict[int, float]

    def collect(self, step: int) -> list[Trajectory]:
        """Refit and collect, as a recipe does."""
        self.policy.version = step
        groups = self.ahead.collect(draw_of(self, step))
        return [trajectory for group in groups for trajectory in group.trajectories]


def draw_of(run: Run, step: int, *, attempt: int = 0, first_prompt: int = 0) -> StepDraw:
    setting = SearchSetting(
        callback=SimulatedSearch(run.search), num_documents=1, noise_probability=run.noise.get(step, 0.5)
    )
    first = step * PER_STEP % len(QUESTIONS)
    return StepDraw(
        step=step,
        questions=QUESTIONS[first : first + PER_STEP],
        search=setting,
        decoding=Decoding(temperature=1.0),
        group_size=GROUP,
        attempt=attempt,
        first_prompt=first_prompt,
    )


@contextmanager
def started(*, max_staleness: int = 1, concurrency: int = 64, attempt: int = 0, reward: Reward = f1) -> Iterator[Run]:
    policy = Policy(script)
    collector = RolloutCollector(
        EpisodeRunner(policy, CharTokenizer(), LIMITS),
        CharTokenizer(),
        reward,
        run_seed=7,
        max_concurrency=1000,
        budgets=StepBudgets(failed=0.1),
        loop=LoopThread(),
    )
    ahead = StepsAhead(
        collector,
        lambda step: draw_of(run, step, attempt=attempt),
        max_staleness=max_staleness,
        num_steps=NUM_STEPS,
        max_concurrency=concurrency,
    )
    run = Run(policy, ahead, collector, FixedSearch(), {})
    try:
        yield run
    finally:
        ahead.drop()
        collector.close()


def begin_next(run: Run, *, step: int = 0, held: tuple[str, ...] = ()) -> None:
    """Begin the episodes of the step after ``step``, which itself has none."""
    run.policy.held = held
    assert run.ahead.collect(replace(draw_of(run, step), questions=[])) == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.002)


def all_ended(run: Run, episodes: int) -> bool:
    return run.ahead.metrics() == {"rollout/ahead_begun": episodes, "rollout/ahead_ended": episodes}


def step_of(prompt: str) -> int:
    return int(prompt.split("Question: Question ")[1][0]) // PER_STEP


def versions(trajectory: Trajectory) -> list[int]:
    return [turn.weight_version for turn in trajectory.turns]


def test_the_next_step_is_collected_while_nobody_waits_for_it():
    with started() as run:
        assert {tuple(versions(each)) for each in run.collect(0)} == {(0, 0)}
        wait_for(lambda: all_ended(run, EPISODES))
        asked = run.policy.asked
        assert {tuple(versions(each)) for each in run.collect(1)} == {(0, 0)}
        assert run.policy.asked <= asked + 2 * EPISODES, "what had ended was not asked for again"


def test_an_episode_that_is_under_way_at_a_refit_goes_on_under_the_new_weights():
    with started() as run:
        begin_next(run, held=(SECOND_TURN,))
        wait_for(lambda: run.policy.asked == 2 * EPISODES)
        run.policy.version, run.policy.held = 1, ()
        assert {tuple(versions(each)) for each in run.collect(1)} == {(0, 1)}


@pytest.mark.parametrize("max_staleness", [1, 2, 9])
def test_no_step_begins_earlier_than_its_staleness_allows_and_none_after_the_last(max_staleness: int):
    with started(max_staleness=max_staleness) as run:
        for step in range(NUM_STEPS):
            episodes = run.collect(step)
            assert len(episodes) == EPISODES
            assert all(each.key.step == step for each in episodes)
            oldest = max(0, step - max_staleness)
            assert min(version for each in episodes for version in versions(each)) == oldest
            begun = min(max_staleness, NUM_STEPS - 1 - step)
            wait_for(lambda begun=begun: all_ended(run, begun * EPISODES))


def test_prompts_seeds_and_coins_are_those_of_a_run_without_overlap():
    def observed(trajectory: Trajectory) -> tuple:
        turns = [(turn.sampling_seed, turn.result and turn.result.noisy) for turn in trajectory.turns]
        return trajectory.key, trajectory.question.id, turns, trajectory.reward

    with started(max_staleness=2) as run:
        ahead = [[observed(each) for each in run.collect(step)] for step in range(NUM_STEPS)]
        in_turn = []
        for step in range(NUM_STEPS):
            draw = draw_of(run, step)
            groups = run.collector.collect(
                draw.questions, draw.search, draw.decoding, step=step, group_size=draw.group_size
            )
            in_turn.append([observed(each) for group in groups for each in group.trajectories])
    assert ahead == in_turn


def test_a_step_s_own_episodes_come_before_those_of_the_next():
    with started(concurrency=1) as run:
        run.collect(0)
        wait_for(lambda: all_ended(run, EPISODES))
        order = [step_of(prompt) for prompt, *_ in run.policy.calls]
        assert order == [0] * 2 * EPISODES + [1] * 2 * EPISODES


def test_the_noise_of_a_step_is_that_of_the_moment_at_which_its_prompts_were_drawn():
    with started() as run:
        run.noise = {0: 0.0, 1: 0.0, 2: 0.0}
        assert run.ahead.noise_of(0) is None
        run.collect(0)
        run.noise = {1: 1.0, 2: 1.0}
        assert (run.ahead.noise_of(1), run.ahead.noise_of(2)) == (0.0, None)
        assert not any(each.turns[0].result.noisy for each in run.collect(1))
        assert all(each.turns[0].result.noisy for each in run.collect(2))


def test_while_paused_no_episode_moves_and_what_was_under_way_goes_on_afterwards():
    with started(concurrency=2) as run:
        begin_next(run, held=(SECOND_TURN,))
        wait_for(lambda: run.policy.asked == 4)
        threading.Timer(0.05, setattr, (run.policy, "held", ())).start()
        with run.ahead.paused():
            # The two that were under way have ended, and no other has begun.
            assert run.policy.completed == run.policy.asked == 4
            time.sleep(0.02)
            assert run.policy.asked == 4
        assert len(run.collect(1)) == EPISODES


def test_a_further_round_of_a_step_leaves_the_episodes_of_the_next_alone():
    with started() as run:
        run.collect(0)
        more = run.ahead.collect(draw_of(run, 0, first_prompt=PER_STEP))
        assert [each.key.prompt for group in more for each in group.trajectories] == [3, 3, 4, 4, 5, 5]
        assert {each.key.prompt for each in run.collect(1)} == {0, 1, 2}


def test_what_was_under_way_is_taken_up_from_a_checkpoint_and_what_had_ended_is_not_run_again():
    with started() as run:
        run.noise = {1: 0.0}
        begin_next(run, held=(SECOND_TURN,))
        wait_for(lambda: run.policy.asked == 2 * EPISODES)
        facts, rows = json.loads(json.dumps(run.ahead.state()))
    assert [row["ended"] for row in rows] == [False] * 6 and all(len(row["turns"]) == 1 for row in rows)
    with started() as resumed:
        resumed.noise = {1: 1.0}
        resumed.ahead.restore(facts, rows, attempt=0)
        assert resumed.ahead.noise_of(1) == 0.0
        episodes = resumed.collect(1)
        assert {tuple(versions(each)) for each in episodes} == {(0, 1)}
        for row, each in zip(rows, episodes, strict=True):
            kept = len(row["token_ids"])
            assert each.token_ids[:kept] == row["token_ids"]
            assert each.generation_logprobs[:kept] == row["generation_logprobs"]
            assert each.reward == 1.0 and each.began_s > 0
        wait_for(lambda: all_ended(resumed, 6))
        facts, rows = json.loads(json.dumps(resumed.ahead.state()))
    with started() as again:
        again.ahead.restore(facts, rows, attempt=0)
        begin_next(again, step=1)
        assert {tuple(versions(each)) for each in again.collect(2)} == {(1, 1)}
        assert not any(" Question 0" in prompt for prompt, *_ in again.policy.calls), "step 2 was run again"


def test_a_search_that_was_under_way_at_a_checkpoint_is_asked_again_with_the_same_coin():
    class SearchForEver(FixedSearch):
        async def search(self, request):
            await super().search(request)
            await asyncio.Event().wait()

    with started() as run:
        run.search = SearchForEver()
        begin_next(run)
        wait_for(lambda: len(run.search.requests) == EPISODES)
        facts, rows = run.ahead.state()
        before = {request.key: request.noisy for request in run.search.requests}
    with started() as resumed:
        resumed.ahead.restore(facts, rows, attempt=0)
        resumed.collect(1)
        after = {request.key: request.noisy for request in resumed.search.requests if request.key.step == 1}
        assert after == before and len(before) == 6


def test_episodes_of_draws_that_failed_are_left_after_a_return_to_a_checkpoint():
    with started() as run:
        run.collect(0)
        facts, rows = run.ahead.state()
    with started(attempt=1) as returned:
        returned.ahead.restore(facts, rows, attempt=1)
        assert returned.ahead.noise_of(1) is None
        returned.ahead.collect(draw_of(returned, 0, attempt=1))
        assert {each.key.run_seed for each in returned.collect(1)} == {7 + 2**31}


def test_what_an_episode_of_a_later_step_raises_comes_out_of_the_next_collecting_as_itself():
    with started() as run:
        run.policy.failing = "Question 4"
        with pytest.raises(ConnectionError, match="the engine is gone"):
            for step in range(2):
                run.collect(step)


def test_an_episode_that_could_not_be_graded_is_run_again_from_a_checkpoint():
    def of_members_before(trajectory: Trajectory) -> float:
        if trajectory.key.member == GROUP - 1:
            raise RewardFailed("the term is wrong")
        return f1(trajectory)

    with started(reward=of_members_before) as run:
        begin_next(run)
        with pytest.raises(RewardFailed, match="the term is wrong"):
            run.collect(1)
        facts, rows = run.ahead.state()
    with started() as resumed:
        resumed.ahead.restore(facts, rows, attempt=0)
        assert [each.reward for each in resumed.collect(1)] == [1.0] * EPISODES


def test_dropped_episodes_are_cancelled_in_the_engine():
    with started() as run:
        begin_next(run, held=(SECOND_TURN,))
        wait_for(lambda: run.policy.asked == 2 * EPISODES)
        run.ahead.drop()
        assert run.ahead.metrics() == {"rollout/ahead_begun": 0, "rollout/ahead_ended": 0}
        run.policy.held = ()
        time.sleep(0.01)
        assert run.policy.completed == EPISODES, "only the first turns came to their end"
