"""Stochastic rounding in training: ranks stay together, a resume repeats it, and small updates arrive."""

from pathlib import Path

import pytest
import torch

from tests.family_models import CONFIGS, build_family_model
from tests.family_models import VOCAB as FAMILY_VOCAB
from tests.parity.batches import TinyLoss, make_batch
from tests.parity.ranks import run_cases_on_ranks, run_on_one_rank
from tests.tiny_model import build_tiny_model
from zs_nemo.config.policy import OptimConfig, Precision
from zs_nemo.training.worker import MegatronWorker

VOCAB = 515
BATCH = make_batch([23, 9, 31, 17, 12, 40], vocab_size=VOCAB, seed=0)
LAYOUTS = {
    "DP=2": {},
    "DP=2 without the distributed optimizer": {"use_distributed_optimizer": False},
    "TP=2": {"tensor_model_parallel_size": 2},
}


def parameters(worker: MegatronWorker) -> dict[str, torch.Tensor]:
    """Return copies of this rank's parameters."""
    return {name: parameter.detach().clone() for name, parameter in worker._policy.model.named_parameters()}


def train(worker: MegatronWorker, folder: Path) -> dict:
    """Two updates, the second once more from a checkpoint between them."""
    worker.train_step(BATCH, TinyLoss())
    worker.save_checkpoint(str(folder / "checkpoint"))
    worker.train_step(BATCH, TinyLoss())
    first = parameters(worker)
    worker.load_checkpoint(str(folder / "checkpoint"))
    worker.train_step(BATCH, TinyLoss())
    shared = {
        name for name, p in worker._policy.model.named_parameters() if not getattr(p, "tensor_model_parallel", False)
    }
    return {"first": first, "resumed": parameters(worker), "shared": shared}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Both ranks' results by layout."""
    folder = tmp_path_factory.mktemp("runs")
    model = build_tiny_model(folder / "model", vocab_size=VOCAB)
    rounded = {"precision": Precision.bf16, "stochastic_rounding": True}
    cases = {
        name: (model, {**rounded, **layout}, (folder / str(number),))
        for number, (name, layout) in enumerate(LAYOUTS.items())
    }
    return run_cases_on_ranks(2, train, folder / "ranks", cases)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_of_a_weight_stay_equal_and_a_resume_repeats_the_rounding(runs, layout):
    one, two = runs[layout]
    names = one["shared"] if layout == "TP=2" else one["first"].keys()
    assert names
    for name in names:
        assert torch.equal(one["first"][name], two["first"][name]), name
    for rank in (one, two):
        for name, expected in rank["first"].items():
            assert torch.equal(rank["resumed"][name], expected), name


def loss_after(worker: MegatronWorker) -> tuple[float, float]:
    """Return the loss before and after four small updates."""
    losses = [worker.train_step(BATCH, TinyLoss())["loss"] for _ in range(5)]
    return losses[0], losses[-1]


def test_updates_that_rounding_to_the_nearest_loses_arrive_as_they_do_in_float32(tmp_path):
    model = build_tiny_model(tmp_path / "model", vocab_size=VOCAB, dtype="bfloat16")
    gains = {}
    for name, policy in {
        "float32": {"precision": Precision.fp32},
        "nearest": {"precision": Precision.bf16},
        "stochastic": {"precision": Precision.bf16, "stochastic_rounding": True},
    }.items():
        settings = {**policy, "optim": OptimConfig(lr=2e-6)}
        before, after = run_on_one_rank(loss_after, model, **settings)
        gains[name] = before - after
    assert gains["float32"] > 0
    assert gains["stochastic"] == pytest.approx(gains["float32"], rel=0.35)
    assert abs(gains["nearest"] - gains["float32"]) > 0.5 * gains["float32"]


def after_one_update(worker: MegatronWorker) -> dict[str, torch.Tensor]:
    """Return the weights after an update."""
    worker.train_step(make_batch([23, 9, 12], vocab_size=FAMILY_VOCAB), TinyLoss())
    return parameters(worker)


def test_float32_weights_are_their_own_master_weights_and_stay_as_the_update_left_them(tmp_path):
    # The quickstart asks for rounding and leaves the precision to the machine, and many a CPU has float32 alone.
    model = build_family_model(tmp_path / "model", CONFIGS["qwen2.5, tied"])
    exact, asked_to_round = (
        run_on_one_rank(after_one_update, model, precision=Precision.fp32, stochastic_rounding=setting)
        for setting in (False, True)
    )
    assert exact.keys() == asked_to_round.keys()
    assert all(torch.equal(asked_to_round[name], weight) for name, weight in exact.items())
