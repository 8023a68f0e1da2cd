"""One rank of the trained models: policy, reference, critic. A plain class; ``cluster`` wraps it in an actor."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

from zs_nemo.config.policy import OptimConfig, PolicyConfig
from zs_nemo.training import checkpoint
from zs_nemo.training.model import build_model, iterate_hf, load_hf, shares_prefixes, token_multiple
from zs_nemo.training.packed_passes import PackedPasses
from zs_nemo.training.platform import Platform, on_platform
from zs_nemo.training.trained_model import TrainedModel
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.loss import TokenLoss
from zs_nemo.weights.families import read_architecture
from zs_nemo.weights.handle_transfer import HandleTransfer, join_transfer
from zs_nemo.weights.hf_folder import HfTensors, SafetensorsWriter, copy_all_but_weights
from zs_nemo.weights.pretrained import resolve_model
from zs_nemo.weights.transfer import TransferAddress, TransferGroup


@dataclass(kw_only=True)
class WorkerSetup:
    """All that a rank needs to know; picklable."""

    rank: int
    world_size: int
    master_addr: str
    master_port: int
    model_path: str
    """A Hugging Face folder, or ``package:NAME``."""
    policy: PolicyConfig
    """Of the policy; its layout is that of all models on these ranks."""
    temperature: float
    """Logits are divided by it: that of the sampling."""
    max_steps: int
    """Updates that the policy's learning-rate schedule is laid out for."""
    seed: int
    use_gpu: bool
    with_reference: bool
    max_grad_norm: float = 0.0
    """Gradient norm above which no update is made; 0 for no limit."""
    with_policy: bool = True
    """False for ranks that hold the critic alone."""
    critic: PolicyConfig | None = None
    """Of the critic; None without one."""
    critic_max_steps: int = 1
    """Updates that the critic's learning-rate schedule is laid out for."""
    collective_timeout_s: float = 3600.0
    """How long ranks wait for each other: for the slowest to write its part of a checkpoint, or to read it."""


class MegatronWorker:
    """One rank. Every method is collective: all ranks call it with the same arguments."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self.platform = Platform(use_gpu=setup.use_gpu, rank=setup.rank)
        self._savings: list[checkpoint.Saving] = []
        self._refit_group: TransferGroup | HandleTransfer
        self._folder = resolve_model(setup.model_path)
        self._architecture = read_architecture(self._folder)
        self._architecture.check_layout(
            tensor_parallel=setup.policy.tensor_model_parallel_size,
            pipeline_parallel=setup.policy.pipeline_model_parallel_size,
            layers_in_first_stage=setup.policy.num_layers_in_first_pipeline_stage,
            layers_in_last_stage=setup.policy.num_layers_in_last_pipeline_stage,
        )
        with self.platform.active():
            self._join_process_group()
            self._build()

    def _join_process_group(self) -> None:
        setup = self.setup
        # By itself NCCL gives up after 10 minutes.
        timeout = timedelta(seconds=setup.collective_timeout_s)
        torch.distributed.init_process_group(
            self.platform.backend,
            init_method=f"tcp://{setup.master_addr}:{setup.master_port}",
            rank=setup.rank,
            world_size=setup.world_size,
            timeout=timeout,
        )
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=setup.policy.tensor_model_parallel_size,
            pipeline_model_parallel_size=setup.policy.pipeline_model_parallel_size,
            context_parallel_size=setup.policy.context_parallel_size,
            distributed_timeout_minutes=math.ceil(setup.collective_timeout_s / 60),
        )
        torch.manual_seed(setup.seed)
        tensor_parallel.model_parallel_cuda_manual_seed(setup.seed)

    def _build(self) -> None:
        setup, device = self.setup, self.platform.device
        self._passes = PackedPasses(
            device,
            max_tokens=setup.policy.train_mb_tokens,
            share_prefixes=shares_prefixes(setup.policy),
            temperature=setup.temperature,
            multiple_of=token_multiple(setup.policy),
        )
        self._trained_policy = self._trained(setup.policy, is_critic=False) if setup.with_policy else None
        self._trained_critic = self._trained(setup.critic, is_critic=True) if setup.critic else None
        self._frozen_reference: torch.nn.Module | None = None
        if setup.with_reference:
            self._frozen_reference = build_model(self._architecture, setup.policy, device).requires_grad_(False)
            self._policy.copy_to(self._reference)

    def _trained(self, settings: PolicyConfig, *, is_critic: bool) -> TrainedModel:
        return TrainedModel(
            self._folder,
            settings,
            self.platform,
            self._passes,
            is_critic=is_critic,
            max_steps=self.setup.critic_max_steps if is_critic else self.setup.max_steps,
            seed=self.setup.seed,
            max_grad_norm=self.setup.max_grad_norm,
        )

    @property
    def _policy(self) -> TrainedModel:
        assert self._trained_policy is not None, "WorkerSetup.with_policy is False: this worker has no policy"
        return self._trained_policy

    @property
    def _critic(self) -> TrainedModel:
        assert self._trained_critic is not None, "WorkerSetup.critic is None: this worker has no critic"
        return self._trained_critic

    @property
    def _reference(self) -> torch.nn.Module:
        assert self._frozen_reference is not None, "WorkerSetup.with_reference is False: this worker has no reference"
        return self._frozen_reference

    # The policy

    @on_platform
    def logprobs(self, batch: TrainBatch) -> Tensor:
        """Return the policy's float32 [T] log-probabilities, 0 off the mask; the same on every rank."""
        return self._policy.outputs(batch)

    @on_platform
    def train_step(self, batch: TrainBatch, loss: TokenLoss) -> dict[str, float]:
        """Update the policy once over the whole batch; returns what ``TrainedModel.train_step`` does."""
        return self._policy.train_step(batch, loss)

    @on_platform
    def reset_optimizer(self, lr: float, *, max_steps: int | None = None, optim: OptimConfig | None = None) -> None:
        """Start a new phase of training the policy, as ``TrainedModel.reset_optimizer`` says."""
        self._policy.reset_optimizer(lr, max_steps=max_steps, optim=optim)

    @on_platform
    def load_policy(self, folder: str) -> None:
        """Load the policy's weights from a Hugging Face folder; master weights follow, Adam's moments stay."""
        self._policy.load(Path(folder))

    @on_platform
    def save_checkpoint(self, folder: str, *, in_background: bool = False) -> None:
        """Write policy, optimizer, schedule and random state. The reference is not part of it: ``load_reference``.

        ``in_background`` returns before all is written: the folder is whole only after ``finish_saving``.
        """
        self._save(self._policy, folder, in_background=in_background)

    def _save(self, model: TrainedModel, folder: str, *, in_background: bool) -> None:
        saving = model.save_checkpoint(Path(folder), in_background=in_background)
        self._savings.append(saving)
        if not in_background:
            self.finish_saving()

    @on_platform
    def finish_saving(self) -> None:
        """Wait until what was begun in the background is whole. Raises ``OSError`` when it could not be written."""
        while self._savings:
            self._savings.pop(0).finish()

    @on_platform
    def checkpoint_damage(self, folder: str) -> list[str]:
        """Return what is wrong with the files of a checkpoint of policy or critic; nothing if all is well."""
        return checkpoint.damage(Path(folder))

    @on_platform
    def load_checkpoint(self, folder: str) -> None:
        """Take up what ``save_checkpoint`` wrote, under this or another layout of ranks."""
        self._policy.load_checkpoint(Path(folder))

    @on_platform
    def export_hf(self, folder: str) -> None:
        """Write a Hugging Face folder: weights in the policy's precision, configuration, tokenizer."""
        target = Path(folder)
        if self.setup.rank == 0:
            copy_all_but_weights(self._folder, target, dtype=self._dtype)
        self._write_weights(target / "model.safetensors", self._dtype)

    @on_platform
    def export_refit(self, path: str, dtype: str = "auto") -> None:
        """Write one safetensors file with Hugging Face names. ``auto`` is the policy's precision."""
        self._write_weights(Path(path), self._dtype if dtype == "auto" else getattr(torch, dtype))

    @on_platform
    def join_refit(self, address: TransferAddress) -> None:
        """Wait for the engines at ``address``, which the first ``num_senders`` ranks will send the weights to."""
        if self.setup.rank < address.num_senders:
            self._refit_group = join_transfer(address, self.setup.rank, self.platform.device)
        self._num_senders = address.num_senders

    @on_platform
    def send_refit(self, dtype: str, bucket_bytes: int) -> None:
        """Send all weights to the engines that joined, by Hugging Face names."""

        def send(tensors: Iterator[tuple[str, Tensor]]) -> None:
            self._refit_group.send(tensors, dtype=getattr(torch, dtype), bucket_bytes=bucket_bytes)

        self._hand_weights_to(send, num_ranks=self._num_senders)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._policy.model.parameters()).dtype

    def _write_weights(self, path: Path, dtype: torch.dtype) -> None:
        def write(tensors: Iterator[tuple[str, Tensor]]) -> None:
            with SafetensorsWriter(path, self._architecture.hf_shapes(), dtype) as writer:
                for name, tensor in tensors:
                    writer.write(name, tensor)

        self._hand_weights_to(write)

    def _hand_weights_to(self, consume: Callable[[Iterator[tuple[str, Tensor]]], None], *, num_ranks: int = 1) -> None:
        """Have the first ranks consume the whole policy's tensors, which the ranks of a replica bring together."""
        tensors = iterate_hf(self._policy.model.module, self._architecture, in_every_replica=num_ranks > 1)
        if self.setup.rank < num_ranks:
            consume(tensors)
        else:
            for _ in tensors:
                pass
        torch.distributed.barrier()

    # The reference

    @on_platform
    def reference_logprobs(self, batch: TrainBatch) -> Tensor:
        """Return the frozen reference's float32 [T] log-probabilities, 0 off the mask; the same on every rank."""
        return self._passes.first_outputs(self._reference, batch)

    @on_platform
    def set_reference(self) -> None:
        """Make the reference a frozen copy of the policy as it is now."""
        self._policy.copy_to(self._reference)

    @on_platform
    def load_reference(self, folder: str) -> None:
        """Load the reference from a Hugging Face folder, such as one that ``export_hf`` wrote."""
        load_hf(self._reference, self._architecture, HfTensors(Path(folder)))

    # The critic

    @on_platform
    def values(self, batch: TrainBatch) -> Tensor:
        """Return float32 [T]: the reward that the critic expects from each masked token on, 0 off the mask."""
        return self._critic.outputs(batch)

    @on_platform
    def train_critic(self, batch: TrainBatch, loss: TokenLoss) -> dict[str, float]:
        """Update the critic once over the whole batch; returns what ``TrainedModel.train_step`` does."""
        return self._critic.train_step(batch, loss)

    @on_platform
    def load_critic(self, folder: str) -> None:
        """Load all but the critic's head from a Hugging Face folder; master weights follow, Adam's moments stay."""
        self._critic.load(Path(folder))

    @on_platform
    def save_critic(self, folder: str, *, in_background: bool = False) -> None:
        """Write critic, optimizer and schedule, as ``save_checkpoint`` does for the policy."""
        self._save(self._critic, folder, in_background=in_background)

    @on_platform
    def restore_critic(self, folder: str) -> None:
        """Take up what ``save_critic`` wrote, under this or another layout of ranks."""
        self._critic.load_checkpoint(Path(folder))

    @on_platform
    def release_memory(self) -> None:
        """Hand a GPU's memory that no tensor is in back to the driver."""
        self.platform.release_gpu_memory()

    @on_platform
    def shutdown(self) -> None:
        """Leave the process group; the worker is of no use afterwards."""
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
