"""Lets megatron-core run where there is no GPU.

megatron-core asks for the device ``"cuda"`` by name in many places. Inside ``Platform.active()`` on CPU those requests
are redirected; outside of it, and on a machine with GPUs, nothing is changed.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from megatron.core.tensor_parallel import random as megatron_random
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


class _CudaMeansCpu(TorchFunctionMode):
    """Rewrites ``device="cuda"``, and lets ``Tensor.type()`` name the CUDA types that the optimizers compare with."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs = {**kwargs, "device": _CPU}
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


def _keep_freed_memory() -> None:
    """Have glibc reuse the memory of activations: handing it back and fetching it anew, page by page and zeroed, takes
    longer than many an operation on it."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        mallopt(mmap_threshold, 32 * 2**20)  # the largest value that glibc takes
        mallopt(trim_threshold, 2**30)
        mallopt(top_pad, 64 * 2**20)


class Platform:
    """The device of this rank, and the environment in which megatron-core may be called."""

    def __init__(self, *, use_gpu: bool, rank: int) -> None:
        self.use_gpu = use_gpu
        if use_gpu:
            # One visible GPU per process under Ray; all of them in a bare process.
            index = rank % torch.cuda.device_count()
            torch.cuda.set_device(index)
            self.device = torch.device("cuda", index)
        else:
            self.device = _CPU
            _keep_freed_memory()

    @property
    def backend(self) -> str:
        """The torch.distributed backend."""
        return "nccl" if self.use_gpu else "gloo"

    def release_freed_memory(self) -> None:
        """Hand the memory of past activations back to the system, before something else needs much of it.

        A GPU's is kept for the next update, which would have to ask the driver for all of it anew: engines there have a
        share of their own from the start, or wake up after ``release_gpu_memory``.
        """
        if self.use_gpu:
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    def release_gpu_memory(self) -> None:
        """Hand a GPU's memory of past activations back, for engines that wake up in it."""
        if self.use_gpu:
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Every call into megatron-core runs inside this context. May be nested."""
        if self.use_gpu:
            yield
            return
        replacements: list[tuple[Any, str, Any]] = [
            (torch.cuda, "current_device", lambda: _CPU),
            (torch.cuda, "synchronize", lambda *_args, **_kwargs: None),
            (torch.Tensor, "cuda", lambda tensor, *_args, **_kwargs: tensor),
            # Nothing draws from them: dropout is 0. The CPU's own generator is saved and restored beside them.
            (torch.cuda, "get_rng_state", lambda *_args, **_kwargs: None),
            (megatron_random, "_get_cuda_rng_state", lambda *_args, **_kwargs: None),
            (megatron_random, "_set_cuda_rng_state", lambda *_args, **_kwargs: None),
        ]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
        for owner, name, value in replacements:
            setattr(owner, name, value)
        try:
            with _CudaMeansCpu():
                yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)


def on_platform(method: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Run a method of an object that has a ``platform`` inside ``platform.active()``."""

    @functools.wraps(method)
    def wrapper(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        with args[0].platform.active():  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return wrapper
