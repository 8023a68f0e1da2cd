"""Runs a function on several ranks, each a process of its own, and brings back what every rank returned."""

import multiprocessing
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.parity.batches import TinyLoss
from zs_nemo.config.policy import OptimConfig, PolicyConfig, Precision
from zs_nemo.training.worker import MegatronWorker, WorkerSetup

__all__ = ["TinyLoss", "free_port", "make_setup", "run_cases_on_ranks", "run_on_one_rank", "run_on_ranks"]


def free_port() -> int:
    """Return a port that nothing listens on, below those that the system gives to outgoing connections.

    Seconds pass until the ranks listen on it: a port of that range could be taken in the meantime.
    """
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def make_setup(model: Path | str, *, rank: int = 0, ranks: int = 1, port: int = 0, **policy: Any) -> WorkerSetup:
    """Return a setup for float32 with settings that a test may replace by name."""
    temperature = policy.pop("temperature", 1.0)
    with_reference = policy.pop("with_reference", False)
    with_critic = policy.pop("with_critic", False)
    settings = {"precision": Precision.fp32, "train_mb_tokens": 64, "optim": OptimConfig(lr=1e-3), **policy}
    config = PolicyConfig(**settings)
    return WorkerSetup(
        rank=rank,
        world_size=ranks,
        master_addr="127.0.0.1",
        master_port=port or free_port(),
        model_path=str(model),
        policy=config,
        critic=config if with_critic else None,
        critic_max_steps=10,
        temperature=temperature,
        max_steps=10,
        seed=0,
        use_gpu=False,
        with_reference=with_reference,
    )


def run_on_ranks(
    ranks: int, scenario: Callable[..., Any], folder: Path, model: Path, *args: Any, **policy: Any
) -> list[Any]:
    """Call ``scenario(worker, *args)`` on every rank of one group; return their results in order of rank."""
    port = free_port()
    setups = [make_setup(model, rank=rank, ranks=ranks, port=port, **policy) for rank in range(ranks)]
    folder.mkdir(parents=True, exist_ok=True)
    _start(ranks, _one_rank, setups, scenario, folder, args)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _start(ranks: int, rank_main: Callable[..., None], *args: Any) -> None:
    """Run ``rank_main(rank, *args)`` in a process for each rank, until all have ended.

    They are forked from a server that has imported what takes seconds of a core to import.
    """
    multiprocessing.set_forkserver_preload(["tests.parity.ranks"])
    torch.multiprocessing.start_processes(rank_main, args, nprocs=ranks, start_method="forkserver")


def _one_rank(rank: int, setups: list[WorkerSetup], scenario: Callable[..., Any], folder: Path, args: tuple) -> None:
    torch.set_num_threads(1)
    worker = MegatronWorker(setups[rank])
    torch.save(scenario(worker, *args), folder / f"{rank}.pt")
    worker.shutdown()


def run_on_one_rank(scenario: Callable[..., Any], model: Path, *args: Any, **policy: Any) -> Any:
    """Return ``scenario(worker, *args)`` of a lone rank, which needs no process of its own."""
    worker = MegatronWorker(make_setup(model, **policy))
    try:
        return scenario(worker, *args)
    finally:
        worker.shutdown()


def run_cases_on_ranks(
    ranks: int, scenario: Callable[..., Any], folder: Path, cases: dict[str, tuple[Path, dict[str, Any], tuple]]
) -> dict[str, list[Any]]:
    """Do as ``run_on_ranks`` for each case of (model, policy, arguments), one after another in the same processes.

    Starting processes takes longer than what tiny models do in them. A case finds what the ones before it have written.
    """
    setups = {}
    for name, (model, policy, _) in cases.items():
        port = free_port()
        setups[name] = [make_setup(model, rank=rank, ranks=ranks, port=port, **policy) for rank in range(ranks)]
    arguments = {name: args for name, (_, _, args) in cases.items()}
    folder.mkdir(parents=True, exist_ok=True)
    _start(ranks, _one_rank_of_cases, setups, scenario, folder, arguments)
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]
    return {name: [result[name] for result in results] for name in cases}


def _one_rank_of_cases(
    rank: int, setups: dict[str, list[WorkerSetup]], scenario: Callable[..., Any], folder: Path, arguments: dict
) -> None:
    torch.set_num_threads(1)
    results = {}
    for name, of_ranks in setups.items():
        worker = MegatronWorker(of_ranks[rank])
        results[name] = scenario(worker, *arguments[name])
        worker.shutdown()
    torch.save(results, folder / f"{rank}.pt")
