"""Turns what a client asks into search requests: how noisy each is to be, and the key of its draws."""

import hashlib
from collections.abc import Callable
from itertools import count

from zs_nemo.config.server import ServerNoiseConfig
from zs_nemo.search.server_requests import UNPROCESSABLE, AskedSearch, AskedSearches, RequestRefused
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchRequest


class ServerNoise:
    """Tosses the coins of a server's searches.

    P(noisy) is what the request says, be it itself or by its curriculum step; else what the server is set to, which for
    a trainer that cannot name its step can be the curriculum, followed by counting searches.

    With a ``seed`` the draws derive from it, the query and its place in the request, so the same request gets the same
    answer again, unless the count of searches has made it noisier meanwhile. Without one they derive from the server's
    seed and the number of the search: asked twice, a simulator writes two answers.
    """

    def __init__(self, settings: ServerNoiseConfig, noise_at: Callable[[int], float] | None, *, seed: int) -> None:
        """``noise_at`` is P(noisy) at a step of the curriculum; None for an engine that cannot be noisy."""
        self._settings = settings
        self._noise_at = noise_at
        self._seed = seed
        self._numbers = count()
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
        """Return the searches of a request; raise ``RequestRefused`` for noise that the engine cannot make."""
        if self._noise_at is None and any(search.noise for search in asked.searches):
            raise RequestRefused(
                UNPROCESSABLE, "noise: this server's engine is a real one and returns no noisy documents; leave it out"
            )
        num_documents = asked.num_documents or default_num_documents
        return [self._request(asked, place, num_documents) for place in range(len(asked.searches))]

    def _request(self, asked: AskedSearches, place: int, num_documents: int) -> SearchRequest:
        search = asked.searches[place]
        step, noise = self._noise_of(asked, search)
        key = self._key(asked, place, step)
        return SearchRequest(
            query=search.query,
            question=search.question,
            answers=search.answers,
            key=key,
            num_documents=num_documents,
            noise_probability=noise,
            noisy=key.uniform("noise") < noise,
        )

    def _noise_of(self, asked: AskedSearches, search: AskedSearch) -> tuple[int, float]:
        if self._noise_at is None:
            return asked.step or 0, 0.0
        if search.noise is not None:
            return asked.step or 0, search.noise
        if asked.step is not None:
            return asked.step, self._noise_at(asked.step)
        own = self.step, self.probability
        self._num_counted += 1
        return own

    def _key(self, asked: AskedSearches, place: int, step: int) -> SampleKey:
        search = asked.searches[place]
        if asked.seed is None:
            return SampleKey(run_seed=self._seed, step=step, prompt=next(self._numbers), member=0, turn=search.turn)
        text = f"{search.question}\0{search.query}".encode("utf-8", "replace")
        prompt = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
        # Of the step only what the request itself says: the count would make another draw of the same request.
        return SampleKey(run_seed=asked.seed, step=asked.step or 0, prompt=prompt, member=place, turn=search.turn)
