"""Episodes as they stand in a checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.observability.runs import searching
from zs_nemo.rollout.episode import EpisodePlan
from zs_nemo.rollout.saved_episodes import damage, episode_row, key_of, read_episodes, trajectory_of, write_episodes
from zs_nemo.types.search import SearchFailureKind
from zs_nemo.types.trajectory import Status, Trajectory

PROMPT = [ord(char) for char in "prompt"]


def plan_of(episode: Trajectory) -> EpisodePlan:
    return EpisodePlan(question=episode.question, key=episode.key, prompt_ids=PROMPT)


@pytest.mark.parametrize("ended", [True, False])
def test_an_episode_comes_back_as_it_was(tmp_path: Path, ended: bool) -> None:
    episode = searching(reward=0.25, key=(3, 1, 2))
    episode.generation_logprobs = [-1 / (3 + place) for place in range(len(episode.token_ids))]
    episode.search_failures, episode.last_search_failure, episode.status = 1, "timeout", Status.turn_limit
    episode.began_s, episode.elapsed_s, episode.failed_engine = 90.0, 5.0, "simulator"
    episode.search_failure_kind = SearchFailureKind.timeout
    seal = write_episodes(tmp_path, [episode_row(episode, ended=ended, now_s=100.0)])
    (row,) = read_episodes(tmp_path)
    again = trajectory_of(row, plan_of(episode), now_s=1000.0)
    assert key_of(row) == episode.key and row["ended"] is ended and damage(tmp_path, seal) == []
    # By this process's clock: an episode under way has been so for ten seconds.
    assert (again.elapsed_s, again.began_s) == ((5.0, 0.0) if ended else (10.0, 990.0))
    assert replace(again, elapsed_s=5.0) == episode
    assert again.turns[0].sampled_ids == episode.turns[0].sampled_ids
    assert again.failed_engine == "simulator"


def test_a_row_does_not_change_with_the_episode() -> None:
    episode = searching()
    row = episode_row(episode, ended=False, now_s=0.0)
    tokens, turns = len(episode.token_ids), len(episode.turns)
    episode.token_ids.append(1)
    episode.generation_logprobs.append(0.0)
    episode.turns.append(episode.turns[0])
    assert (len(row["token_ids"]), len(row["generation_logprobs"]), len(row["turns"])) == (tokens, tokens, turns)


def test_an_episode_of_other_questions_is_refused_by_name() -> None:
    episode = searching()
    row = episode_row(episode, ended=True, now_s=0.0)
    plan = replace(plan_of(episode), question=replace(episode.question, id="another"))
    with pytest.raises(ValueError, match=r"question 'q/Where\?' for step 0, prompt 0, but the data now give 'another'"):
        trajectory_of(row, plan, now_s=0.0)
    with pytest.raises(ValueError, match="or another prompt"):
        trajectory_of(row, replace(plan_of(episode), prompt_ids=[1]), now_s=0.0)


def test_a_file_that_is_not_as_it_was_written_is_named(tmp_path: Path) -> None:
    seal = write_episodes(tmp_path, [episode_row(searching(), ended=True, now_s=0.0)])
    file = tmp_path / "episodes.jsonl"
    file.write_bytes(file.read_bytes().replace(b"answered", b"Answered"))
    assert damage(tmp_path, seal) == [f"{file} is not what was written: its checksum differs"]
    file.unlink()
    assert damage(tmp_path, seal) == [f"{file} is missing"]
