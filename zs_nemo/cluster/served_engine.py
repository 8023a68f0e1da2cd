"""The engine that the search server serves, built from its settings."""

from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zs_nemo.cluster.preflight import check_simulator
from zs_nemo.cluster.roles import RoleError
from zs_nemo.cluster.search_engines import build_remote_engine
from zs_nemo.cluster.simulator_system import simulator_engines
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.search import Bm25SearchConfig, NoiseUnit, SimulatedSearchConfig
from zs_nemo.config.server import ServerNoiseConfig, ServeSearchConfig
from zs_nemo.curriculum import NoiseCurriculum
from zs_nemo.qa.facts import load_facts_world
from zs_nemo.search.bm25 import Bm25Search
from zs_nemo.search.build import Simulator, build_simulator
from zs_nemo.search.demonstrations import build_demonstrations
from zs_nemo.search.server_noise import ServerNoise
from zs_nemo.search.server_requests import UNPROCESSABLE, RequestRefused
from zs_nemo.search.threaded import ThreadedBm25
from zs_nemo.types.search import SearchEngine, SearchFailure, SearchFailureKind, SearchRequest, SearchResult
from zs_nemo.weights.pretrained import load_tokenizer, resolve_model


@dataclass(frozen=True, kw_only=True)
class ServedEngine:
    """What the server needs to know of its engine."""

    engine: SearchEngine
    noise: ServerNoise | None
    """Decides how noisy answers are; None for an engine that cannot be noisy."""
    aclose: Callable[[], Awaitable[None]]
    """Ends what belongs to the server's event loop."""
    trouble: Callable[[], str] = str
    """Returns why searches would fail now, "" where nothing is known against them; asked in the server's event loop."""


@contextmanager
def served_engine(cfg: ServeSearchConfig) -> Iterator[ServedEngine]:
    """Build the engine and end what belongs to it; raise ``ValueError`` for settings that cannot work together."""
    if isinstance(cfg.search, SimulatedSearchConfig):
        with _simulator(cfg, cfg.search) as simulator:
            curriculum = NoiseCurriculum.from_config(cfg.curriculum, max_steps=cfg.trainer.max_steps)
            noise = ServerNoise(
                cfg.server.noise,
                _unknown_noise if cfg.lacks_max_steps else curriculum.noise_at,
                seed=cfg.seed,
                coin=cfg.curriculum.coin,
                coin_per_document=cfg.search.noise_unit is NoiseUnit.document,
            )
            engine = LostIsUnavailable(simulator.engine)
            yield ServedEngine(engine=engine, noise=noise, aclose=simulator.aclose, trouble=simulator.trouble)
        return
    if cfg.server.noise != ServerNoiseConfig():
        raise ValueError(
            f"server.noise is set, but search={type(cfg.search).__name__.removesuffix('SearchConfig').lower()} is a "
            "real engine and returns no noisy documents; leave server.noise as it is, or serve search=simulated"
        )
    remote = build_remote_engine(cfg.search, cfg.cost)
    if remote is not None:
        yield ServedEngine(engine=remote, noise=None, aclose=remote.aclose)
        return
    with ThreadPoolExecutor(1) as pool:
        yield ServedEngine(engine=ThreadedBm25(_bm25(cfg), pool), noise=None, aclose=_nothing)


def _unknown_noise(step: int) -> float:
    """Refuse a step of a curriculum whose length nobody has told."""
    raise RequestRefused(
        UNPROCESSABLE,
        f"step: how noisy step {step} is depends on how many the training has, which this server was not told; start "
        "it with trainer.max_steps, or send noise or noisy in place of step",
    )


def told_noise(cfg: ServeSearchConfig) -> str:
    """Return a line that says how noisy a simulator's answers are; empty for an engine that cannot be noisy."""
    if not isinstance(cfg.search, SimulatedSearchConfig):
        return ""
    noise, steps = cfg.server.noise, cfg.trainer.max_steps
    curriculum = f"the curriculum {cfg.curriculum.name.name}" + (f" over trainer.max_steps={steps}" if steps else "")
    if noise.searches_per_step:
        return (
            f"P(noisy) follows {curriculum}, from step {noise.first_step} on, one step every {noise.searches_per_step} "
            "searches"
        )
    if cfg.lacks_max_steps:
        of_step = "one that names a step is refused, because trainer.max_steps is not set"
    else:
        of_step = f"one that names a step follows {curriculum}"
    return f"P(noisy) is {noise.probability:g} for a request that says nothing of it; {of_step}"


async def _nothing() -> None:
    """End nothing."""


def _bm25(cfg: ServeSearchConfig) -> Bm25Search:
    corpus = cfg.search.corpus if isinstance(cfg.search, Bm25SearchConfig) else ""
    return Bm25Search(Path(corpus).expanduser() if corpus else load_facts_world(cfg.data).corpus)


@contextmanager
def _simulator(cfg: ServeSearchConfig, search: SimulatedSearchConfig) -> Iterator[Simulator]:
    demonstrations = build_demonstrations(load_facts_world(cfg.data))
    check_simulator(search)
    if not search.needs_engines:
        yield build_simulator(search, demonstrations=demonstrations)
        return
    tokenizer = load_tokenizer(resolve_model(search.model, setting="search.model"))
    run = RecipeConfig(seed=cfg.seed, search=search, cluster=cfg.cluster, trainer=cfg.trainer, faults=cfg.faults)
    with simulator_engines(run, Path(cfg.log_dir)) as engines:
        yield build_simulator(search, engine=engines, tokenizer=tokenizer, demonstrations=demonstrations)


class LostIsUnavailable:
    """A simulator whose engine process has died is one that cannot be reached, to a client of the server."""

    def __init__(self, engine: SearchEngine) -> None:
        self.name = engine.name
        self._engine = engine

    async def search(self, request: SearchRequest) -> SearchResult:
        """Pass the request on."""
        try:
            return await self._engine.search(request)
        except RoleError as error:
            # Its other lines are the tail of a log on this machine.
            raise SearchFailure(SearchFailureKind.unavailable, str(error).partition("\n")[0]) from error
