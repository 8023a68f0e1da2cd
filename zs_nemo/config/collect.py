"""Settings of the recipe that records what a policy asks a real engine."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from zs_nemo.config.endpoints import (
    ApiKind,
    EndpointPoolConfig,
    check_endpoints,
    check_extra_body,
    check_variable_name,
)
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.search import SimulatedSearchConfig


class JudgeName(Enum):
    """Who says whether the documents of a search are useful."""

    outcome = "outcome"
    """How the episode ended: all that was shown in one that answered right."""
    containment = "containment"
    """Whether a document contains a gold answer."""
    evidence = "evidence"
    """Whether a document is one that the question set names as evidence, the first of two steps included; undecided
    where none is and one contains an answer all the same; where the set names none, as ``containment``."""
    llm = "llm"
    """A language model behind an OpenAI-compatible endpoint."""


class JudgedUnit(Enum):
    """What one verdict is about, and one example of."""

    search = "search"
    """All documents of a search together: for simulators that write them together."""
    document = "document"
    """Every document by itself: for simulators that write each in a completion of its own. Beside a useful document
    there are then useless ones for the same query."""


class ExamplesFormat(Enum):
    """How the examples are written. Both have the same fields, and a fine-tuning reads either."""

    jsonl = "jsonl"
    """One JSON object a line."""
    parquet = "parquet"
    """Parquet, a column a field."""


@dataclass(kw_only=True)
class LlmJudgeConfig:
    """``collect.llm``: for ``collect.judge=llm``."""

    endpoints: list[str] = field(default_factory=list)
    """Addresses of OpenAI-compatible servers that all serve the same model, as ``search.endpoints``."""
    served_model: str = ""
    """Name under which they serve it."""
    api: ApiKind = ApiKind.chat
    extra_body: dict[str, Any] = field(default_factory=dict)
    """As ``search.extra_body``."""
    api_key_variable: str = ""
    """Name of the environment variable that holds the bearer key; empty for none."""
    pool: EndpointPoolConfig = field(default_factory=EndpointPoolConfig)
    max_nonsense_share: float = 0.1
    """Share of the answers that may be no verdict, in all sessions together, with the requests that the servers reject;
    above it the recipe stops."""

    def __post_init__(self) -> None:
        check_endpoints(self.endpoints, "collect.llm.endpoints")
        self.pool.check("collect.llm.pool")
        check_extra_body(
            self.extra_body, "collect.llm.extra_body", endpoints=self.endpoints, where="collect.llm.endpoints"
        )
        if self.api_key_variable:
            check_variable_name("collect.llm.api_key_variable", self.api_key_variable)
        if not 0 <= self.max_nonsense_share <= 1:
            raise ValueError(f"collect.llm.max_nonsense_share={self.max_nonsense_share} must lie in [0, 1]")


@dataclass(kw_only=True)
class CollectConfig:
    """``collect``: what is recorded, and how it is made into examples."""

    split: str = "train"
    """``train`` for examples to learn from; ``validation`` or ``test`` for searches to measure a simulator on, all of
    which are then held out."""
    num_questions: int = 0
    """Questions that are asked; 0 for all of the split. A collection that goes on may be given another number."""
    judge: JudgeName = JudgeName.containment
    unit: JudgedUnit = JudgedUnit.search
    outcome_threshold: float = 0.8
    """Token F1 from which ``judge=outcome`` takes an answer for right."""
    held_out_share: float = 0.1
    """Share of the questions whose searches are kept out of training, to measure the loss on."""
    balance: bool = True
    """As many useful as useless examples; surplus ones are left out, of the useless ones those first whose query has
    brought nothing useful."""
    examples_format: ExamplesFormat = ExamplesFormat.jsonl
    llm: LlmJudgeConfig = field(default_factory=LlmJudgeConfig)

    def __post_init__(self) -> None:
        if self.split not in ("train", "validation", "test"):
            raise ValueError(f"collect.split={self.split!r} must be train, validation or test")
        if self.split != "train":
            self.held_out_share = 1.0
        if self.num_questions < 0:
            raise ValueError(f"collect.num_questions={self.num_questions} must be 0 (all) or positive")
        if not 0 < self.outcome_threshold <= 1:
            raise ValueError(
                f"collect.outcome_threshold={self.outcome_threshold} must lie in (0, 1]: it is a token F1, and one of "
                "0 would call every episode a success"
            )
        if not 0 <= self.held_out_share <= 1:
            raise ValueError(f"collect.held_out_share={self.held_out_share} must lie in [0, 1]")
        if self.judge is JudgeName.llm and not (self.llm.endpoints and self.llm.served_model):
            raise ValueError(
                "collect.judge=llm needs collect.llm.endpoints and collect.llm.served_model; set both, or choose "
                "collect.judge=containment, which asks no model"
            )


@dataclass(kw_only=True)
class CollectRecipeConfig(RecipeConfig):
    """Everything that a collection depends on. ``policy`` is who asks, ``search`` the real engine that answers."""

    has_ranks: ClassVar[bool] = False

    collect: CollectConfig = field(default_factory=CollectConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.search, SimulatedSearchConfig):
            raise ValueError(
                "search=simulated: a simulator learns from a real engine; choose search=bm25, retriever or web"
            )
