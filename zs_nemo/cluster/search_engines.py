"""The search engines of a run: the one that answers during training and the real one that judges the result."""

import logging
import shlex
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from zs_nemo.cluster.accelerator import uses_gpu
from zs_nemo.config.cost import CostConfig
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.remote_search import RetrieverSearchConfig, WebSearchConfig
from zs_nemo.config.search import (
    Bm25SearchConfig,
    NoiseUnit,
    SearchConfig,
    SimulatedSearchConfig,
    settings_stand_at,
)
from zs_nemo.evaluation.evaluator import CLOSED_BOOK
from zs_nemo.observability.cost import bought_usd
from zs_nemo.observability.phase import Phase
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.rollout.build import check_own_code
from zs_nemo.rollout.callbacks import EngineSearch, RolloutCallback, SimulatedSearch, resolve_callback
from zs_nemo.rollout.episode import SearchSetting
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.search.bm25 import Bm25Search, check_corpus
from zs_nemo.search.build import Simulator, build_simulator
from zs_nemo.search.demonstrations import build_demonstrations
from zs_nemo.search.prompt_template import load_template
from zs_nemo.search.retriever import RetrieverSearch
from zs_nemo.search.simulator import TextSimulator
from zs_nemo.search.web import WebSearch
from zs_nemo.types.generation import GenerationEngine, Tokenizer
from zs_nemo.types.search import SearchEngine

_LOGGER = logging.getLogger(__name__)

RemoteEngine = RetrieverSearch | WebSearch


@dataclass(frozen=True, kw_only=True)
class RealEngines:
    """The real engines of a run. Both may be the same one."""

    training: SearchEngine | None
    """Answers during training; None when the simulator does."""
    judge: SearchEngine | None
    """Answers in evaluations; None where it is BM25 and has not been built yet."""


class SearchEngines:
    """Builds the engines, counts every call, and hands out settings for training and for evaluation."""

    def __init__(
        self,
        cfg: RecipeConfig,
        world: FactsWorld,
        ledger: SearchLedger,
        real: RealEngines,
        simulator: GenerationEngine | None,
        simulator_tokenizer: Tokenizer | None,
    ) -> None:
        assert real.judge is not None
        self._cfg = cfg
        self._real = real
        self._judge = ledger.watch(real.judge)
        self._training = self._judge if real.training is real.judge else None
        if real.training is not None and self._training is None:
            self._training = ledger.watch(real.training)
        self._simulator: Simulator | None = None
        self._simulated: SearchEngine | None = None
        if isinstance(cfg.search, SimulatedSearchConfig):
            self._simulator = build_simulator(
                cfg.search,
                engine=simulator,
                tokenizer=simulator_tokenizer,
                demonstrations=build_demonstrations(world),
            )
            self._simulated = ledger.watch(self._simulator.engine)
        self._callback = self._training_callback()

    def training(self, noise: float) -> SearchSetting:
        """Return the setting of one training step."""
        return SearchSetting(
            callback=self._callback,
            num_documents=self._cfg.search.num_documents,
            noise_probability=noise,
            engine=self.training_name,
            # A callback of the user's own may ask others than the run's engines.
            has_deadline=bool(self._cfg.rollout.callback) or not self._cfg.search.needs_engines,
            account=self._simulator.account if self._simulator is not None else str,
        )

    def evaluation(self, engine: str) -> SearchSetting | None:
        """Return the setting of an evaluation with ``judge`` or ``simulator`` (useful documents only), else None."""
        engines: dict[str, SearchEngine | None] = {self.judge: self._judge, "simulator": self._simulated}
        chosen = engines.get(engine)
        if chosen is None:
            return None
        return SearchSetting(
            callback=EngineSearch(chosen),
            num_documents=self._cfg.evaluation.num_documents,
            engine=chosen.name,
            has_deadline=chosen is not self._simulated or not self._cfg.search.needs_engines,
            account=self._simulator.account if self._simulator is not None and chosen is self._simulated else str,
        )

    @property
    def training_name(self) -> str:
        """Name of the engine that answers during training."""
        engine = self._simulated or self._training
        assert engine is not None
        return engine.name

    @property
    def judge(self) -> str:
        """Name of the real engine on which the policy is evaluated."""
        return self._judge.name

    @property
    def evaluates_with_simulator(self) -> bool:
        """Whether this run has a simulator at all."""
        return self._simulated is not None

    def metrics(self) -> dict[str, float]:
        """Return the simulator's own figures since the start of this session; none without one."""
        return self._simulator.metrics() if self._simulator is not None else {}

    async def aclose(self) -> None:
        """Close connections to other servers, in the event loop that has used them."""
        for engine in (self._real.training, self._real.judge):
            if isinstance(engine, RemoteEngine):
                await engine.aclose()
        if self._simulator is not None:
            await self._simulator.aclose()

    def _training_callback(self) -> RolloutCallback:
        engine = self._simulated if self._simulated is not None else self._training
        assert engine is not None, "without a simulator a real engine answers during training"
        if self._cfg.rollout.callback:
            return resolve_callback(self._cfg.rollout.callback)(engine)
        if self._simulated is None:
            return EngineSearch(engine)
        search = self._cfg.search
        by_document = isinstance(search, SimulatedSearchConfig) and search.noise_unit is NoiseUnit.document
        return SimulatedSearch(engine, coin=self._cfg.curriculum.coin, coin_per_document=by_document)


def engine_name(settings: SearchConfig) -> str:
    """Return the name of the engine that these settings describe, as results and counts have it."""
    names: dict[type[SearchConfig], str] = {
        SimulatedSearchConfig: TextSimulator.name,
        RetrieverSearchConfig: RetrieverSearch.name,
        WebSearchConfig: WebSearch.name,
        Bm25SearchConfig: Bm25Search.name,
    }
    return names.get(type(settings), CLOSED_BOOK)


def build_remote_engine(
    settings: SearchConfig | None, prices: CostConfig, *, num_searches_before: int = 0, place: str = "search"
) -> RemoteEngine | None:
    """Return the client of an engine elsewhere, None for any other.

    Raises ``ValueError`` without its credentials, and for a retriever that does not answer a query; the web is not
    asked, which costs. ``num_searches_before`` is what a resumed run has asked of the web already, for its quota.
    ``place`` is where the settings stand. Not for a running event loop.
    """
    if isinstance(settings, RetrieverSearchConfig):
        with settings_stand_at(place):
            retriever = RetrieverSearch(settings)
        retriever.check_served(place)
        return retriever
    with settings_stand_at(place):
        if isinstance(settings, WebSearchConfig):
            usd_per_search = bought_usd(1, prices.usd_per_1000_searches)
            return WebSearch(
                settings, usd_per_search=usd_per_search, num_searches_before=num_searches_before, place=place
            )
    return None


def build_remote_engines(cfg: RecipeConfig, ledger: SearchLedger) -> RealEngines:
    """Return the real engines elsewhere, before anything starts: a missing key or a dead server is found here."""
    if cfg.evaluation.search == cfg.search:
        both = build_remote_engine(cfg.search, cfg.cost, num_searches_before=ledger.asked(WebSearch.name))
        return RealEngines(training=both, judge=both)
    # Both are counted under one name: the phase tells whose searches they were.
    asked_in_training = ledger.asked(WebSearch.name, [phase for phase in Phase if phase is not Phase.evaluation])
    training = build_remote_engine(cfg.search, cfg.cost, num_searches_before=asked_in_training)
    judge = build_remote_engine(
        cfg.evaluation.search,
        cfg.cost,
        num_searches_before=ledger.asked(WebSearch.name, [Phase.evaluation]),
        place="evaluation.search",
    )
    return RealEngines(training=training, judge=judge)


def build_real_engines(cfg: RecipeConfig, world: FactsWorld, remote: RealEngines) -> RealEngines:
    """Complete ``remote`` with BM25, over the corpus that the configuration names or the facts world's, if needed."""
    # Training and evaluation over the same corpus share one index.
    local = lru_cache(partial(build_bm25, world=world, on_gpus=uses_gpu(cfg)))
    training, judge = remote.training, remote.judge
    if training is None and not isinstance(cfg.search, SimulatedSearchConfig):
        training = local(corpus_of(cfg.search, world))
    if judge is None:
        with settings_stand_at("evaluation.search" if cfg.evaluation.search else "search"):
            judge = local(corpus_of(cfg.evaluation.search or cfg.search, world))
    return RealEngines(training=training, judge=judge)


def build_bm25(corpus: Path, *, world: FactsWorld, on_gpus: bool) -> Bm25Search:
    """Return BM25 over a corpus; log a warning where GPUs have to wait for the index of one of the user's own."""
    is_own = corpus != world.corpus
    return Bm25Search(corpus, on_building=partial(_warn_of_building, corpus) if on_gpus and is_own else None)


def _warn_of_building(corpus: Path, num_documents: int) -> None:
    _LOGGER.warning(
        "the index of %s (%s documents) is not there yet: it is built now, and the GPUs wait for it; "
        "python recipes/build_index.py %s builds it beforehand, and shows how far it is",
        corpus,
        f"{num_documents:,}",
        shlex.quote(str(corpus)),
    )


def check_own_corpus(settings: SearchConfig, place: str, others: list[str], world: FactsWorld) -> None:
    """Raise ``ValueError`` where the corpus that BM25 is to search is no file, or its first line is no document.

    Logs a warning where it is to find answers to ``others``, sets of questions, in the facts world's documents.
    """
    corpus = corpus_of(settings, world)
    if corpus != world.corpus:
        with settings_stand_at(place):
            check_corpus(corpus)
    elif others:
        group = place if place == "search" else f"+search@{place}"
        _LOGGER.warning(
            "BM25 searches the facts world's documents, which know little of %s; name another corpus "
            "(%s=bm25 %s.corpus=FILE) or another engine (%s=retriever or web)",
            ", ".join(others),
            group,
            place,
            group,
        )


def check_named(cfg: RecipeConfig) -> None:
    """Raise ``ValueError`` unless code and wording of the user's own can be used. Asks nobody and starts nothing."""
    check_own_code(cfg)
    if isinstance(cfg.search, SimulatedSearchConfig):
        load_template(cfg.search.template, cfg.search.documents_per_completion)


def warn_of_other_counts(cfg: RecipeConfig) -> None:
    """Log a warning where a trained policy is judged on searches of more or fewer documents than it trains on."""
    trained, judged = cfg.search.num_documents, cfg.evaluation.num_documents
    if cfg.has_ranks and trained != judged:
        _LOGGER.warning(
            "search.num_documents=%d, but evaluation.num_documents=%d: a search brings another number of documents in "
            "evaluations than in training; set evaluation.num_documents=%d unless that is meant",
            trained,
            judged,
            trained,
        )


def corpus_of(settings: SearchConfig, world: FactsWorld) -> Path:
    """Return the file that BM25 searches."""
    corpus = settings.corpus if isinstance(settings, Bm25SearchConfig) else ""
    return Path(corpus).expanduser() if corpus else world.corpus
