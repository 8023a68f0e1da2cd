"""Turns what a client asks into search requests: how noisy each is to be, and the key of its draws."""

import hashlib
import logging
from collections.abc import Callable
from itertools import count

from zs_nemo.config.rollout import CoinScope
from zs_nemo.config.server import ServerNoiseConfig
from zs_nemo.search.noise_coin import with_coin_tossed
from zs_nemo.search.server_requests import UNPROCESSABLE, AskedSearch, AskedSearches, RequestRefused
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchRequest

_LOGGER = logging.getLogger(__name__)


class ServerNoise:
    """Tosses the coins of a server's searches.

    P(noisy) is what the request says, be it itself or by its curriculum step; else what the server is set to, which for
    a trainer that cannot name its step can be the curriculum, followed by counting searches.

    With a ``seed`` the draws derive from it, the query and its place in the request, so the same request gets the same
    answer again, unless the count of searches has made it noisier meanwhile. Without one they derive from the server's
    seed and the number of the search: asked twice, a simulator writes two answers.
    """

    def __init__(
        self,
        settings: ServerNoiseConfig,
        noise_at: Callable[[int], float] | None,
        *,
        seed: int = 0,
        coin: CoinScope = CoinScope.query,
        coin_per_document: bool = False,
    ) -> None:
        """``noise_at`` is P(noisy) at a step of the curriculum, or raises ``RequestRefused`` for a step it cannot tell.

        It is None for an engine that cannot be noisy.
        """
        assert coin is not CoinScope.trajectory, "nothing says which searches are of one trajectory"
        self._settings = settings
        self._noise_at = noise_at
        self._seed = seed
        self._coin = coin
        self._coin_per_document = coin_per_document
        self._numbers, self._request_numbers = count(), count()
        self._num_counted = 0

    @property
    def step(self) -> int:
        """The step that the count of searches has come to."""
        per_step = self._settings.searches_per_step
        return self._settings.first_step + (self._num_counted // per_step if per_step else 0)

    @property
    def probability(self) -> float:
        """P(noisy) of a search that says nothing about noise."""
        if self._noise_at is None:
            return 0.0
        return self._noise_at(self.step) if self._settings.searches_per_step else self._settings.probability

    def requests(self, asked: AskedSearches, default_num_documents: int) -> list[SearchRequest]:
        """Return the searches of a request.

        Raises ``RequestRefused`` for noise that the engine cannot make, and for a step of unknown noise.
        """
        if self._noise_at is None and any(search.noise for search in asked.searches):
            raise RequestRefused(
                UNPROCESSABLE, "noise: this server's engine is a real one and returns no noisy documents; leave it out"
            )
        num_documents = asked.num_documents or default_num_documents
        group_step = self._group_step(asked)
        return [self._request(asked, place, num_documents, group_step) for place in range(len(asked.searches))]

    def _request(self, asked: AskedSearches, place: int, num_documents: int, group_step: int) -> SearchRequest:
        search = asked.searches[place]
        step, noise = self._noise_of(asked, search)
        key = self._key(asked, place, step)
        request = SearchRequest(
            query=search.query,
            question=search.question,
            answers=search.answers,
            key=key,
            num_documents=num_documents,
            noise_probability=noise,
        )
        coin_key = key
        if self._coin is CoinScope.group and search.question:
            prompt = _number(search.question)
            coin_key = SampleKey(run_seed=key.run_seed, step=group_step, prompt=prompt, member=0, turn=search.turn)
        return with_coin_tossed(request, coin_key, per_document=self._coin_per_document)

    def _group_step(self, asked: AskedSearches) -> int:
        """Return what is the same for the samples of a question that share a coin, and another for its next ones.

        That is the training step as far as it is known; else the request, in which a trainer asks for all of a turn.
        """
        if asked.step is not None or asked.seed is not None:
            return asked.step or 0
        return self.step if self._settings.searches_per_step else -1 - next(self._request_numbers)

    def _noise_of(self, asked: AskedSearches, search: AskedSearch) -> tuple[int, float]:
        if self._noise_at is None:
            return asked.step or 0, 0.0
        if search.noise is not None:
            return asked.step or 0, search.noise
        if asked.step is not None:
            return asked.step, self._noise_at(asked.step)
        own = self.step, self.probability
        if search.query.strip():
            self._count()
        return own

    def _count(self) -> None:
        """Count a search, which an empty query is not."""
        before = self.step
        self._num_counted += 1
        if self.step != before:
            _LOGGER.info("the curriculum has come to step %d: P(noisy) is %.3f", self.step, self.probability)

    def _key(self, asked: AskedSearches, place: int, step: int) -> SampleKey:
        search = asked.searches[place]
        if asked.seed is None:
            return SampleKey(run_seed=self._seed, step=step, prompt=next(self._numbers), member=0, turn=search.turn)
        prompt = _number(f"{search.question}\0{search.query}")
        # Of the step only what the request itself says: the count would make another draw of the same request.
        return SampleKey(run_seed=asked.seed, step=asked.step or 0, prompt=prompt, member=place, turn=search.turn)


def _number(text: str) -> int:
    """Return a number for a text: equal for equal ones."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).digest(), "little")
