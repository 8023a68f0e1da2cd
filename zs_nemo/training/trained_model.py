"""One rank's part of a model that is trained: the policy or the critic, with its optimizer and its checkpoints."""

from dataclasses import replace
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.utils import get_model_config
from torch import Tensor

from zs_nemo.config.policy import OptimConfig, PolicyConfig
from zs_nemo.training import checkpoint
from zs_nemo.training.metrics import MetricSums
from zs_nemo.training.model import build_model, load_hf
from zs_nemo.training.optimizer import ModelOptimizer
from zs_nemo.training.packed_passes import PackedPasses, to_device
from zs_nemo.training.platform import Platform
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.loss import TokenLoss
from zs_nemo.weights.families import read_architecture
from zs_nemo.weights.hf_folder import HfTensors


class TrainedModel:
    """A model, its gradients and its optimizer. Every method is collective over the ranks."""

    def __init__(
        self,
        folder: Path,
        settings: PolicyConfig,
        platform: Platform,
        passes: PackedPasses,
        *,
        is_critic: bool,
        max_steps: int,
        seed: int,
        max_grad_norm: float,
    ) -> None:
        """Build it with the weights of a Hugging Face folder; a critic's head is zero.

        ``max_steps`` is the number of updates that the learning-rate schedule is laid out for, ``max_grad_norm`` the
        gradient norm above which no update is made (0 for no limit).
        """
        self._architecture = read_architecture(folder)
        self._optim = settings.optim
        self._max_steps = max_steps
        self._platform = platform
        self._passes = passes
        inner = build_model(self._architecture, settings, platform.device, is_critic=is_critic)
        load_hf(inner, self._architecture, HfTensors(folder))
        config = get_model_config(inner)
        # The loss is divided by the normalizer of the whole batch: gradients are summed, and scaled by nothing.
        config.finalize_model_grads_func = lambda model, _num_tokens, **kw: finalize_model_grads(model, None, **kw)
        self.model = DistributedDataParallel(
            config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True, use_distributed_optimizer=settings.use_distributed_optimizer
            ),
            inner,
        )
        self._optimizer = ModelOptimizer(
            self.model, settings, max_steps=max_steps, seed=seed, max_grad_norm=max_grad_norm
        )

    def outputs(self, batch: TrainBatch) -> Tensor:
        """Return float32 [T], logprobs of a policy or values of a critic, 0 off the mask; the same on every rank."""
        return self._passes.first_outputs(self.model, batch)

    def train_step(self, batch: TrainBatch, loss: TokenLoss) -> dict[str, float]:
        """Make one optimizer update over the whole batch, of which this rank computes its share.

        Returns the loss's metrics as means over tokens, ``loss`` with the ``loss_normalizer`` it was divided by,
        ``grad_norm`` (before clipping), ``learning_rate``, ``num_loss_tokens``, and ``num_skipped_updates``: 1 if the
        gradient was not finite or too large and the weights stayed as they are.
        """
        assert batch.num_loss_tokens > 0, "a batch without a token under the mask makes no update"
        parts = [batch.select(members) for members in self._passes.plan(batch)]
        normalizer = loss.normalizer(batch)
        sums = MetricSums()
        self.model.zero_grad_buffer()
        self._optimizer.zero_grad()

        def backpropagate(index: int, outputs: Tensor) -> Tensor:
            total, metrics = loss(outputs, to_device(parts[index], self._platform.device))
            sums.add({**metrics, "loss": total})
            return total / normalizer

        self._passes.run(self.model, parts, backpropagate, forward_only=False)
        # Activations of many lengths leave the heap full of holes; the engines need the memory before the next update.
        self._platform.release_freed_memory()
        grad_norm, lr, is_made = self._optimizer.step()
        # The ranks that share a micro-batch, tensor- and context-parallel ones, all hold the same values.
        counts = parallel_state.get_tensor_and_context_parallel_rank() == 0
        num_loss_tokens = float(batch.num_loss_tokens)
        metrics = sums.reduced(counts=counts, normalizer=num_loss_tokens)
        return {
            **metrics,
            "loss": metrics["loss"] * num_loss_tokens / normalizer,
            "loss_normalizer": normalizer,
            "num_loss_tokens": num_loss_tokens,
            "num_skipped_updates": float(not is_made),
            "grad_norm": grad_norm,
            "learning_rate": lr,
        }

    def reset_optimizer(self, lr: float, *, max_steps: int | None = None, optim: OptimConfig | None = None) -> None:
        """Start a new phase of training from the present weights: zero Adam moments, first step of the schedule.

        ``optim`` None keeps the configured betas, weight decay and schedule; ``max_steps`` None keeps the configured.
        """
        optim = replace(optim or self._optim, lr=lr)
        self._optimizer.reset(optim, self._max_steps if max_steps is None else max_steps)

    def load(self, folder: Path) -> None:
        """Load the weights of a Hugging Face folder; master weights follow, Adam's moments and a critic's head stay."""
        load_hf(self.model.module, self._architecture, HfTensors(folder))
        self._optimizer.megatron.reload_model_params()

    def save_checkpoint(self, folder: Path, *, in_background: bool) -> checkpoint.Saving:
        """Begin to write weights, optimizer, schedule and random state; ``Saving.finish`` ends it."""
        self._platform.release_freed_memory()
        return checkpoint.save(folder, self.model.module, self._optimizer, in_background=in_background)

    def load_checkpoint(self, folder: Path) -> None:
        """Take up what ``save_checkpoint`` wrote, under this or another layout of ranks."""
        checkpoint.load(folder, self.model.module, self._optimizer)

    @torch.no_grad()
    def copy_to(self, frozen: torch.nn.Module) -> None:
        """Copy the weights into a model of the same layout."""
        for target, source in zip(frozen.parameters(), self.model.module.parameters(), strict=True):
            target.copy_(source)
