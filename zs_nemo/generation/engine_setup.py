"""What an engine needs to start, and the environment its process must have before vLLM is imported."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """Everything one engine needs. Picklable: it travels to the process that runs the engine."""

    model_path: str
    """A Hugging Face folder with safetensors and a tokenizer."""
    dtype: str
    """``bfloat16`` or ``float32``."""
    tensor_model_parallel_size: int = 1
    kv_cache_gib: float = 0.75
    """Memory for keys and values on CPU, per tensor-parallel rank."""
    gpu_memory_utilization: float = 0.4
    """Share of a GPU, weights included; not used on CPU."""
    besides_kv_gib: float = 0.0
    """On a GPU that other processes share: what of that share is not for keys and values. 0 lets vLLM measure it, which
    it does by the memory of the whole GPU, so that others who start or free memory meanwhile falsify it."""
    is_refit: bool = False
    """Whether it is given other weights while it runs; on a GPU that takes memory beside them."""
    sleeps: bool = False
    """Whether it can give up its GPU's memory for a time; a CPU has no such thing."""
    enforce_eager: bool = False
    """Without compiled kernels and CUDA graphs; not used on CPU, which has none."""
    max_num_seqs: int = 64
    max_model_len: int = 1024
    """Longest sequence in tokens, prompt and completion together."""
    threads: int = 1
    """Compute threads on CPU."""
    use_gpu: bool = False
    name: str = "engine"
    """The role, for messages and log files, such as ``policy-engine-0``."""
    seed: int = 0
    """Of the engine itself; every request brings its own."""

    @property
    def in_process(self) -> bool:
        """Whether all of vLLM runs in the process that builds the engine: one rank on CPU."""
        return not self.use_gpu and self.tensor_model_parallel_size == 1


def engine_environment(setup: EngineSetup) -> dict[str, str]:
    """Return the environment variables to set before vLLM (and torch) is imported in an engine's process."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if setup.use_gpu:
        return environment
    return environment | {
        "OMP_NUM_THREADS": str(setup.threads),
        "TORCHDYNAMO_DISABLE": "1",
        # vLLM pins threads to the first cores it may use; several engines and ranks would pin to the same ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if setup.in_process else "1",
    }
