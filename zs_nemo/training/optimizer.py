"""Adam with float32 master weights through megatron-core's optimizers, with the learning-rate schedule."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer, MixedPrecisionOptimizer
from torch import Tensor

from zs_nemo.config.policy import OptimConfig, PolicyConfig, Precision
from zs_nemo.training.optimizer_state import drop_what_others_own, lean_gather, load_state
from zs_nemo.training.schedule import learning_rate, schedule_of, state_of
from zs_nemo.training.stochastic_rounding import stochastically_rounded


class ModelOptimizer:
    """The optimizer of one rank and where it stands in its schedule."""

    def __init__(
        self, model: DistributedDataParallel, policy: PolicyConfig, *, max_steps: int, seed: int, max_grad_norm: float
    ) -> None:
        """``max_grad_norm`` is the norm before clipping above which no update is made; 0 for no limit."""
        optim = policy.optim
        self._seed = seed
        # In float32 the weights are their own master weights: to round what is copied would round those.
        self._stochastic_rounding = policy.stochastic_rounding and policy.precision is Precision.bf16
        self._clip = policy.gradient_clip_val
        self._max_grad_norm = max_grad_norm
        self.megatron: ChainedOptimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=optim.lr,
                weight_decay=optim.weight_decay,
                adam_beta1=optim.betas[0],
                adam_beta2=optim.betas[1],
                adam_eps=optim.eps,
                bf16=policy.precision is Precision.bf16,
                params_dtype=torch.bfloat16 if policy.precision is Precision.bf16 else torch.float32,
                use_distributed_optimizer=policy.use_distributed_optimizer,
            ),
            [model],
        )
        self.lr, self.sched, self.max_steps, self.num_updates = optim.lr, optim.sched, max_steps, 0
        self._use_fused_adam()
        self._set_weight_decay(optim)
        self.allocate_state()
        self._offloads = optim.optimizer_cpu_offload
        if self._offloads:
            self.megatron.offload_to_cpu()

    def _inner(self) -> Iterator[torch.optim.Optimizer]:
        for optimizer in self.megatron.chained_optimizers:
            if optimizer.optimizer is not None:
                yield optimizer.optimizer

    def _use_fused_adam(self) -> None:
        """PyTorch's AdamW updates a parameter in one pass over memory only if told so; megatron-core cannot tell it."""
        for optimizer in self._inner():
            if isinstance(optimizer, torch.optim.AdamW):
                optimizer.defaults["fused"] = True
                for group in optimizer.param_groups:
                    group["fused"] = True

    def _set_weight_decay(self, optim: OptimConfig) -> None:
        """Norms and biases are not to decay: megatron-core marks their groups, and leaves the rest to its scheduler."""
        for optimizer in self._inner():
            for group in optimizer.param_groups:
                group["weight_decay"] = optim.weight_decay * group.get("wd_mult", 1.0)

    def allocate_state(self) -> None:
        """Make the moments exist, as zeros, so that a checkpoint can be written or read before the first update."""
        for optimizer in self._inner():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    state = optimizer.state[parameter]
                    for name in ("exp_avg", "exp_avg_sq"):
                        state.setdefault(name, torch.zeros_like(parameter.data))
                    if isinstance(optimizer, torch.optim.AdamW):
                        # The fused update wants it where the moments are.
                        state.setdefault("step", torch.zeros((), dtype=torch.float32, device=parameter.device))

    def reset(self, optim: OptimConfig, max_steps: int) -> None:
        """Start anew from the present master weights: zero moments, first step of the schedule."""
        self.lr, self.sched, self.max_steps, self.num_updates = optim.lr, optim.sched, max_steps, 0
        for optimizer in self._inner():
            for group in optimizer.param_groups:
                group.update(betas=tuple(optim.betas), eps=optim.eps)
                if "step" in group:
                    group["step"] = 0
        self._set_weight_decay(optim)
        for moments in self._states():
            for value in moments.values():
                if isinstance(value, Tensor):
                    value.zero_()

    def sharded_state(self, weights: dict[str, Any], metadata: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
        """Return master weights and moments for megatron-core's checkpoint, to be written or to be filled."""
        inner = self.megatron.chained_optimizers[0]
        is_distributed = isinstance(inner, DistributedOptimizer)
        gather = lean_gather(inner) if is_distributed and not is_loading else contextlib.nullcontext()
        with gather:
            state = self.megatron.sharded_state_dict(weights, is_loading=is_loading, metadata=metadata)
        if is_distributed and is_loading:
            drop_what_others_own(inner, state["param_state"])
        if is_distributed and state["param_state"] is None:
            del state["param_state"]  # gathered elsewhere; megatron-core warns of values that ranks do not share
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up master weights and moments that were loaded."""
        inner = self.megatron.chained_optimizers[0]
        if isinstance(inner, DistributedOptimizer):
            load_state(inner, state)
        else:
            if isinstance(inner.optimizer, torch.optim.AdamW):
                # megatron-core writes no counter of no updates.
                state.get("optimizer", state)["state"].setdefault("common_step", torch.tensor(0.0))
            inner.load_state_dict(state)
        self._separate_step_counters()

    def _separate_step_counters(self) -> None:
        """megatron-core gives all loaded parameters one counter, on the CPU, which each of them would then advance."""
        for optimizer in self._inner():
            for parameter, moments in optimizer.state.items():
                if "step" in moments:
                    moments["step"] = moments["step"].to(parameter.device, copy=True)

    def _states(self) -> Iterator[dict[str, Any]]:
        for optimizer in self._inner():
            yield from optimizer.state.values()

    def tensors(self) -> Iterator[Tensor]:
        """Yield master weights and moments: what an update changes."""
        for optimizer in self._inner():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield parameter.data
                    yield from (value for value in optimizer.state[parameter].values() if isinstance(value, Tensor))

    def zero_grad(self) -> None:
        """Forget the gradients of the master weights."""
        self.megatron.zero_grad()

    @torch.no_grad()
    def step(self) -> tuple[float, float, bool]:
        """Update the weights; return (gradient norm before clipping, learning rate, whether the update was made).

        It is not made when the norm is not finite or above the limit: weights, moments and schedule stay as they are.
        """
        lr = learning_rate(self.sched, lr=self.lr, step=self.num_updates, max_steps=self.max_steps)
        for group in self.megatron.param_groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)
        with self._on_device():
            norm, is_made = self._update()
        self.num_updates += is_made
        return norm, lr, is_made

    def _update(self) -> tuple[float, bool]:
        self.megatron.prepare_grads()
        norm = float(self.megatron.get_grad_norm())
        if not math.isfinite(norm) or (self._max_grad_norm > 0 and norm > self._max_grad_norm):
            return norm, False
        parameters = self.megatron.get_parameters()
        if self._clip > 0 and parameters:
            clip_grad_by_total_norm_fp32(parameters, max_norm=self._clip, total_norm=norm)
        with self._rounding():
            self.megatron.step_with_ready_grads()
        return norm, True

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """While open, master weights and moments lie where the weights do."""
        if not self._offloads:
            yield
            return
        # Activations are gone by now: what was theirs is free for the moments.
        self.megatron.restore_from_cpu()
        try:
            yield
        finally:
            # A gradient would stay behind on the device.
            self.megatron.zero_grad()
            self.megatron.offload_to_cpu()

    @contextlib.contextmanager
    def _rounding(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for index, optimizer in enumerate(self.megatron.chained_optimizers):
                if self._stochastic_rounding and isinstance(optimizer, MixedPrecisionOptimizer):
                    name = f"{self._seed}/{self.lr}/{self.num_updates}/{index}"
                    stack.enter_context(stochastically_rounded(optimizer, name))
            yield

    def schedule_state(self) -> dict[str, object]:
        """Return what a checkpoint needs beside the moments and master weights."""
        return {
            "lr": self.lr,
            "max_steps": self.max_steps,
            "num_updates": self.num_updates,
            "sched": state_of(self.sched),
        }

    def load_schedule_state(self, state: dict[str, Any]) -> None:
        """Take up the schedule where ``schedule_state`` left it."""
        self.sched = schedule_of(state["sched"])
        self.lr, self.max_steps, self.num_updates = state["lr"], state["max_steps"], state["num_updates"]
