"""How ranks come together; what they compute is in the parity tests."""

from datetime import timedelta
from typing import Any

import pytest
import torch
from megatron.core import parallel_state, tensor_parallel

from zs_nemo.config.policy import PolicyConfig
from zs_nemo.training.platform import Platform
from zs_nemo.training.worker import MegatronWorker, WorkerSetup


def test_ranks_wait_for_each_other_as_long_as_they_are_told_in_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda _backend, **options: told.update(options))
    monkeypatch.setattr(parallel_state, "initialize_model_parallel", lambda **options: told.update(options))
    monkeypatch.setattr(tensor_parallel, "model_parallel_cuda_manual_seed", lambda _seed: None)
    worker = MegatronWorker.__new__(MegatronWorker)
    worker.platform = Platform(use_gpu=False, rank=0)
    worker.setup = WorkerSetup(
        rank=0,
        world_size=1,
        master_addr="127.0.0.1",
        master_port=1,
        model_path="",
        policy=PolicyConfig(),
        temperature=1.0,
        max_steps=1,
        seed=1,
        use_gpu=False,
        with_reference=False,
        collective_timeout_s=4000.0,
    )
    worker._join_process_group()
    assert (told["timeout"], told["distributed_timeout_minutes"]) == (timedelta(seconds=4000), 67)
