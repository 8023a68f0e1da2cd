"""What the episodes of a step do, drawn from a few means: measured in a run, or assumed."""

import math
from dataclasses import dataclass

import numpy as np

from zs_nemo.cluster.simulation.batching_engine import EngineWork
from zs_nemo.cluster.simulation.episodes import EpisodeWork, SearchWork, TurnWork
from zs_nemo.config.search import SearchConfig, SimulatedSearchConfig


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Means over the episodes of a step."""

    num_episodes: int
    group_size: int
    """Episodes that begin with the same prompt: the prefix cache has it for all but the first."""
    max_turns: int
    turns_per_episode: float
    tokens_per_turn: float
    max_turn_tokens: int
    spread_of_tokens: float
    prompt_tokens: float
    document_tokens: float
    """Of one search."""
    search_latency_s: float
    """Of a search without engines of the run; 0 with a simulator."""
    simulator_requests: int
    """Requests that one search sends to the simulator's engines; 0 without a simulator."""
    simulator_prompt_tokens: float
    """That its prefix cache does not hold."""
    simulator_completion_tokens: float
    simulator_max_tokens: float = math.inf
    """A completion is cut there."""

    @property
    def sequence_tokens(self) -> float:
        """Tokens of a whole episode, in the mean."""
        searches = self.turns_per_episode - 1
        return self.prompt_tokens + self.turns_per_episode * self.tokens_per_turn + searches * self.document_tokens

    @property
    def mean_context(self) -> float:
        """Tokens that a sequence has behind it while it is generated, in the mean."""
        return self.prompt_tokens + (self.sequence_tokens - self.prompt_tokens) / 2


def max_completion_tokens(search: SearchConfig) -> float:
    """Return the longest completion of a simulator; infinity for an engine that is none."""
    return search.max_tokens if isinstance(search, SimulatedSearchConfig) else math.inf


def draw_episodes(workload: Workload, draws: np.random.Generator) -> list[EpisodeWork]:
    """Draw the episodes of one step: binomial numbers of turns, log-normal lengths, exponential latencies."""
    more = max(0, workload.max_turns - 1)
    share = min(1.0, (workload.turns_per_episode - 1) / more) if more else 0.0
    counts = 1 + draws.binomial(more, share, workload.num_episodes)
    return [_episode(workload, int(count), draws) for count in counts]


def _episode(workload: Workload, num_turns: int, draws: np.random.Generator) -> EpisodeWork:
    lengths = draw_lengths(workload.tokens_per_turn, workload.spread_of_tokens, num_turns, draws)
    turns = []
    for number, length in enumerate(lengths):
        search = None
        if number < num_turns - 1:
            written = draw_lengths(
                workload.simulator_completion_tokens, workload.spread_of_tokens, workload.simulator_requests, draws
            )
            requests = tuple(
                EngineWork(
                    prompt_tokens=workload.simulator_prompt_tokens,
                    new_tokens=min(tokens, workload.simulator_max_tokens),
                )
                for tokens in written
            )
            search = SearchWork(latency_s=float(draws.exponential(workload.search_latency_s)), requests=requests)
        # What the policy wrote itself is in the engine's prefix cache.
        unread = workload.document_tokens if number else workload.prompt_tokens / workload.group_size
        new_tokens = min(length, float(workload.max_turn_tokens))
        turns.append(TurnWork(generation=EngineWork(prompt_tokens=unread, new_tokens=new_tokens), search=search))
    return turns


def draw_lengths(mean: float, spread: float, count: int, draws: np.random.Generator) -> list[float]:
    """Return log-normal lengths in tokens; ``spread`` is the standard deviation of their logarithm."""
    values = mean * np.exp(spread * draws.standard_normal(count) - spread**2 / 2)
    return [max(1.0, float(value)) for value in values]
