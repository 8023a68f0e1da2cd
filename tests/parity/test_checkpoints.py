"""Checkpoints written in the background hold the moment they were begun; damage is found, failures reach every rank."""

import threading
from pathlib import Path

import pytest
import torch

from tests.parity.batches import TinyLoss, make_batch, with_returns
from tests.parity.ranks import run_cases_on_ranks
from tests.tiny_model import build_tiny_model
from zs_nemo.algorithms.value_loss import ValueLoss
from zs_nemo.config.policy import Precision
from zs_nemo.training.streaming_writer import StreamingWriter
from zs_nemo.training.worker import MegatronWorker

VOCAB = 515
BATCHES = [with_returns(make_batch([23, 9, 31, 17], vocab_size=VOCAB, seed=seed)) for seed in range(3)]
CASES: dict[str, dict] = {
    "distributed optimizer": {},
    "optimizer on every rank": {"use_distributed_optimizer": False},
    "bf16": {"precision": Precision.bf16, "stochastic_rounding": True},
    "TP=2": {"tensor_model_parallel_size": 2},
}
VALUE_LOSS = ValueLoss(clip_range=0.2)


def scenario(worker: MegatronWorker, folder: Path) -> dict:
    """Return what follows on a checkpoint that was written during an update, and the damage that is found in it."""
    results = {
        "resumed at 0": save_untrained(worker, folder / "untrained"),
        "resumed": save_while_training(worker, folder),
        "damage": {},
    }
    results["whole"] = worker.checkpoint_damage(str(folder / "policy"))
    for name, harm in HARMS.items():
        if worker.setup.rank == 0:
            harm(folder / "policy")
        torch.distributed.barrier()
        results["damage"][name] = worker.checkpoint_damage(str(folder / "policy"))
    return {**results, "failure": failure_of_one_rank(worker, folder / "unwritable")}


def save_untrained(worker: MegatronWorker, folder: Path) -> list[tuple]:
    """Return the first update's metrics and logprobs, without a break and after a return to no update made."""
    worker.save_checkpoint(str(folder))
    results = []
    for _ in range(2):
        results.append((worker.train_step(BATCHES[0], TinyLoss()), worker.logprobs(BATCHES[2])))
        worker.load_checkpoint(str(folder))
    return results


def save_while_training(worker: MegatronWorker, folder: Path) -> list[tuple]:
    """Return the next update's metrics and logprobs, without a break and after a resume; for the critic as well."""
    may_write, write = threading.Event(), StreamingWriter._write

    def write_late(self: StreamingWriter) -> None:
        assert may_write.wait(60)
        write(self)

    StreamingWriter._write = write_late
    worker.train_step(BATCHES[0], TinyLoss())
    worker.train_critic(BATCHES[0], VALUE_LOSS)
    worker.save_checkpoint(str(folder / "policy"), in_background=True)
    worker.save_critic(str(folder / "critic"), in_background=True)
    results = [update(worker)]
    may_write.set()
    worker.finish_saving()
    StreamingWriter._write = write
    worker.train_step(BATCHES[2], TinyLoss())
    worker.load_checkpoint(str(folder / "policy"))
    worker.restore_critic(str(folder / "critic"))
    return [*results, update(worker)]


def update(worker: MegatronWorker) -> tuple:
    """Train once and return all that can be seen of it."""
    metrics = worker.train_step(BATCHES[1], TinyLoss()), worker.train_critic(BATCHES[1], VALUE_LOSS)
    return metrics, worker.logprobs(BATCHES[2]), worker.values(BATCHES[2])


def failure_of_one_rank(worker: MegatronWorker, folder: Path) -> str:
    """Return the error of a checkpoint that the last rank cannot write."""
    write = StreamingWriter._write
    if worker.setup.rank == worker.setup.world_size - 1:

        def fail(self: StreamingWriter) -> None:
            raise OSError("No space left on device")

        StreamingWriter._write = fail
    try:
        worker.save_checkpoint(str(folder))
    except OSError as error:
        return str(error)
    finally:
        StreamingWriter._write = write
    return ""


def flip_a_byte(folder: Path) -> None:
    """Change the middle of a file of weights."""
    path = folder / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(folder: Path) -> None:
    """Take the end off a file of weights."""
    path = folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])


HARMS = {
    "a byte": flip_a_byte,
    "a cut": cut_short,
    "a file": lambda folder: (folder / "metadata.json").unlink(),
    "the checksums": lambda folder: (folder / "checksums.json").unlink(),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, list[dict]]:
    model = build_tiny_model(tmp_path_factory.mktemp("model"), vocab_size=VOCAB)
    folder = tmp_path_factory.mktemp("run")
    cases = {
        name: (model, {"with_critic": True, **policy}, (folder / str(number),))
        for number, (name, policy) in enumerate(CASES.items())
    }
    return run_cases_on_ranks(2, scenario, folder, cases)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_holds_the_moment_at_which_it_was_begun(runs, case):
    for rank in runs[case]:
        (metrics, logprobs, values), (resumed_metrics, resumed_logprobs, resumed_values) = rank["resumed"]
        assert resumed_metrics == metrics
        assert torch.equal(resumed_logprobs, logprobs) and torch.equal(resumed_values, values)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_no_update_is_gone_on_from(runs, case):
    for rank in runs[case]:
        (metrics, logprobs), (resumed_metrics, resumed_logprobs) = rank["resumed at 0"]
        assert resumed_metrics == metrics and torch.equal(resumed_logprobs, logprobs)


def test_files_that_are_not_as_they_were_written_are_named_on_every_rank(runs):
    first, second = runs["distributed optimizer"]
    assert first["whole"] == second["whole"] == []
    assert first["damage"] == second["damage"]
    for name, words in {
        "a byte": ["__0_0.distcp", "checksum differs"],
        "a cut": ["__0_0.distcp", "bytes instead of"],
        "a file": ["metadata.json is missing"],
        "the checksums": ["checksums.json cannot be read"],
    }.items():
        assert any(all(word in problem for word in words) for problem in first["damage"][name]), name


def test_all_ranks_learn_that_one_could_not_write(runs):
    for rank in runs["distributed optimizer"]:
        assert "could not be written (rank 1: OSError: No space left on device)" in rank["failure"]
