"""Groups without variance are replaced, in a bounded number of rounds."""

from zs_nemo.rollout.resampling import resample_zero_variance
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.trajectory import Trajectory, TrajectoryGroup


def group(*rewards: float) -> TrajectoryGroup:
    """Return a group with these rewards."""
    question = Question(id="q", text="?", answers=("a",), kind="k", split="train")
    return TrajectoryGroup(
        question=question,
        trajectories=[
            Trajectory(
                key=SampleKey(run_seed=0, step=0, prompt=0, member=member),
                question=question,
                token_ids=[],
                roles=[],
                generation_logprobs=[],
                reward=reward,
            )
            for member, reward in enumerate(rewards)
        ],
    )


class Source:
    """Hands out groups, and keeps what it was asked for."""

    def __init__(self, *rounds: list[TrajectoryGroup]) -> None:
        self._rounds = list(rounds)
        self.asked: list[tuple[int, int]] = []

    def __call__(self, round_number: int, missing: int) -> list[TrajectoryGroup]:
        self.asked.append((round_number, missing))
        return self._rounds.pop(0)


def test_flat_groups_are_replaced_until_the_step_is_full():
    telling, flat, first, second = group(0, 1), group(1, 1), group(0, 0.5), group(0.2, 0.3)
    source = Source([group(0, 0), first], [second])
    used, replaced = resample_zero_variance([telling, flat, group(0, 0)], source, max_rounds=5)
    assert used == [telling, first, second]
    assert source.asked == [(1, 2), (2, 1)]
    assert len(replaced) == 3 and replaced[0] is flat


def test_the_rounds_are_bounded_and_what_was_not_replaced_stays():
    source = Source([group(0, 0)], [group(1, 1)])
    used, replaced = resample_zero_variance([group(0, 1), group(1, 1)], source, max_rounds=2)
    assert [each.rewards for each in used] == [[0, 1], [1, 1]]
    assert len(replaced) == 2 and source.asked == [(1, 1), (2, 1)]


def test_a_full_step_asks_for_nothing():
    source = Source()
    used, replaced = resample_zero_variance([group(0, 1)], source, max_rounds=2)
    assert len(used) == 1 and not replaced and not source.asked


def test_a_source_that_has_no_more_questions_starves_nobody():
    used, replaced = resample_zero_variance([group(0, 0), group(0, 1)], Source([], []), max_rounds=2)
    assert len(used) == 2 and not replaced
