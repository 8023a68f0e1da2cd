"""The hook by which documents enter an episode.

A callback gets a ``SearchRequest``, which belongs to one turn of one trajectory, and returns a ``SearchResult``. Write
your own by implementing ``RolloutCallback`` and naming it in ``rollout.callback``.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol, cast

from zs_nemo.config.rollout import CoinScope
from zs_nemo.search.noise_coin import with_coin_tossed
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchEngine, SearchRequest, SearchResult


class RolloutCallback(Protocol):
    """Answers the searches of episodes. Called concurrently, from one event loop."""

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer one request; raise ``SearchFailure`` when there is nothing to show."""
        ...


class EngineSearch:
    """Asks a search engine as it is: a real one during evaluation, or in training with ``search=bm25``."""

    def __init__(self, engine: SearchEngine) -> None:
        self._engine = engine

    async def search(self, request: SearchRequest) -> SearchResult:
        """Pass the request on."""
        return await self._engine.search(request)


class SimulatedSearch:
    """Tosses the curriculum's coin and asks the simulator for useful or for noisy documents.

    The coin is keyed by what ``coin`` says out of the request's key, so it is the same when the call is tried again,
    when the run is resumed, and whatever else is under way. With ``coin_per_document`` every document has one of its
    own.
    """

    def __init__(
        self, simulator: SearchEngine, *, coin: CoinScope = CoinScope.query, coin_per_document: bool = False
    ) -> None:
        self._simulator = simulator
        self._coin = coin
        self._coin_per_document = coin_per_document

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer with documents that are noisy with probability ``request.noise_probability``."""
        key = coin_key(request.key, self._coin)
        return await self._simulator.search(with_coin_tossed(request, key, per_document=self._coin_per_document))


def coin_key(key: SampleKey, scope: CoinScope) -> SampleKey:
    """Return the key of the coin that the search of ``key`` tosses: equal keys, equal coins."""
    match scope:
        case CoinScope.query:
            return key
        case CoinScope.trajectory:
            return replace(key, turn=0)
        case CoinScope.group:
            return replace(key, member=0)


def resolve_callback(path: str) -> Callable[[SearchEngine], RolloutCallback]:
    """Return the class named by ``rollout.callback``.

    Raises ``ValueError`` when it cannot be imported, and where it can be seen that it makes no callback of an engine.
    """
    module_name, _, class_name = path.rpartition(".")
    try:
        named = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"rollout.callback={path!r} cannot be imported ({error}); name it as package.module.ClassName and put its "
            "package on PYTHONPATH"
        ) from error
    except Exception as error:
        # What a module of the user's own does when it is imported, its syntax included.
        raise ValueError(f"rollout.callback={path!r} cannot be imported ({error!r}); mend {module_name}") from error
    if problem := _misfit(named):
        raise ValueError(
            f"rollout.callback={path!r} {problem}; name a class whose constructor takes the search engine alone and "
            "that has the method search (RolloutCallback in zs_nemo/rollout/callbacks.py)"
        )
    return cast(Callable[[SearchEngine], RolloutCallback], named)


def _misfit(named: Any) -> str:
    """Return why ``named`` makes no callback of an engine; "" where that cannot be seen without making one."""
    if not callable(named):
        return f"is no class but of type {type(named).__name__}"
    if isinstance(named, type) and not hasattr(named, "search"):
        return "has no method search"
    try:
        signature = inspect.signature(named)
    except ValueError:
        # Of some that are not written in Python.
        return ""
    try:
        signature.bind(None)
    except TypeError as error:
        return f"cannot be made with the engine as its one argument ({error})"
    return ""
