"""One rank, two data-parallel, two tensor-parallel and two pipeline-parallel ranks: the same training, to rounding."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.parity.batches import TinyLoss, make_batch, with_shared_prefixes
from tests.parity.ranks import run_on_ranks
from tests.tiny_model import build_tiny_model
from zs_nemo.training.worker import MegatronWorker

# An odd vocabulary, so that tensor parallelism pads it.
VOCAB = 515
# Some sequences begin alike; whether they meet in a micro-batch depends on the layout.
BATCHES = [
    with_shared_prefixes(
        make_batch([23, 9, 31, 17, 12, 40], vocab_size=VOCAB, seed=seed), {0: [1, 2], 3: [4]}, num_tokens=7
    )
    for seed in range(2)
]
# One sequence: under data parallelism the other rank has no micro-batch.
LONE = make_batch([30], vocab_size=VOCAB, seed=7)
LAYOUTS = {
    "one rank": (1, {}),
    "DP=2": (2, {}),
    "DP=2 without the distributed optimizer": (2, {"use_distributed_optimizer": False}),
    "TP=2": (2, {"tensor_model_parallel_size": 2}),
    "PP=2": (2, {"pipeline_model_parallel_size": 2}),
}


def train(worker: MegatronWorker, folder: Path) -> dict:
    """Three updates, the middle one with a lone sequence; then the third once more, from a checkpoint before it."""
    result = {"logprobs": [worker.logprobs(batch) for batch in BATCHES]}
    metrics = [worker.train_step(BATCHES[0], TinyLoss()), worker.train_step(LONE, TinyLoss())]
    result["lone"] = worker.logprobs(LONE)
    worker.save_checkpoint(str(folder / "checkpoint"))
    metrics.append(worker.train_step(BATCHES[1], TinyLoss()))
    worker.export_hf(str(folder / "exported"))
    result |= {"metrics": metrics, "after": worker.logprobs(BATCHES[0])}
    return {**result, "resumed": resume(worker, [folder / "checkpoint"])[0]}


def resume(worker: MegatronWorker, checkpoints: list[Path]) -> list[dict]:
    """The third update, from every layout's checkpoint in turn."""
    results = []
    for checkpoint in checkpoints:
        worker.load_checkpoint(str(checkpoint))
        metrics = worker.train_step(BATCHES[1], TinyLoss())
        results.append({"metrics": metrics, "after": worker.logprobs(BATCHES[0])})
    return results


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"), vocab_size=VOCAB)


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """Return folder and every rank's results, by layout."""
    done = {}
    for name, (ranks, policy) in LAYOUTS.items():
        folder = tmp_path_factory.mktemp("run")
        done[name] = (folder, run_on_ranks(ranks, train, folder, model, folder, **policy))
    return done


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_returns_the_same(runs, layout):
    _, (first, *others) = runs[layout]
    for other in others:
        assert other["metrics"] == first["metrics"]
        assert torch.equal(other["after"], first["after"])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one rank"])
def test_losses_gradient_norms_and_logprobs_equal_those_of_one_rank(runs, layout):
    one, ours = runs["one rank"][1][0], runs[layout][1][0]
    for expected, got in zip(one["metrics"], ours["metrics"], strict=True):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name in ("lone", "after"):
        torch.testing.assert_close(ours[name], one[name], atol=1e-4, rtol=0)
    for ours_before, one_before in zip(ours["logprobs"], one["logprobs"], strict=True):
        torch.testing.assert_close(ours_before, one_before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one rank"])
def test_the_trained_weights_equal_those_of_one_rank(runs, model, layout):
    start = load_file(model / "model.safetensors")
    one, ours = (load_file(runs[name][0] / "exported" / "model.safetensors") for name in ("one rank", layout))
    assert one.keys() == ours.keys() == start.keys()
    for name, expected in one.items():
        moved = (expected - start[name]).abs().max()
        assert moved > 5e-4, f"{name} was not trained"
        # Adam divides by the gradient's own size: where that is near 0, rounding decides about the direction.
        off = (ours[name] - expected).abs() > 1e-4
        assert off.float().mean() < 1e-3, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(runs, layout):
    result = runs[layout][1][0]
    assert result["resumed"]["metrics"] == result["metrics"][2]
    assert torch.equal(result["resumed"]["after"], result["after"])


@pytest.mark.parametrize("layout", ["DP=2", "TP=2"])
def test_a_checkpoint_of_any_layout_continues_under_another(runs, model, tmp_path, layout):
    ranks, policy = LAYOUTS[layout]
    sources = [source for source in ("one rank", "DP=2", "TP=2", "PP=2") if source != layout]
    checkpoints = [runs[source][0] / "checkpoint" for source in sources]
    resumed = run_on_ranks(ranks, resume, tmp_path, model, checkpoints, **policy)[0]
    for source, got in zip(sources, resumed, strict=True):
        expected = runs[source][1][0]
        for name, value in expected["metrics"][2].items():
            assert got["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), (source, name)
        torch.testing.assert_close(got["after"], expected["after"], atol=1e-4, rtol=0)
