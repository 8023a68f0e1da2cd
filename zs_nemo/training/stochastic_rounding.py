"""Rounds float32 master weights to bfloat16 at random, so that small updates are not lost.

A bfloat16 number has 8 significant bits: around 0.1 its neighbours are 5e-4 apart. A reinforcement-learning update
moves a weight by some 1e-5, and rounding to the nearest leaves the weight that computes as it was, until many updates
of one direction have added up in the master weight. Measured on SmolLM2-135M, one batch, one update with lr 1e-5: the
log-probability of tokens with advantage +1 rose by 0.0003 with rounding to the nearest, by 0.0446 in float32, and by
0.0445 with this; tests/parity/test_stochastic_rounding.py shows it on a tiny one. Rounding up with the probability of
the part that is cut off makes the rounded weight right on average (Gupta et al. 2015, arXiv 1502.02551).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core import parallel_state
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MixedPrecisionOptimizer
from torch import Tensor

_CUT_BITS = 16
"""Bits of a float32 number that bfloat16 lacks."""


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return float32 ``values`` rounded up or down to numbers that bfloat16 holds, right on average.

    Numbers that bfloat16 holds stay as they are. The magnitude is what is rounded, so the sign plays no part.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << _CUT_BITS, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
    # Adding below the cut carries into the kept bits as often as what is cut off asks for.
    return noise.add_(bits).bitwise_and_(-1 << _CUT_BITS).view(torch.float32)


@contextmanager
def stochastically_rounded(optimizer: MixedPrecisionOptimizer, name: str) -> Iterator[None]:
    """While open, the optimizer's step copies its master weights rounded at random into the computing weights.

    ``name`` names the update, such as its seed and number: the same name gives the same rounding. Ranks that hold a
    copy of the same weight round it alike; shards of different weights get draws of their own. Not for tied embeddings
    over pipeline stages, whose two copies would drift apart.
    """
    copy = optimizer._copy_main_params_to_model_params

    def copy_rounded() -> None:
        masters = [master for group in optimizer.param_groups for master in group["params"]]
        exact = [master.data for master in masters]
        for index, master in enumerate(masters):
            master.data = round_stochastically(master.data, _generator(f"{name}/{index}", master, optimizer))
        try:
            copy()
        finally:
            for master, data in zip(masters, exact, strict=True):
                master.data = data

    optimizer._copy_main_params_to_model_params = copy_rounded
    try:
        yield
    finally:
        del optimizer._copy_main_params_to_model_params


def _generator(name: str, master: Tensor, optimizer: MixedPrecisionOptimizer) -> torch.Generator:
    # What is cut over tensor-parallel ranks differs between them; what is not is one weight in several copies.
    if getattr(master, "tensor_model_parallel", False):
        name += f"/tp{parallel_state.get_tensor_model_parallel_rank()}"
    if isinstance(optimizer, DistributedOptimizer):
        name += f"/dp{parallel_state.get_data_parallel_rank(with_context_parallel=True)}"
    name += f"/pp{parallel_state.get_pipeline_model_parallel_rank()}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator(device=master.device).manual_seed(int.from_bytes(digest, "little") >> 1)
