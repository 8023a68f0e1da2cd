"""The search episodes of the quickstart as a ``rollout_func`` of TRL's GRPOTrainer: a turn of all, then their searches.

The prompts, the parsing of actions, the documents and the limits are those of ``zs_nemo.rollout``; the engine is asked
through ``recipes/serve_search.py``. Owns no generation: ``generate`` is a turn of a whole batch, however it is made.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from zs_nemo.qa.actions import AnswerAction, SearchAction, parse_action
from zs_nemo.rollout.documents import information_tokens
from zs_nemo.rollout.episode import EpisodeLimits
from zs_nemo.search.retriever import parse_answer
from zs_nemo.types.generation import Tokenizer

SEARCH_TIMEOUT_S = 600.0
Generate = Callable[[list[list[int]], list[int]], list[list[int]]]
"""(ids so far, most new tokens) of each row -> the ids that were sampled, up to a closing tag or the end of text."""


@dataclass
class Row:
    """One trajectory under way."""

    prompt: str
    token_ids: list[int]
    prompt_size: int
    is_policy: list[int] = field(default_factory=list)
    """1 for each token after the prompt that the policy sampled, 0 for those of documents."""
    answer: str | None = None
    query: str | None = None
    """What the last turn asked for; None when the episode is over."""
    num_turns: int = 0
    num_searches: int = 0
    search_failed: bool = False

    def add(self, token_ids: Sequence[int], *, is_policy: bool) -> None:
        """Append tokens with their role."""
        self.token_ids += token_ids
        self.is_policy += [int(is_policy)] * len(token_ids)


class SearchRollout:
    """Plays all trajectories of a step, turn by turn; every search of a turn is under way at once."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        limits: EpisodeLimits,
        url: str,
        told: dict[str, dict[str, Any]],
        *,
        num_documents: int,
        threads: int,
    ) -> None:
        """``told`` is what the simulator is told of each prompt: its question and the gold answers."""
        self._tokenizer = tokenizer
        self._limits = limits
        self._url = url
        self._told = told
        self._num_documents = num_documents
        self._pool = ThreadPoolExecutor(threads)
        self.generation_s = 0.0
        self.search_s = 0.0

    def play(self, prompts: Sequence[str], generate: Generate, *, noise: float) -> list[Row]:
        """Return the ended trajectories, in the order of the prompts."""
        self.generation_s = self.search_s = 0.0
        encoded = [self._tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
        rows = [Row(prompt, list(ids), len(ids)) for prompt, ids in zip(prompts, encoded, strict=True)]
        active = rows
        for turn in range(self._limits.max_turns):
            began = time.perf_counter()
            self._generate(active, generate, is_last=turn == self._limits.max_turns - 1)
            generated = time.perf_counter()
            active = self._search([row for row in active if row.query is not None], turn, noise)
            self.generation_s += generated - began
            self.search_s += time.perf_counter() - generated
            if not active:
                break
        return rows

    def _generate(self, rows: Sequence[Row], generate: Generate, *, is_last: bool) -> None:
        limits = self._limits
        room = [limits.max_sequence_tokens - len(row.token_ids) for row in rows]
        sampled = generate([row.token_ids for row in rows], [min(limits.max_turn_tokens, each) for each in room])
        for row, ids in zip(rows, sampled, strict=True):
            row.add(ids, is_policy=True)
            row.num_turns += 1
            action = parse_action(self._tokenizer.decode(ids))
            row.answer = action.answer if isinstance(action, AnswerAction) else None
            fits = limits.max_sequence_tokens - len(row.token_ids) > limits.max_document_tokens
            row.query = action.query if isinstance(action, SearchAction) and fits and not is_last else None

    def _search(self, rows: Sequence[Row], turn: int, noise: float) -> list[Row]:
        """Give every row its documents; return those that go on."""
        found = self._pool.map(self._documents, rows, repeat(turn), repeat(noise))
        for row, ids in zip(rows, found, strict=True):
            if ids is None:
                row.search_failed = True
            else:
                row.num_searches += 1
                row.add(ids, is_policy=False)
        return [row for row in rows if not row.search_failed]

    def _documents(self, row: Row, turn: int, noise: float) -> list[int] | None:
        """Return the tokens of a search's documents, or None for a search that failed."""
        body = {
            "queries": [row.query],
            "topk": self._num_documents,
            "turns": [turn],
            "noise": noise,
            **{name: [value] for name, value in self._told[row.prompt].items()},
        }
        request = urllib.request.Request(self._url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SEARCH_TIMEOUT_S) as response:
                (documents,) = parse_answer(json.load(response), 1, self._num_documents)
        except urllib.error.HTTPError as error:
            # The server has tried as often as a training run of ours does: this trajectory is lost, as there.
            if error.code not in (502, 503, 504):
                raise RuntimeError(f"{self._url} answered {error.code}: {error.read().decode()}") from error
            return None
        return information_tokens(documents, self._tokenizer, self._limits.max_document_tokens)
