"""Settings of the recipe that evaluates a policy by itself."""

from dataclasses import dataclass, field
from enum import Enum

from zs_nemo.config.answering import AnsweringConfig
from zs_nemo.config.recipe import check_simulator_is_told
from zs_nemo.config.search import NoSearchConfig


class Method(Enum):
    """How a question is answered."""

    agent = "agent"
    """The policy thinks and searches as it likes: what is trained here. An untrained folder is the baseline to it."""
    retrieve_then_read = "retrieve_then_read"
    """One search with the question itself, then an answer."""
    chain_of_thought = "chain_of_thought"
    """Reasoning without a search, as long as the agent's turns together may be, then an answer."""
    direct = "direct"
    """An answer at once, from memory."""

    @property
    def searches(self) -> bool:
        """Whether a search engine is asked."""
        return self in (Method.agent, Method.retrieve_then_read)


@dataclass(kw_only=True)
class EvaluateConfig:
    """``evaluate``: what is measured. The sets are ``data.test``, the engine and k are ``search``."""

    methods: list[Method] = field(default_factory=lambda: [Method.agent])
    """Each is an evaluation of its own over the same questions; the first is what the others are compared with."""
    limit: int = 0
    """Questions taken of each set, drawn by ``data.seed``, for a sample; 0 for all rows."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    bootstrap_samples: int = 2000
    max_failed_share: float = 0.02
    """Share of an evaluation's questions that may stay without an answer because their search failed, also because a
    simulator wrote nothing, or because their time ran out. They are named and have no score. With more of them the run
    stops; the same command asks them again."""
    max_empty_share: float = 0.5
    """Share of the searches that the engine may answer without a document; with more of them there is no score, for the
    engine is likely to be at fault."""

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(
                f"evaluate.methods={[method.name for method in self.methods]} must name at least one method, each "
                f"once, out of {[method.name for method in Method]}"
            )
        if self.limit < 0:
            raise ValueError(f"evaluate.limit={self.limit} must be 0 (all rows) or positive")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"evaluate.temperature={self.temperature} must not be negative (0 is greedy), and "
                f"evaluate.top_p={self.top_p} must lie in (0, 1]"
            )
        if self.bootstrap_samples < 1:
            raise ValueError(f"evaluate.bootstrap_samples={self.bootstrap_samples} must be at least 1; 2000 is usual")
        for name in ("max_failed_share", "max_empty_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"evaluate.{name}={getattr(self, name)} must lie in [0, 1]")


@dataclass(kw_only=True)
class EvaluateRecipeConfig(AnsweringConfig):
    """Everything that an evaluation depends on."""

    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    manifest: str = ""
    """``manifest.json`` of an earlier evaluation to repeat: its settings are taken, and what would make this another
    evaluation is refused by name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        searching = [method.name for method in self.evaluate.methods if method.searches]
        if searching and isinstance(self.search, NoSearchConfig):
            raise ValueError(
                f"search=none answers no search, but evaluate.methods holds {', '.join(searching)}; take "
                "evaluate.methods=[direct,chain_of_thought], or choose search=bm25, retriever, web or simulated"
            )
        if searching:
            check_simulator_is_told(self.search, self.data, "test")
        if self.evaluate.limit and self.data.test_counts:
            raise ValueError(
                f"evaluate.limit={self.evaluate.limit} and data.test_counts={self.data.test_counts} both say how many "
                "questions are taken of a set; set one of them"
            )
