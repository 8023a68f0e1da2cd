"""A checkpoint's weights as a Hugging Face folder, in one process, without an optimizer."""

import socket
from pathlib import Path

import torch
from megatron.core import parallel_state

from zs_nemo.config.policy import PolicyConfig, Precision
from zs_nemo.training import checkpoint
from zs_nemo.training.model import build_model, iterate_hf
from zs_nemo.training.platform import Platform
from zs_nemo.weights.families import read_architecture
from zs_nemo.weights.hf_folder import SafetensorsWriter, copy_all_but_weights


def export_checkpoint(
    source: Path, model_folder: Path, target: Path, *, precision: Precision, prefix: str = ""
) -> None:
    """Write the policy of the checkpoint ``source`` to the Hugging Face folder ``target``.

    ``model_folder`` is the Hugging Face folder that the training began with: configuration and tokenizer come from it.
    The layout of ranks under which the checkpoint was written does not matter. Needs memory for the weights once.
    Raises ``ValueError`` when the checkpoint is not whole or belongs to another model.
    """
    architecture = read_architecture(model_folder)
    platform = Platform(use_gpu=False, rank=0)
    with platform.active(), _OneRank():
        model = build_model(architecture, PolicyConfig(precision=precision), platform.device)
        checkpoint.load_weights(source, model, prefix=prefix)
        dtype = next(model.parameters()).dtype
        copy_all_but_weights(model_folder, target, dtype=dtype)
        with SafetensorsWriter(target / "model.safetensors", architecture.hf_shapes(), dtype) as writer:
            for name, tensor in iterate_hf(model, architecture):
                writer.write(name, tensor)


class _OneRank:
    """A process group of this process alone."""

    def __enter__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
        parallel_state.initialize_model_parallel()

    def __exit__(self, *_error: object) -> None:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
