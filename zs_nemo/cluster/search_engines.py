"""The search engines of a run: the one that answers during training and the real one that judges the result."""

from pathlib import Path

from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.search import Bm25SearchConfig, SimulatedSearchConfig
from zs_nemo.qa.facts import FactsWorld
from zs_nemo.rollout.callbacks import EngineSearch, RolloutCallback, SimulatedSearch, load_callback
from zs_nemo.rollout.episode import SearchSetting
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.search.bm25 import Bm25Search
from zs_nemo.search.demonstrations import build_demonstrations
from zs_nemo.search.simulator import SimulatedSearchEngine
from zs_nemo.types.generation import GenerationEngine, Tokenizer
from zs_nemo.types.search import SearchEngine


class SearchEngines:
    """Builds the engines, counts every call, and hands out settings for training and for evaluation."""

    def __init__(
        self,
        cfg: RecipeConfig,
        world: FactsWorld,
        ledger: SearchLedger,
        real: Bm25Search,
        simulator: GenerationEngine | None,
        simulator_tokenizer: Tokenizer | None,
    ) -> None:
        self._cfg = cfg
        self._real = ledger.watch(real)
        self._simulated: SearchEngine | None = None
        if isinstance(cfg.search, SimulatedSearchConfig):
            assert simulator is not None and simulator_tokenizer is not None
            engine = SimulatedSearchEngine(
                simulator,
                simulator_tokenizer,
                build_demonstrations(world),
                temperature=cfg.search.temperature,
                max_tokens=cfg.search.max_tokens,
            )
            self._simulated = ledger.watch(engine)
        self._callback = self._training_callback()

    def training(self, noise: float) -> SearchSetting:
        """Return the setting of one training step."""
        return SearchSetting(
            callback=self._callback, num_documents=self._cfg.search.num_documents, noise_probability=noise
        )

    def evaluation(self, engine: str) -> SearchSetting | None:
        """Return the setting of an evaluation with ``bm25`` or ``simulator`` (useful documents only), else None."""
        engines: dict[str, SearchEngine | None] = {"bm25": self._real, "simulator": self._simulated}
        chosen = engines.get(engine)
        if chosen is None:
            return None
        return SearchSetting(callback=EngineSearch(chosen), num_documents=self._cfg.evaluation.num_documents)

    @property
    def evaluates_with_simulator(self) -> bool:
        """Whether this run has a simulator at all."""
        return self._simulated is not None

    def _training_callback(self) -> RolloutCallback:
        engine = self._simulated if self._simulated is not None else self._real
        if self._cfg.rollout.callback:
            return load_callback(self._cfg.rollout.callback, engine)
        if self._simulated is None:
            return EngineSearch(engine)
        return SimulatedSearch(engine, shared_coins=self._cfg.curriculum.shared_coins)


def build_real_engine(cfg: RecipeConfig, world: FactsWorld) -> Bm25Search:
    """Return BM25 over the corpus that the configuration names, the facts world's by default."""
    return Bm25Search(corpus_of(cfg, world))


def corpus_of(cfg: RecipeConfig, world: FactsWorld) -> Path:
    """Return the file that BM25 searches."""
    corpus = cfg.search.corpus if isinstance(cfg.search, Bm25SearchConfig) else ""
    return Path(corpus) if corpus else world.corpus
