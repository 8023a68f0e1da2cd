"""One episode of a policy with a search engine, as it happened, token by token."""

from dataclasses import dataclass, field
from enum import Enum, IntEnum

from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchFailureKind, SearchResult

SMALLEST_SPREAD = 1e-6
"""Rewards of a group that differ by less are taken for equal: a rounding error is no lesson."""


class Role(IntEnum):
    """Who wrote a token. Decides what is trained on: policy tokens alone."""

    prompt = 0
    policy = 1
    document = 2
    notice = 3


class Status(Enum):
    """How a trajectory ended."""

    answered = "the policy closed an answer tag"
    no_action = "the policy ended its text, or a turn, without a search or an answer"
    turn_cut = "a turn reached rollout.max_turn_tokens before it closed a tag"
    turn_limit = "rollout.max_turns were used without an answer"
    search_failed = "a search brought nothing, in time or at all; the trajectory is not trained on"
    sequence_limit = "the next turn or documents would not fit into rollout.max_sequence_tokens"
    deadline = "rollout.trajectory_deadline_s passed, which says nothing about the policy; it is not trained on"

    @property
    def is_lost(self) -> bool:
        """Whether something else than the policy ended it, so that nothing can be learned from it."""
        return self in (Status.search_failed, Status.deadline)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One generation of the policy and, if it searched, what came back."""

    start: int
    """Index of the first policy token of this turn in the trajectory's token ids."""
    end: int
    """One past the last policy token of this turn."""
    text: str
    query: str | None
    """The query when the turn ended in a search, otherwise None."""
    result: SearchResult | None
    sampling_seed: int
    weight_version: int
    sampled_ids: tuple[int, ...] = ()
    """The engine's own record of this turn. ``token_ids[start:end]`` must equal it: the metrics check that they do."""
    began_s: float = field(default=0.0, compare=False)
    """When the engine was asked, in seconds since the trajectory began."""
    generation_s: float = field(default=0.0, compare=False)
    search_s: float = field(default=0.0, compare=False)
    """The search with all its retries."""


@dataclass(kw_only=True)
class Trajectory:
    """An episode. Lists are parallel over tokens.

    Example, with one search::

        token_ids            [Question...] [<search>q</search>] [<information>...] [<answer>a</answer>]
        roles                 0 0 0 0 0 0   1 1 1 1 1 1 1       2 2 2 2 2 2 2 2    1 1 1 1 1
        generation_logprobs   0 0 0 0 0 0   -.3 -.1 ...         0 0 0 0 0 0 0 0    -.1 ...
    """

    key: SampleKey
    question: Question
    token_ids: list[int]
    roles: list[Role]
    generation_logprobs: list[float]
    """As the engine returned them; 0.0 where the policy did not write."""
    turns: list[Turn] = field(default_factory=list)
    status: Status = Status.no_action
    answer: str | None = None
    """What stands in the answer tag that the policy wrote; None when it wrote none."""
    reward: float = 0.0
    search_failures: int = 0
    """Calls that failed and were tried again."""
    last_search_failure: str = ""
    """What went wrong in the last of them."""
    search_failure_kind: SearchFailureKind | None = None
    """Of which kind that was; None where none failed."""
    failed_engine: str = field(default="", compare=False)
    """Name of the engine that was asked in it."""
    elapsed_s: float = 0.0
    began_s: float = field(default=0.0, compare=False)
    """On the monotonic clock of the driver; 0.0 where it was not run there."""

    @property
    def num_searches(self) -> int:
        """Searches whose documents the policy was shown."""
        return sum(turn.result is not None for turn in self.turns)

    @property
    def is_refused(self) -> bool:
        """Whether it ended because what may be spent on the search engine is spent."""
        return self.status is Status.search_failed and self.search_failure_kind is SearchFailureKind.refused

    @property
    def num_policy_tokens(self) -> int:
        """Tokens that the policy sampled."""
        return sum(role is Role.policy for role in self.roles)


@dataclass(kw_only=True)
class TrajectoryGroup:
    """The samples of one prompt."""

    question: Question
    trajectories: list[Trajectory]
    lost: list[Trajectory] = field(default_factory=list)
    """Samples that something else than the policy ended: counted, and not trained on."""

    @property
    def rewards(self) -> list[float]:
        """Rewards in the order of the members."""
        return [trajectory.reward for trajectory in self.trajectories]

    @property
    def has_variance(self) -> bool:
        """Whether the rewards differ, so that the samples can be compared."""
        return bool(self.rewards) and max(self.rewards) - min(self.rewards) >= SMALLEST_SPREAD
