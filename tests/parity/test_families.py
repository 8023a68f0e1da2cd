"""Every model family against Hugging Face transformers, in float32, whole and cut over ranks."""

import weakref
from pathlib import Path

import pytest
import torch
from megatron.core import parallel_state
from safetensors.torch import load_file

from tests.family_models import CONFIGS, VOCAB, build_family_model
from tests.parity import hf_oracle
from tests.parity.batches import TinyLoss, make_batch, with_shared_prefixes
from tests.parity.ranks import make_setup, run_cases_on_ranks, run_on_one_rank
from zs_nemo.training.microbatch import pack
from zs_nemo.training.model import iterate_hf, load_hf, named_weights, unwrap
from zs_nemo.training.worker import MegatronWorker
from zs_nemo.weights.families import read_architecture
from zs_nemo.weights.hf_folder import HfTensors
from zs_nemo.weights.parameter_map import Cut

# The longest sequence passes through every band of the rotary scaling. Two sequences begin alike.
BATCH = with_shared_prefixes(make_batch([23, 300, 31, 17], vocab_size=VOCAB), {0: [2]}, num_tokens=6)
NEXT_BATCH = make_batch([40, 12, 25], vocab_size=VOCAB, seed=1)
SETTINGS = {"gradient_clip_val": 0.0, "train_mb_tokens": 128}
TP = {"tensor_model_parallel_size": 2}
PP = {"pipeline_model_parallel_size": 2}
LAYOUTS = ("one rank", "TP=2", "PP=2", "TP=2 PP=2")
# Two stages of three layers, in the three ways in which the settings can say so.
UNEVEN = {
    "llama 3.2, tied": {"num_layers_in_first_pipeline_stage": 1},
    "qwen2.5, untied": {"num_layers_in_last_pipeline_stage": 1},
    "qwen3, tied": {"num_layers_in_first_pipeline_stage": 2, "num_layers_in_last_pipeline_stage": 1},
}
# Four processes on two cores are slow: one model takes every difficulty at once.
FOUR_RANKS = "qwen3, tied"
# Written by two stages that share an embedding, one pair of them even and one uneven.
CHECKPOINTS = ("qwen2.5, tied", "qwen3, tied")


def logits(worker: MegatronWorker) -> torch.Tensor | None:
    """Return the logits [N, V] that predict the masked tokens, on the last stage; the stages are run by hand."""
    model, hidden = unwrap(worker._policy.model), None
    stages = parallel_state.get_pipeline_model_parallel_group()
    packed = pack(BATCH, torch.device("cpu"), share_prefixes=True)
    assert packed.expansion is not None, "no token is shared: the test would say nothing about sharing"
    if not model.pre_process:
        hidden = torch.empty(packed.input_ids.numel(), 1, model.config.hidden_size)
        torch.distributed.recv(hidden, group=stages, group_src=stages.rank() - 1)
    model.set_input_tensor(hidden)
    out = model(packed=packed, temperature=1.0, as_logits=True)
    if not model.post_process:
        torch.distributed.send(out, group=stages, group_dst=stages.rank() + 1)
        return None
    columns = [torch.empty_like(out) for _ in range(worker.setup.policy.tensor_model_parallel_size)]
    torch.distributed.all_gather(columns, out, group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(columns, dim=1)[:, :VOCAB]


def examine(worker: MegatronWorker, checkpoint: Path | None = None) -> dict:
    """What a rank computes: its weights as they come back, logits, one update with its gradients, the next update."""
    with torch.no_grad(), worker.platform.active():
        back = {name: tensor.clone() for name, tensor in iterate_hf(worker._policy.model.module, worker._architecture)}
        result = {"back": back, "logits": logits(worker)}
    result["metrics"] = worker.train_step(BATCH, TinyLoss())
    result["gradients"] = {name: weight.main_grad.clone() for name, weight in named_weights(worker._policy.model)}
    if checkpoint is not None:
        worker.save_checkpoint(str(checkpoint))
    return result | {"after": continued(worker)}


def continued(worker: MegatronWorker, checkpoint: Path | None = None) -> dict:
    """The next update, from a checkpoint if one is given."""
    if checkpoint is not None:
        worker.load_checkpoint(str(checkpoint))
    logprobs = worker.logprobs(NEXT_BATCH)
    return {"logprobs": logprobs, "metrics": worker.train_step(NEXT_BATCH, TinyLoss())}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: build_family_model(folder / str(n), config) for n, (name, config) in enumerate(CONFIGS.items())}


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory):
    """Return every rank's results by (layout, model), and the folder with the checkpoints by model."""
    folder = tmp_path_factory.mktemp("runs")
    done, cases = {}, {}
    for name, model in models.items():
        done["one rank", name] = [run_on_one_rank(examine, model, **SETTINGS)]
        split = {**SETTINGS, **PP, **UNEVEN.get(name, {})}
        cases["TP=2", name] = (model, {**SETTINGS, **TP}, ())
        cases["PP=2", name] = (model, split, (folder / name if name in CHECKPOINTS else None,))
    done |= run_cases_on_ranks(2, examine, folder / "two", cases)
    four = (models[FOUR_RANKS], {**SETTINGS, **TP, **PP, **UNEVEN[FOUR_RANKS]}, ())
    done |= run_cases_on_ranks(4, examine, folder / "four", {("TP=2 PP=2", FOUR_RANKS): four})
    done["folder"] = folder
    return done


@pytest.fixture(scope="module")
def oracles(models):
    """Return Hugging Face's logits, gradients and loss by model."""
    results = {}
    for name, folder in models.items():
        model = hf_oracle.load(folder)
        with torch.no_grad():
            of_tokens = hf_oracle.masked_logits(model, BATCH)
        results[name] = {"logits": of_tokens, "gradients": hf_oracle.gradients(model, BATCH, TinyLoss())}
    return results


def pairs():
    return [(layout, name) for layout in LAYOUTS for name in CONFIGS if layout != "TP=2 PP=2" or name == FOUR_RANKS]


@pytest.mark.parametrize(("layout", "name"), pairs())
def test_logits_equal_those_of_hugging_face(runs, oracles, layout, name):
    (ours, *others) = [run["logits"] for run in runs[layout, name] if run["logits"] is not None]
    theirs = oracles[name]["logits"]
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() <= 1e-4
    assert all(torch.equal(other, ours) for other in others)


@pytest.mark.parametrize(("layout", "name"), pairs())
def test_every_tensor_comes_back_bit_for_bit_on_every_rank(runs, models, layout, name):
    before = load_file(models[name] / "model.safetensors")
    for run in runs[layout, name]:
        assert run["back"].keys() == before.keys()
        assert [key for key, tensor in before.items() if not torch.equal(run["back"][key], tensor)] == []


@pytest.mark.parametrize(("layout", "name"), pairs())
def test_gradients_and_their_norm_equal_those_of_hugging_face_on_every_rank(runs, models, oracles, layout, name):
    architecture, theirs, compared = read_architecture(models[name]), oracles[name]["gradients"], set()
    held = [run["gradients"] for run in runs[layout, name]]
    for parameter in {key: None for gradients in held for key in gradients}:
        rule = architecture.rule_for(parameter)
        # In order of rank: the tensor-parallel ranks of one stage.
        shards = [gradients[parameter] for gradients in held if parameter in gradients]
        # What is whole on each rank must be right on each rank, or the copies drift apart.
        for one in [[shard] for shard in shards] if rule.cut is Cut.whole else [shards]:
            for hf_name, ours in zip(rule.hf_names, rule.to_hf(one), strict=True):
                torch.testing.assert_close(
                    ours, theirs[hf_name], atol=2e-6, rtol=2e-4, msg=lambda m, n=hf_name: f"{n}: {m}"
                )
                compared.add(hf_name)
    assert compared == theirs.keys()
    norm = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    for run in runs[layout, name]:
        assert run["metrics"]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize(("layout", "name"), [pair for pair in pairs() if pair[0] != "one rank"])
def test_the_update_after_next_equals_that_of_one_rank(runs, layout, name):
    expected = runs["one rank", name][0]["after"]
    for run in runs[layout, name]:
        torch.testing.assert_close(run["after"]["logprobs"], expected["logprobs"], atol=2e-4, rtol=0)
        for key, value in expected["metrics"].items():
            assert run["after"]["metrics"][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_stages_with_a_shared_embedding_continues_on_one_rank(runs, models, name):
    worker = MegatronWorker(make_setup(models[name], **SETTINGS))
    got = continued(worker, runs["folder"] / name)
    worker.shutdown()
    expected = runs["PP=2", name][0]["after"]
    torch.testing.assert_close(got["logprobs"], expected["logprobs"], atol=2e-4, rtol=0)
    assert got["metrics"]["grad_norm"] == pytest.approx(expected["metrics"]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("llama")])
def test_the_rotary_frequencies_are_those_of_hugging_face_and_matter_to_the_logits(models, oracles, name):
    ours = read_architecture(models[name])
    frequencies = ours.rope.inverse_frequencies(ours.head_dim)
    model = hf_oracle.load(models[name])
    torch.testing.assert_close(frequencies, model.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)
    # Were the scaling left out, the comparison of the logits would notice.
    model.model.rotary_emb.inv_freq.copy_(type(ours.rope)(theta=ours.rope.theta, scaling=None).inverse_frequencies(16))
    with torch.no_grad():
        unscaled = hf_oracle.masked_logits(model, BATCH)
    assert (unscaled - oracles[name]["logits"]).abs().max() > 1e-2


def test_no_more_than_one_parameter_of_the_model_is_in_memory_a_second_time(models, monkeypatch):
    """In both directions: what is read from the folder, and what is gathered for it."""
    worker = MegatronWorker(make_setup(models["qwen2.5, untied"]))
    references, most = [], 0

    def count(tensor):
        nonlocal most
        references.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in references))
        return tensor

    read = HfTensors.read
    monkeypatch.setattr(HfTensors, "read", lambda self, name: count(read(self, name)))
    with worker.platform.active():
        load_hf(worker._policy.model.module, worker._architecture, HfTensors(models["qwen2.5, untied"]))
        assert len(references) == len(worker._architecture.hf_shapes())
        assert most == 3  # queries, keys and values, which become one parameter
        references, most = [], 0
        for _, tensor in iterate_hf(worker._policy.model.module, worker._architecture):
            count(tensor)
        assert len(references) == len(worker._architecture.hf_shapes())
        assert most <= 4  # and the one before, which this loop still holds
    worker.shutdown()
