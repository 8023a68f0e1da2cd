"""A scripted workload for rollouts: what every trajectory will do, an engine and a search engine that play it.

The engine is ``BatchingEngine``: a step gives every sequence of the batch one token and takes longer the more there
are. Its speed is about that of a 7B model on an A100 (``STEP_S``, ``SEQUENCE_S``, ``PROMPT_TOKEN_S``): 15 GB of weights
at 2 TB/s with half as much again for everything else; 14 GFLOP a token, and a prompt's at half of 312 TFLOP/s.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zs_nemo.cluster.simulation.batching_engine import BatchingEngine, EngineSpeed, EngineWork
from zs_nemo.cluster.simulation.episodes import EpisodesUnderWay, EpisodeWork, SearchWork, TurnWork, rollout_s
from zs_nemo.cluster.simulation.events import Events
from zs_nemo.cluster.simulation.fleet import Fleet
from zs_nemo.qa.prompts import policy_prompt
from zs_nemo.rollout.documents import information_tokens
from zs_nemo.rollout.episode import EpisodeLimits
from zs_nemo.types.generation import Completion, SamplingParams, StopReason, Tokenizer
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.search import Document, SearchRequest, SearchResult

STEP_S, SEQUENCE_S, PROMPT_TOKEN_S = 0.015, 0.0001, 0.0001
ROOM = 256
MEAN_TURN_TOKENS, SIGMA_TURN_TOKENS = 100, 0.7
SIGMA_LATENCY = 0.8
MAX_TURNS = 5
DOCUMENTS, DOCUMENT_WORDS = 5, 30
GROUP_SIZE = 5
LIMITS = EpisodeLimits(
    max_turns=MAX_TURNS + 1,
    max_turn_tokens=500,
    max_document_tokens=2048,
    max_sequence_tokens=8192,
    search_deadline_s=600.0,
)
_WORDS = ("river", "capital", "of", "the", "north", "was", "founded", "in", "a", "small", "province", "near", "its")


@dataclass(frozen=True, kw_only=True)
class ScriptedTurn:
    """What the policy will write in one turn, and what its search will bring."""

    completion: Completion
    work: EngineWork
    latency_s: float
    """Of the search; 0.0 in the last turn, which has none."""
    documents: tuple[Document, ...]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Every trajectory of a step."""

    questions: list[Question]
    run_seed: int
    turns: dict[tuple[int, int], list[ScriptedTurn]]
    """By prompt and member."""
    by_seed: dict[int, ScriptedTurn]
    """The turn that a sampling seed stands for: it is all that an engine is told."""

    @property
    def num_turns(self) -> int:
        """Turns of all trajectories."""
        return len(self.by_seed)

    @property
    def num_tokens(self) -> int:
        """Tokens of all trajectories that the policy writes."""
        return sum(len(turn.completion.token_ids) for turn in self.by_seed.values())

    @property
    def num_searches(self) -> int:
        """Searches of all trajectories."""
        return self.num_turns - len(self.turns)


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The policy's engines, all alike."""

    count: int
    room: int = ROOM

    @property
    def speed(self) -> EngineSpeed:
        """How fast each of them is."""
        return EngineSpeed(step_s=step_s, prompt_token_s=PROMPT_TOKEN_S, room=self.room)

    def ideal_s(self, workload: Workload) -> float:
        """Return the time of a runner that costs nothing: every request begins the moment its input is there."""

        def build(events: Events) -> EpisodesUnderWay:
            fleet = Fleet(events, self.speed, self.count)
            return EpisodesUnderWay(events, fleet, None, max_concurrency=len(workload.turns))

        return rollout_s(build, [episode_work(turns) for turns in workload.turns.values()])

    def lower_bound_s(self, workload: Workload) -> float:
        """Return what no order of the requests can go below.

        Neither the longest trajectory alone in an engine, nor all tokens in full batches on all engines.
        """
        alone = max(
            sum(
                turn.work.prompt_tokens * PROMPT_TOKEN_S + turn.work.new_tokens * step_s(1) + turn.latency_s
                for turn in turns
            )
            for turns in workload.turns.values()
        )
        room = min(self.room, len(workload.turns))
        prompts_s = PROMPT_TOKEN_S * sum(turn.work.prompt_tokens for turn in workload.by_seed.values())
        return max(alone, (prompts_s + workload.num_tokens * step_s(room) / room) / self.count)


def step_s(batch: int) -> float:
    """Return the seconds of an engine's step."""
    return STEP_S + SEQUENCE_S * batch


def episode_work(turns: Sequence[ScriptedTurn]) -> EpisodeWork:
    """Return a trajectory as the simulation knows it."""
    last = len(turns) - 1
    return [
        TurnWork(generation=turn.work, search=SearchWork(latency_s=turn.latency_s) if number < last else None)
        for number, turn in enumerate(turns)
    ]


def build_workload(num_trajectories: int, mean_latency_s: float, tokenizer: Tokenizer, *, seed: int) -> Workload:
    """Return the workload of a seed; another mean latency makes the same searches longer, and nothing else."""
    questions = [
        Question(
            id=f"q{number}", text=f"What is known of item {number}?", answers=("blue",), kind="scripted", split="train"
        )
        for number in range(num_trajectories // GROUP_SIZE)
    ]
    run_seed, turns, by_seed = seed, {}, {}
    for prompt, question in enumerate(questions):
        prompt_tokens = len(tokenizer.encode(policy_prompt(question.text), add_special_tokens=False))
        for member in range(GROUP_SIZE):
            key = SampleKey(run_seed=run_seed, step=0, prompt=prompt, member=member)
            draws = np.random.default_rng(key.seed("scripted"))
            turns[prompt, member] = _script(key, draws, prompt_tokens, mean_latency_s, tokenizer)
            for number, turn in enumerate(turns[prompt, member]):
                own = SampleKey(run_seed=run_seed, step=0, prompt=prompt, member=member, turn=number).seed("sampling")
                assert own not in by_seed, f"two turns have one sampling seed with seed={seed}; take another"
                by_seed[own] = turn
    return Workload(questions=questions, run_seed=run_seed, turns=turns, by_seed=by_seed)


def _script(
    key: SampleKey, draws: np.random.Generator, prompt_tokens: int, mean_latency_s: float, tokenizer: Tokenizer
) -> list[ScriptedTurn]:
    count = int(draws.integers(1, MAX_TURNS + 1))
    turns, unread = [], prompt_tokens
    for number in range(count):
        length = int(np.clip(_log_normal(draws, MEAN_TURN_TOKENS, SIGMA_TURN_TOKENS), 8, LIMITS.max_turn_tokens - 1))
        is_last = number == count - 1
        tail = "<answer>blue</answer>" if is_last else f"<search>item {key.prompt} {key.member} {number}</search>"
        completion = Completion(
            token_ids=tuple(int(each) for each in draws.integers(100, 40_000, length)),
            logprobs=tuple(float(each) for each in -draws.random(length)),
            text=f"<think>{_text(draws, length)}</think>\n{tail}",
            stop_reason=StopReason.stop_string,
            weight_version=0,
        )
        documents = () if is_last else tuple(Document(text=_text(draws, DOCUMENT_WORDS)) for _ in range(DOCUMENTS))
        turns.append(
            ScriptedTurn(
                completion=completion,
                work=EngineWork(prompt_tokens=unread, new_tokens=length),
                latency_s=0.0 if is_last else _log_normal(draws, mean_latency_s, SIGMA_LATENCY),
                documents=documents,
            )
        )
        unread = len(information_tokens(documents, tokenizer, LIMITS.max_document_tokens)) if documents else 0
    return turns


def _log_normal(draws: np.random.Generator, mean: float, sigma: float) -> float:
    return float(mean * np.exp(sigma * draws.standard_normal() - sigma**2 / 2))


def _text(draws: np.random.Generator, words: int) -> str:
    return " ".join(_WORDS[each] for each in draws.integers(0, len(_WORDS), words))


class ScriptedPolicy:
    """Implements ``GenerationEngine``: writes what the workload says; engines are chosen as ``EnginePool`` does."""

    def __init__(self, workload: Workload, engines: Engines) -> None:
        self._workload = workload
        self._engines = [_ScriptedEngine(engines.speed) for _ in range(engines.count)]

    async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
        """Return the completion when an engine has come to its end."""
        turn = self._workload.by_seed[seed]
        assert len(turn.completion.token_ids) <= sampling.max_tokens, "the limits leave room for what is scripted"
        await min(self._engines, key=lambda engine: engine.num_unfinished).run(turn.work)
        return turn.completion


class _ScriptedEngine:
    def __init__(self, speed: EngineSpeed) -> None:
        self._engine = BatchingEngine(speed)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._count = 0

    @property
    def num_unfinished(self) -> int:
        return self._engine.num_unfinished

    async def run(self, work: EngineWork) -> None:
        loop = asyncio.get_running_loop()
        number, self._count = self._count, self._count + 1
        self._waiting[number] = future = loop.create_future()
        now = loop.time()
        self._pass_time(now)
        self._engine.add(now, number, work)
        self._plan(loop)
        await future

    def _pass_time(self, now: float) -> None:
        """Let everything end that was to end by ``now``: the engine goes on while the runner computes."""
        while (at := self._engine.next_s()) <= now:
            for number in self._engine.finish(at):
                self._waiting.pop(number).set_result(None)

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at = self._engine.next_s()
        self._timer = loop.call_at(at, self._wake, loop) if at < math.inf else None

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pass_time(loop.time())
        self._plan(loop)


@dataclass
class ScriptedSearch:
    """Implements ``SearchEngine``: brings the documents of the workload after the latency of each search."""

    workload: Workload
    name: str = "scripted"

    async def search(self, request: SearchRequest) -> SearchResult:
        """Return the documents of the request's turn."""
        turn = self.workload.turns[request.key.prompt, request.key.member][request.key.turn]
        await asyncio.sleep(turn.latency_s)
        return SearchResult(documents=turn.documents, source=self.name, noisy=request.noisy)
