"""One rank, two data-parallel, two tensor-parallel and two pipeline-parallel ranks: the same training, to rounding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.parity.batches import TinyLoss, make_batch, with_returns, with_shared_prefixes
from tests.parity.ranks import run_cases_on_ranks, run_on_one_rank, run_on_ranks
from tests.tiny_model import build_tiny_model
from zs_nemo.algorithms.value_loss import ValueLoss
from zs_nemo.config.policy import OptimConfig, Precision
from zs_nemo.training.export import export_checkpoint
from zs_nemo.training.worker import MegatronWorker

# An eps far above the gradients' rounding: else Adam makes whole steps of gradients that are nothing but rounding.
OPTIM = OptimConfig(lr=1e-2, eps=1e-2)
# An odd vocabulary, so that tensor parallelism pads it.
VOCAB = 515
# Some sequences begin alike; whether they meet in a micro-batch depends on the layout.
BATCHES = [
    with_returns(
        with_shared_prefixes(
            make_batch([23, 9, 31, 17, 12, 40], vocab_size=VOCAB, seed=seed), {0: [1, 2], 3: [4]}, num_tokens=7
        )
    )
    for seed in range(2)
]
# One sequence: under data parallelism the other rank has no micro-batch.
LONE = make_batch([30], vocab_size=VOCAB, seed=7)
LAYOUTS = {
    name: (ranks, {"optim": OPTIM, **layout})
    for name, (ranks, layout) in {
        "one rank": (1, {}),
        "DP=2": (2, {}),
        "DP=2 without the distributed optimizer": (2, {"use_distributed_optimizer": False}),
        "TP=2": (2, {"tensor_model_parallel_size": 2}),
        "TP=2 with sequence parallelism": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
        "PP=2": (2, {"pipeline_model_parallel_size": 2}),
        "CP=2": (2, {"context_parallel_size": 2}),
        "TP=2, CP=2 with sequence parallelism": (
            4,
            {"tensor_model_parallel_size": 2, "context_parallel_size": 2, "sequence_parallel": True},
        ),
    }.items()
}

# Four ranks on two cores take their time.
ALL = [pytest.param(name, marks=pytest.mark.long) if LAYOUTS[name][0] > 2 else name for name in LAYOUTS]
CUT = [layout for layout in ALL if layout != "one rank"]


def train(worker: MegatronWorker, folder: Path) -> dict:
    """Three updates, the middle one with a lone sequence; then the third once more, from a checkpoint before it."""
    result = {"logprobs": [worker.logprobs(batch) for batch in BATCHES]}
    metrics = [worker.train_step(BATCHES[0], TinyLoss()), worker.train_step(LONE, TinyLoss())]
    result["lone"] = worker.logprobs(LONE)
    worker.save_checkpoint(str(folder / "checkpoint"))
    worker.export_hf(str(folder / "at_checkpoint"))
    metrics.append(worker.train_step(BATCHES[1], TinyLoss()))
    worker.export_hf(str(folder / "exported"))
    result |= {"metrics": metrics, "after": worker.logprobs(BATCHES[0])}
    result["critic"] = train_critic(worker, folder / "critic")
    # The critic beside it has changed nothing of the policy, and its resume was its own.
    return {**result, "resumed": resume(worker, [folder / "checkpoint"])[0]}


def train_critic(worker: MegatronWorker, folder: Path) -> dict:
    """Three updates of the critic from its head of zeros; then the third once more, from a checkpoint before it."""
    loss = ValueLoss(clip_range=0.2)
    result = {"start": worker.values(BATCHES[0])}
    metrics = [worker.train_critic(batch, loss) for batch in (BATCHES[0], BATCHES[1])]
    worker.save_critic(str(folder))
    metrics.append(worker.train_critic(BATCHES[0], loss))
    result |= {"metrics": metrics, "after": worker.values(BATCHES[0])}
    return {**result, "resumed": resume_critic(worker, folder)}


def resume_critic(worker: MegatronWorker, folder: Path) -> dict:
    """The critic's third update from a checkpoint."""
    worker.restore_critic(str(folder))
    metrics = worker.train_critic(BATCHES[0], ValueLoss(clip_range=0.2))
    return {"metrics": metrics, "after": worker.values(BATCHES[0])}


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


# Layouts under which the checkpoints of others go on.
CONTINUED = ("DP=2", "TP=2")
SOURCES = ("one rank", "DP=2", "TP=2", "PP=2")


def do(worker: MegatronWorker, what: Callable[..., Any], *args: Any) -> Any:
    """One of the functions above, so that all run in the same processes."""
    return what(worker, *args)


class Runs(dict):
    """Folder and every rank's results, by layout; those of four ranks are made when they are first asked for."""

    def __init__(self, model: Path, folder: Path) -> None:
        super().__init__()
        self._model, self._folder = model, folder
        folders = {name: folder / str(number) for number, name in enumerate(LAYOUTS)}
        for each in folders.values():
            each.mkdir(parents=True)
        one = folders["one rank"]
        self["one rank"] = one, [run_on_one_rank(train, model, one, with_critic=True, **LAYOUTS["one rank"][1])]
        cases: dict[Any, tuple] = {
            name: (model, {"with_critic": True, **policy}, (train, folders[name]))
            for name, (ranks, policy) in LAYOUTS.items()
            if ranks == 2
        }
        names = list(cases)
        for layout in CONTINUED:
            checkpoints = [folders[source] / "checkpoint" for source in SOURCES if source != layout]
            cases["continued", layout] = (model, LAYOUTS[layout][1], (resume, checkpoints))
        critic = {"with_critic": True, **LAYOUTS["TP=2"][1]}
        cases["critic continued"] = (model, critic, (resume_critic, folders["PP=2"] / "critic"))
        done = run_cases_on_ranks(2, do, folder / "two", cases)
        self.update({name: (folders[name], done[name]) for name in names})
        self.continued = {layout: done["continued", layout][0] for layout in CONTINUED}
        self.critic_continued = done["critic continued"][0]

    def __missing__(self, name: str) -> tuple[Path, list[dict]]:
        ranks, policy = LAYOUTS[name]
        folder = self._folder / "later"
        self[name] = folder, run_on_ranks(ranks, train, folder, self._model, folder, with_critic=True, **policy)
        return self[name]


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    return Runs(model, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("layout", ALL)
def test_every_rank_returns_the_same(runs, layout):
    _, (first, *others) = runs[layout]
    for other in others:
        assert other["metrics"] == first["metrics"]
        assert torch.equal(other["after"], first["after"])
        assert other["critic"]["metrics"] == first["critic"]["metrics"]
        assert torch.equal(other["critic"]["after"], first["critic"]["after"])


@pytest.mark.parametrize("layout", CUT)
def test_losses_gradient_norms_and_logprobs_equal_those_of_one_rank(runs, layout):
    one, ours = runs["one rank"][1][0], runs[layout][1][0]
    for expected, got in zip(one["metrics"], ours["metrics"], strict=True):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, rel=1e-5), name
    for name in ("lone", "after"):
        torch.testing.assert_close(ours[name], one[name], atol=1e-5, rtol=0)
    for ours_before, one_before in zip(ours["logprobs"], one["logprobs"], strict=True):
        torch.testing.assert_close(ours_before, one_before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", CUT)
def test_the_critic_learns_the_same_as_on_one_rank(runs, layout):
    one, ours = runs["one rank"][1][0]["critic"], runs[layout][1][0]["critic"]
    assert not ours["start"].any() and ours["after"][BATCHES[0].loss_mask].abs().min() > 1e-4
    for expected, got in zip(one["metrics"], ours["metrics"], strict=True):
        for name, value in expected.items():
            # A token that lies on the limit of the clip falls to one side or the other by rounding.
            if name != "value_clip_share":
                assert got[name] == pytest.approx(value, rel=1e-5), name
    torch.testing.assert_close(ours["after"], one["after"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", CUT)
def test_the_trained_weights_equal_those_of_one_rank(runs, model, layout):
    start = load_file(model / "model.safetensors")
    one, ours = (load_file(runs[name][0] / "exported" / "model.safetensors") for name in ("one rank", layout))
    assert one.keys() == ours.keys() == start.keys()
    for name, expected in one.items():
        assert (expected - start[name]).norm() > 1e-3 * expected.norm(), f"{name} was hardly trained"
        assert (ours[name] - expected).norm() < 1e-5 * expected.norm(), name


@pytest.mark.parametrize("layout", ALL)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(runs, layout):
    result = runs[layout][1][0]
    assert result["resumed"]["metrics"] == result["metrics"][2]
    assert torch.equal(result["resumed"]["after"], result["after"])
    critic = result["critic"]
    assert critic["resumed"]["metrics"] == critic["metrics"][2]
    assert torch.equal(critic["resumed"]["after"], critic["after"])


@pytest.mark.parametrize("layout", CONTINUED)
def test_a_checkpoint_of_any_layout_continues_under_another(runs, layout):
    sources = [source for source in SOURCES if source != layout]
    for source, got in zip(sources, runs.continued[layout], strict=True):
        expected = runs[source][1][0]
        for name, value in expected["metrics"][2].items():
            assert got["metrics"][name] == pytest.approx(value, rel=1e-5), (source, name)
        torch.testing.assert_close(got["after"], expected["after"], atol=1e-5, rtol=0)


def test_a_critic_of_one_layout_continues_under_another(runs):
    resumed = runs.critic_continued
    expected = runs["PP=2"][1][0]["critic"]
    for name, value in expected["metrics"][2].items():
        if name == "value_clip_share":
            continue
        assert resumed["metrics"][name] == pytest.approx(value, rel=1e-5), name
    torch.testing.assert_close(resumed["after"], expected["after"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ALL)
def test_one_process_exports_the_checkpoint_of_any_layout(runs, model, tmp_path, layout):
    folder = runs[layout][0]
    export_checkpoint(folder / "checkpoint", model, tmp_path / "later", precision=Precision.fp32)
    at_once = load_file(folder / "at_checkpoint" / "model.safetensors")
    later = load_file(tmp_path / "later" / "model.safetensors")
    assert at_once.keys() == later.keys()
    assert all(torch.equal(at_once[name], later[name]) for name in at_once)
    assert (tmp_path / "later" / "config.json").is_file() and (tmp_path / "later" / "tokenizer.json").is_file()


def test_a_checkpoint_of_another_model_or_without_its_index_is_refused_by_name(runs, model, tmp_path):
    checkpoint = runs["one rank"][0] / "checkpoint"
    other = build_tiny_model(tmp_path / "other", vocab_size=VOCAB, num_layers=3)
    for folder, prefix, message in (
        (other, "", "another|shape|missing"),
        (model, "module.", "has no tensor 'module"),
    ):
        with pytest.raises(ValueError, match=message):
            export_checkpoint(checkpoint, folder, tmp_path / "out", precision=Precision.fp32, prefix=prefix)
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        export_checkpoint(tmp_path, model, tmp_path / "out", precision=Precision.fp32)
    assert not (tmp_path / "out").exists()
