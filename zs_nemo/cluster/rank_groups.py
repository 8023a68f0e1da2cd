"""Training ranks as one object: a call goes to all of them, rank 0 answers."""

import threading
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from zs_nemo.cluster.roles import RanksLost, Role, RoleError, gather
from zs_nemo.config.policy import OptimConfig
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.loss import TokenLoss
from zs_nemo.weights.transfer import TransferAddress

# A rank that loses a peer in the middle of a collective may say so before Ray finds out that the peer is dead.
_DEATH_IS_KNOWN_AFTER_S = 10.0
# One for all groups, as they may share their ranks: with two threads that call, such as one that replaces an engine,
# all ranks get the calls in the same order.
_ORDER = threading.Lock()


class _RankGroup:
    """Methods of ``training.worker.MegatronWorker``, on every rank at once; their documentation is there.

    The whole batch goes to the object store once; every rank takes its own share of it. The first failure is raised at
    once: the other ranks then wait in a collective for ever, so the run cannot go on.
    """

    def __init__(self, roles: Sequence[Role]) -> None:
        """``roles`` in order of rank."""
        self._roles = list(roles)

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        # Only rank 0 sends its result back. Ray puts the batch itself in place of a reference to it.
        with _ORDER:
            references = [
                role.submit("call", method, rank == 0, *arguments, **options) for rank, role in enumerate(self._roles)
            ]
        try:
            return gather(self._roles, references, method)[0]
        except RoleError as error:
            death = error if error.died else self._death(references, method)
            if death is None:
                raise
            raise RanksLost.saying(str(death), death) from error

    def _death(self, references: Sequence[Any], method: str) -> RoleError | None:
        """Return the error of a rank whose death the failure of another one may come from, if there is one."""
        deadline = time.monotonic() + _DEATH_IS_KNOWN_AFTER_S
        for role, reference in zip(self._roles, references, strict=True):
            try:
                gather([role], [reference], method, max(0.0, deadline - time.monotonic()))
            except RoleError as error:
                if error.died:
                    return error
            except TimeoutError:
                continue
        return None

    def release_memory(self) -> None:
        """Free what these ranks keep of their GPUs for their next update."""
        self._call("release_memory")

    def finish_saving(self) -> None:
        """Wait until the checkpoints of these ranks are whole. Raises when one could not be written."""
        self._call("finish_saving")

    def checkpoint_damage(self, folder: str) -> list[str]:
        """Return what is wrong with the files of a checkpoint; nothing if all are as they were written."""
        problems: list[str] = self._call("checkpoint_damage", folder)
        return problems


class PolicyGroup(_RankGroup):
    """The policy and its reference."""

    def __init__(
        self, roles: Sequence[Role], *, has_reference: bool, refit_dtype: str, refit_bucket_bytes: int
    ) -> None:
        """``refit_dtype`` is that of the generation engines, ``refit_bucket_bytes`` what is sent to them at a time."""
        super().__init__(roles)
        self._refit_bucket_bytes = refit_bucket_bytes
        self._has_reference = has_reference
        self._refit_dtype = refit_dtype

    def logprobs(self, batch: TrainBatch) -> Tensor:
        """Return the policy's logprobs, float32 [T], 0 off the mask."""
        logprobs: Tensor = self._call("logprobs", _shared(batch))
        return logprobs

    def reference_logprobs(self, batch: TrainBatch) -> Tensor:
        """Return the frozen reference's logprobs, float32 [T], 0 off the mask."""
        logprobs: Tensor = self._call("reference_logprobs", _shared(batch))
        return logprobs

    def train_step(self, batch: TrainBatch, loss: TokenLoss) -> dict[str, float]:
        """Make one optimizer update over the whole batch; return its metrics."""
        metrics: dict[str, float] = self._call("train_step", _shared(batch), loss)
        return metrics

    def set_reference(self) -> None:
        """Make the current weights the reference. Does nothing when no loss reads one (``algorithm.kl.where=off``)."""
        if self._has_reference:
            self._call("set_reference")

    def load_reference(self, folder: str) -> None:
        """Load the reference from a Hugging Face folder. Does nothing when no loss reads one."""
        if self._has_reference:
            self._call("load_reference", folder)

    def reset_optimizer(self, optim: OptimConfig, *, max_steps: int | None = None) -> None:
        """Start a fresh optimizer and schedule; ``max_steps`` None keeps the number of updates of the whole run."""
        self._call("reset_optimizer", optim.lr, max_steps=max_steps, optim=optim)

    def save_checkpoint(self, folder: str, *, in_background: bool) -> None:
        """Write policy, optimizer, schedule and random states; in the background until ``finish_saving`` returns."""
        self._call("save_checkpoint", folder, in_background=in_background)

    def load_checkpoint(self, folder: str) -> None:
        """Read what ``save_checkpoint`` wrote, under any parallel layout."""
        self._call("load_checkpoint", folder)

    def export_hf(self, folder: str) -> None:
        """Write a Hugging Face folder."""
        self._call("export_hf", folder)

    def export_refit(self, path: str) -> None:
        """Write the weights as one safetensors file for the generation engines."""
        self._call("export_refit", path, dtype=self._refit_dtype)

    def join_refit(self, address: TransferAddress) -> None:
        """Wait for the generation engines at ``address``."""
        self._call("join_refit", address)

    def send_refit(self) -> None:
        """Send the weights to the generation engines that joined."""
        self._call("send_refit", self._refit_dtype, self._refit_bucket_bytes)


class CriticGroup(_RankGroup):
    """The critic, on the policy's ranks or on its own."""

    def values(self, batch: TrainBatch) -> Tensor:
        """Return the reward that is expected from each masked token on, float32 [T], 0 off the mask."""
        values: Tensor = self._call("values", _shared(batch))
        return values

    def train_step(self, batch: TrainBatch, loss: TokenLoss) -> dict[str, float]:
        """Make one optimizer update over the whole batch; return its metrics."""
        metrics: dict[str, float] = self._call("train_critic", _shared(batch), loss)
        return metrics

    def load(self, folder: str) -> None:
        """Load all but the head from a Hugging Face folder."""
        self._call("load_critic", folder)

    def save_checkpoint(self, folder: str, *, in_background: bool) -> None:
        """Write critic, optimizer and schedule; in the background until ``finish_saving`` returns."""
        self._call("save_critic", folder, in_background=in_background)

    def load_checkpoint(self, folder: str) -> None:
        """Read what ``save_checkpoint`` wrote, under any parallel layout."""
        self._call("restore_critic", folder)


def _shared(batch: TrainBatch) -> Any:
    import ray

    return ray.put(batch)
