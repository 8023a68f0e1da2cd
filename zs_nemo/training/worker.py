"""One rank of the policy: forward, update, weights in and out. A plain class; ``cluster`` wraps it in an actor."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_model_config
from torch import Tensor

from zs_nemo.config.policy import OptimConfig, PolicyConfig
from zs_nemo.training import checkpoint
from zs_nemo.training.metrics import MetricSums
from zs_nemo.training.microbatch import pack, plan_microbatches, used_tokens
from zs_nemo.training.model import build_model, iterate_hf, load_hf, shares_prefixes
from zs_nemo.training.optimizer import PolicyOptimizer
from zs_nemo.training.platform import Platform, on_platform
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.loss import TokenLoss
from zs_nemo.weights.families import read_architecture
from zs_nemo.weights.hf_folder import HfTensors, SafetensorsWriter, copy_all_but_weights
from zs_nemo.weights.pretrained import resolve_model

Consume = Callable[[int, Tensor], Tensor]
"""Turns the number of a micro-batch and the model's outputs [2, N] for it into a loss []."""


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
    temperature: float
    """Logits are divided by it: that of the sampling."""
    max_steps: int
    """Updates that the learning-rate schedule is laid out for."""
    seed: int
    use_gpu: bool
    with_reference: bool


class MegatronWorker:
    """One rank. Every method is collective: all ranks call it with the same arguments."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self.platform = Platform(use_gpu=setup.use_gpu, rank=setup.rank)
        self._share_prefixes = shares_prefixes(self.platform.device)
        self._folder = resolve_model(setup.model_path)
        self._architecture = read_architecture(self._folder)
        policy = setup.policy
        self._architecture.check_layout(
            tensor_parallel=policy.tensor_model_parallel_size,
            pipeline_parallel=policy.pipeline_model_parallel_size,
            layers_in_first_stage=policy.num_layers_in_first_pipeline_stage,
            layers_in_last_stage=policy.num_layers_in_last_pipeline_stage,
        )
        with self.platform.active():
            self._join_process_group()
            self._build()

    def _join_process_group(self) -> None:
        setup = self.setup
        torch.distributed.init_process_group(
            self.platform.backend,
            init_method=f"tcp://{setup.master_addr}:{setup.master_port}",
            rank=setup.rank,
            world_size=setup.world_size,
        )
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=setup.policy.tensor_model_parallel_size,
            pipeline_model_parallel_size=setup.policy.pipeline_model_parallel_size,
        )
        torch.manual_seed(setup.seed)
        if setup.use_gpu:
            tensor_parallel.model_parallel_cuda_manual_seed(setup.seed)
        self._dp_rank = parallel_state.get_data_parallel_rank()
        self._dp_size = parallel_state.get_data_parallel_world_size()

    def _build(self) -> None:
        setup = self.setup
        policy = setup.policy
        inner = build_model(self._architecture, policy, self.platform.device)
        load_hf(inner, self._architecture, HfTensors(self._folder))
        config = get_model_config(inner)
        # The loss is divided by the normalizer of the whole batch: gradients are summed, and scaled by nothing.
        config.finalize_model_grads_func = lambda model, _num_tokens, **kw: finalize_model_grads(model, None, **kw)
        self._model = DistributedDataParallel(
            config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True, use_distributed_optimizer=policy.use_distributed_optimizer
            ),
            inner,
        )
        self._optimizer = PolicyOptimizer(self._model, policy, setup.max_steps, setup.seed)
        self._reference: torch.nn.Module | None = None
        if setup.with_reference:
            self._reference = build_model(self._architecture, policy, self.platform.device).requires_grad_(False)
            self._copy_policy_to_reference()

    # Logprobs

    @on_platform
    def logprobs(self, batch: TrainBatch) -> Tensor:
        """Return the policy's float32 [T] log-probabilities, 0 off the mask; the same on every rank."""
        return self._all_logprobs(self._model, batch)

    @on_platform
    def reference_logprobs(self, batch: TrainBatch) -> Tensor:
        """Return the same from the frozen reference."""
        return self._all_logprobs(self._reference_model(), batch)

    def _reference_model(self) -> torch.nn.Module:
        assert self._reference is not None, "WorkerSetup.with_reference is False: this worker has no reference"
        return self._reference

    @torch.no_grad()
    def _all_logprobs(self, model: torch.nn.Module, batch: TrainBatch) -> Tensor:
        plan = self._my_microbatches(batch)
        result = torch.zeros(batch.token_ids.numel(), dtype=torch.float32)
        positions = batch_positions(batch, plan)

        def collect(index: int, outputs: Tensor) -> Tensor:
            result[positions[index]] = outputs[0].cpu()
            return outputs[0].sum()

        self._run(model, [batch.select(members) for members in plan], collect, forward_only=True)
        # Each value is computed on one data-parallel rank's last stage and is 0 on all others: the sum is exact.
        shared = result.to(self.platform.device)
        for group in (parallel_state.get_data_parallel_group(), parallel_state.get_pipeline_model_parallel_group()):
            if group.size() > 1:
                torch.distributed.all_reduce(shared, group=group)
        return shared.cpu()

    # Updates

    @on_platform
    def train_step(self, batch: TrainBatch, loss: TokenLoss) -> dict[str, float]:
        """Make one optimizer update over the whole batch, of which this rank computes its share.

        Returns the loss's metrics, and ``loss``, ``grad_norm`` (before clipping), ``learning_rate``,
        ``num_loss_tokens`` and ``entropy`` (mean over the masked tokens).
        """
        assert batch.num_loss_tokens > 0, "a batch without a token under the mask makes no update"
        plan = self._my_microbatches(batch)
        parts = [batch.select(members) for members in plan]
        normalizer = loss.normalizer(batch)
        sums = MetricSums()
        self._model.zero_grad_buffer()
        self._optimizer.zero_grad()

        def backpropagate(index: int, outputs: Tensor) -> Tensor:
            logprobs, entropy = outputs
            entropy = entropy if loss.needs_entropy_grad else entropy.detach()
            total, metrics = loss(logprobs, entropy, to_device(parts[index], self.platform.device))
            sums.add({**metrics, "loss": total, "entropy_sum": entropy.sum()})
            return total / normalizer

        self._run(self._model, parts, backpropagate, forward_only=False)
        # Activations of many lengths leave the heap full of holes; the engines need the memory before the next update.
        self.platform.release_freed_memory()
        grad_norm, lr = self._optimizer.step()
        metrics = sums.reduced(counts=parallel_state.get_tensor_model_parallel_rank() == 0, normalizer=normalizer)
        num_loss_tokens = batch.num_loss_tokens
        metrics["entropy"] = metrics.pop("entropy_sum") * normalizer / num_loss_tokens
        return {**metrics, "grad_norm": grad_norm, "learning_rate": lr, "num_loss_tokens": float(num_loss_tokens)}

    def _my_microbatches(self, batch: TrainBatch) -> list[list[int]]:
        """Return this rank's micro-batches as lists of sequences; the same cut for every pass over the batch."""
        plan = plan_microbatches(
            used_tokens(batch),
            num_ranks=self._dp_size,
            max_tokens=self.setup.policy.train_mb_tokens,
            share_prefixes=self._share_prefixes,
        )
        return plan[self._dp_rank]

    def _run(self, model: torch.nn.Module, parts: list[TrainBatch], consume: Consume, *, forward_only: bool) -> None:
        """Run megatron-core's schedule; ``consume(index, outputs)`` turns the last stage's outputs into a loss []."""
        if not parts:
            # The schedules run at least one micro-batch; a rank without any still takes part in the reduction.
            if not forward_only:
                finalize_model_grads([model], None)
            return

        def forward_step(indices: Iterator[int], stage: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
            index = next(indices)
            packed = pack(parts[index], self.platform.device, share_prefixes=self._share_prefixes)
            outputs = stage(packed=packed, temperature=self.setup.temperature)
            return outputs, lambda tensor: (consume(index, tensor), torch.zeros((), dtype=torch.int), {})

        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(range(len(parts))),
            model=[model],
            num_microbatches=len(parts),
            seq_length=1,  # unused: shapes are exchanged between the stages
            micro_batch_size=1,
            forward_only=forward_only,
        )

    @on_platform
    def reset_optimizer(self, lr: float, *, max_steps: int | None = None, optim: OptimConfig | None = None) -> None:
        """Start a new phase of training from the present weights: zero Adam moments, first step of the schedule.

        ``optim`` None keeps the configured betas, weight decay and schedule; ``max_steps`` None keeps the setup's.
        """
        optim = replace(optim or self.setup.policy.optim, lr=lr)
        self._optimizer.reset(optim, self.setup.max_steps if max_steps is None else max_steps)

    # Weights in and out

    @on_platform
    def set_reference(self) -> None:
        """Make the reference a frozen copy of the policy as it is now."""
        self._copy_policy_to_reference()

    @torch.no_grad()
    def _copy_policy_to_reference(self) -> None:
        pairs = zip(self._reference_model().parameters(), self._model.module.parameters(), strict=True)
        for reference, policy in pairs:
            reference.copy_(policy)

    @on_platform
    def load_reference(self, folder: str) -> None:
        """Load the reference from a Hugging Face folder, such as one that ``export_hf`` wrote."""
        load_hf(self._reference_model(), self._architecture, HfTensors(Path(folder)))

    @on_platform
    def load_policy(self, folder: str) -> None:
        """Load the policy's weights from a Hugging Face folder; master weights follow, Adam's moments stay."""
        load_hf(self._model.module, self._architecture, HfTensors(Path(folder)))
        self._optimizer.megatron.reload_model_params()

    @on_platform
    def save_checkpoint(self, folder: str) -> None:
        """Write policy, optimizer, schedule and random state. The reference is not part of it: ``load_reference``."""
        self.platform.release_freed_memory()
        checkpoint.save(Path(folder), self._model.module, self._optimizer)

    @on_platform
    def load_checkpoint(self, folder: str) -> None:
        """Take up what ``save_checkpoint`` wrote, under this or another layout of ranks."""
        checkpoint.load(Path(folder), self._model.module, self._optimizer)

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

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._model.parameters()).dtype

    def _write_weights(self, path: Path, dtype: torch.dtype) -> None:
        tensors = iterate_hf(self._model.module, self._architecture)
        if self.setup.rank == 0:
            with SafetensorsWriter(path, self._architecture.hf_shapes(), dtype) as writer:
                for name, tensor in tensors:
                    writer.write(name, tensor)
        else:
            for _ in tensors:
                pass
        torch.distributed.barrier()

    @on_platform
    def shutdown(self) -> None:
        """Leave the process group; the worker is of no use afterwards."""
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def batch_positions(batch: TrainBatch, plan: list[list[int]]) -> list[Tensor]:
    """Return for each micro-batch where its masked tokens lie in the batch."""
    starts = torch.cumsum(batch.lengths, 0) - batch.lengths
    positions = []
    for members in plan:
        spans = [torch.arange(int(starts[i]), int(starts[i] + batch.lengths[i])) for i in members]
        tokens = torch.cat(spans)
        positions.append(tokens[batch.loss_mask[tokens]])
    return positions


def to_device(batch: TrainBatch, device: torch.device) -> TrainBatch:
    """Return the batch with its per-token tensors on a device."""
    if device.type == "cpu":
        return batch
    moved = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **moved)
