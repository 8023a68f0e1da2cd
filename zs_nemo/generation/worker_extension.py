"""What runs inside vLLM's worker, where the model is: the loading of a refit, threads, and memory."""

import contextlib
import ctypes
import faulthandler
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Imported in vLLM's worker processes alone: they write their stacks into the engine's log when asked for them.
faulthandler.register(signal.SIGUSR2, all_threads=True, chain=False)


class WorkerExtension:
    """Mixed into vLLM's worker class by ``worker_extension_cls``; called through ``collective_rpc``."""

    model_runner: Any
    """vLLM's: present on the worker that this class is mixed into."""
    reload_weights: Any
    """vLLM's: that of the model runner, within the configuration that GPU kernels ask for while they are set up."""
    rank: int
    """vLLM's: among the ranks of this engine."""
    device: Any
    """vLLM's: a ``torch.device``."""

    def refit_from_file(self, path: str) -> int:
        """Load a safetensors file with Hugging Face names over the weights in place; return the number of tensors.

        ``reload_weights`` undoes and redoes the kernel-specific packing of the layers; writing into the parameters
        directly does not work on CPU. The weights travel as an iterator, not as vLLM's ``weights_path``, which would
        change the model folder in vLLM's configuration.
        """
        names: list[str] = []
        self._reload(_tensors(path, names))
        return len(names)

    def join_refit(self, address: dict[str, Any], first_number: int) -> None:
        """Become a member of the group that a refit comes through; ``address`` are the fields of its address."""
        from zs_nemo.weights.handle_transfer import join_transfer
        from zs_nemo.weights.transfer import TransferAddress

        self._refit_group = join_transfer(TransferAddress(**address), first_number + self.rank, self.device)

    def refit_from_group(self) -> list[tuple[str, list[int]]]:
        """Load what the group's sender sends as ``refit_from_file`` does; return the names and shapes that came."""
        came: list[tuple[str, list[int]]] = []

        def noted() -> "Iterator[tuple[str, Tensor]]":
            for name, tensor in self._refit_group.receive():
                came.append((name, list(tensor.shape)))
                yield name, tensor

        self._reload(noted())
        return came

    def _reload(self, weights: "Iterator[tuple[str, Tensor]]") -> None:
        self.reload_weights(weights_iterator=weights)
        _repack_tied_layers(self.model_runner.get_model())
        if self.device.type == "cuda":
            import torch

            # Copies of whole layers, which PyTorch would keep: on a shared GPU they are the ranks' again.
            torch.cuda.empty_cache()

    def release_memory(self) -> None:
        """Hand freed memory back to the system: of gigabytes that requests and packing leave behind, most is free."""
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    def set_threads(self, num_threads: int) -> int:
        """Set the number of compute threads of this process, at most one per core; return what it is now."""
        import torch

        from zs_nemo.generation.threaded_products import follow_threads

        follow_threads()
        # vLLM replaces torch.set_num_threads by a warning, for workers whose threads are bound to cores; ours are not.
        torch._C.set_num_threads(min(num_threads, len(os.sched_getaffinity(0))))
        return torch.get_num_threads()


def _repack_tied_layers(model: Any) -> None:
    """Pack anew what ``reload_weights`` passes over: layers that share the weight of another one.

    In vLLM 0.32 a tied output layer gets no tensor of its own, so its packed copy on CPU would stay that of the old
    weights: the model would read the new embedding and write through the old one, without a message.
    """
    seen: set[int] = set()
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is None or weight.numel() == 0:
            continue
        if weight.data_ptr() in seen:
            layer.quant_method.process_weights_after_loading(layer)
        seen.add(weight.data_ptr())


def _tensors(path: str, names: list[str]) -> "Iterator[tuple[str, Tensor]]":
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            names.append(name)
            yield name, file.get_tensor(name)
