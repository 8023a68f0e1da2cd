"""megatron-core against Hugging Face transformers, in float32, on a random Llama with grouped queries."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.parity import hf_oracle
from tests.parity.batches import TinyLoss, make_batch, with_returns, with_shared_prefixes
from tests.parity.ranks import make_setup
from tests.tiny_model import build_tiny_model
from zs_nemo.algorithms.value_loss import ValueLoss
from zs_nemo.training.microbatch import pack, used_tokens
from zs_nemo.training.model import named_weights, unwrap
from zs_nemo.training.worker import MegatronWorker

VOCAB = 515
# The sequence of two tokens has none under the mask.
# Two groups begin alike, so that some tokens are computed once for several sequences.
BATCH = with_shared_prefixes(make_batch([23, 9, 31, 2, 17, 12], vocab_size=VOCAB), {0: [2, 4], 1: [5]}, num_tokens=6)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"), tie=request.param, vocab_size=VOCAB)


@pytest.fixture
def worker(folder):
    worker = MegatronWorker(make_setup(folder, with_reference=True, gradient_clip_val=0.0))
    yield worker
    worker.shutdown()


def test_logits_equal_those_of_hugging_face(worker, folder):
    with torch.no_grad(), worker.platform.active():
        with_loss = BATCH.select([index for index, tokens in enumerate(used_tokens(BATCH)) if tokens])
        packed = pack(with_loss, torch.device("cpu"), share_prefixes=True)
        assert packed.expansion is not None, "no token is shared: the test would say nothing about sharing"
        ours = worker._policy.model(packed=packed, temperature=1.0, as_logits=True)
        theirs = hf_oracle.masked_logits(hf_oracle.load(folder), BATCH)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_logprobs_equal_those_of_hugging_face_and_are_zero_off_the_mask(worker, folder):
    ours = worker.logprobs(BATCH)
    with torch.no_grad():
        theirs, _ = hf_oracle.logprobs_and_entropy(hf_oracle.load(folder), BATCH)
    torch.testing.assert_close(ours[BATCH.loss_mask], theirs, atol=1e-4, rtol=0)
    assert not ours[~BATCH.loss_mask].any()


def test_gradients_equal_those_of_hugging_face(worker, folder):
    loss = TinyLoss()
    theirs = hf_oracle.gradients(hf_oracle.load(folder), BATCH, loss)
    metrics = worker.train_step(BATCH, loss)
    compared = 0
    for name, parameter in named_weights(worker._policy.model):
        rule = worker._architecture.rule_for(name)
        for hf_name, ours in zip(rule.hf_names, rule.to_hf([parameter.main_grad]), strict=True):
            torch.testing.assert_close(
                ours, theirs[hf_name], atol=1e-6, rtol=1e-4, msg=lambda m, n=hf_name: f"{n}: {m}"
            )
            compared += 1
    assert compared == len(theirs)
    norm = torch.stack([grad.norm() for grad in theirs.values()]).norm()
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_loss_and_entropy_metrics_equal_those_of_hugging_face(worker, folder):
    loss = TinyLoss()
    with torch.no_grad():
        logprobs, entropy = hf_oracle.logprobs_and_entropy(hf_oracle.load(folder), BATCH)
    metrics = worker.train_step(BATCH, loss)
    count = BATCH.num_loss_tokens
    assert metrics["loss"] == pytest.approx(float(loss(torch.stack([logprobs, entropy]), BATCH)[0]) / count, abs=1e-5)
    assert metrics["nll"] == pytest.approx(float(-logprobs.mean()), abs=1e-5)
    assert metrics["logprob_max"] == pytest.approx(float(logprobs.max()), abs=1e-4)
    assert metrics["entropy"] == pytest.approx(float(entropy.mean()), abs=1e-5)
    assert metrics["num_loss_tokens"] == count


def test_the_exported_folder_holds_the_same_bits_and_loads(worker, folder, tmp_path):
    worker.export_hf(str(tmp_path / "out"))
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert hf_oracle.load(tmp_path / "out").config.num_hidden_layers == 2


def test_an_update_reaches_the_exported_weights_and_the_refit_file_holds_the_same(worker, folder, tmp_path):
    worker.train_step(BATCH, TinyLoss())
    worker.export_hf(str(tmp_path / "out"))
    worker.export_refit(str(tmp_path / "refit.safetensors"))
    exported, refit = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "refit.safetensors")
    assert exported.keys() == refit.keys()
    assert all(torch.equal(exported[name], refit[name]) for name in exported)
    with torch.no_grad():
        theirs, _ = hf_oracle.logprobs_and_entropy(hf_oracle.load(tmp_path / "out"), BATCH)
    torch.testing.assert_close(worker.logprobs(BATCH)[BATCH.loss_mask], theirs, atol=1e-4, rtol=0)
    before = load_file(folder / "model.safetensors")
    assert all(not torch.equal(before[name], exported[name]) for name in before)


def test_the_reference_equals_the_policy_bit_for_bit_until_an_update(worker):
    before = worker.logprobs(BATCH)
    assert torch.equal(before, worker.reference_logprobs(BATCH))
    worker.train_step(BATCH, TinyLoss())
    assert torch.equal(before, worker.reference_logprobs(BATCH))
    assert not torch.equal(worker.logprobs(BATCH), before)
    worker.set_reference()
    assert torch.equal(worker.logprobs(BATCH), worker.reference_logprobs(BATCH))


def test_the_reference_and_the_policy_load_from_an_exported_folder(worker, tmp_path):
    start = worker.logprobs(BATCH)
    worker.export_hf(str(tmp_path / "start"))
    worker.train_step(BATCH, TinyLoss())
    worker.set_reference()
    worker.load_reference(str(tmp_path / "start"))
    worker.load_policy(str(tmp_path / "start"))
    assert torch.equal(worker.reference_logprobs(BATCH), start)
    assert torch.equal(worker.logprobs(BATCH), start)
    worker.reset_optimizer(0.0)
    worker.train_step(BATCH, TinyLoss())
    assert torch.equal(worker.logprobs(BATCH), start), "the master weights were not those that were loaded"


def test_a_reset_optimizer_behaves_as_a_new_one(folder, tmp_path):
    worker = MegatronWorker(make_setup(folder))
    try:
        worker.train_step(BATCH, TinyLoss())
        worker.export_hf(str(tmp_path / "one"))
        worker.reset_optimizer(5e-4)
        after_reset = worker.train_step(BATCH, TinyLoss()), worker.logprobs(BATCH)
    finally:
        worker.shutdown()
    fresh = MegatronWorker(make_setup(tmp_path / "one"))
    try:
        fresh.reset_optimizer(5e-4)
        expected = fresh.train_step(BATCH, TinyLoss()), fresh.logprobs(BATCH)
    finally:
        fresh.shutdown()
    assert after_reset[0] == expected[0]
    assert after_reset[0]["learning_rate"] == 5e-4
    assert torch.equal(after_reset[1], expected[1])


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_the_cut_into_micro_batches_changes_nothing(folder, max_tokens):
    worker = MegatronWorker(make_setup(folder, train_mb_tokens=max_tokens, temperature=0.7))
    try:
        logprobs, metrics = worker.logprobs(BATCH), worker.train_step(BATCH, TinyLoss())
        after = worker.logprobs(BATCH)
    finally:
        worker.shutdown()
    with torch.no_grad():
        theirs, _ = hf_oracle.logprobs_and_entropy(hf_oracle.load(folder), BATCH, temperature=0.7)
    torch.testing.assert_close(logprobs[BATCH.loss_mask], theirs, atol=1e-4, rtol=0)
    expected = _EXPECTED.setdefault(folder, (metrics, after))
    for name, value in expected[0].items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    torch.testing.assert_close(after, expected[1], atol=1e-4, rtol=0)


_EXPECTED: dict[Path, tuple] = {}


def test_gradients_agree_with_finite_differences(folder, tmp_path):
    """An oracle that shares nothing with autograd: the loss itself, evaluated on both sides of one weight."""
    loss = TinyLoss()
    worker = MegatronWorker(make_setup(folder, gradient_clip_val=0.0, optim=_frozen()))
    try:
        worker.train_step(BATCH, loss)
        weights = dict(named_weights(worker._policy.model))
        for name in ("decoder.layers.1.mlp.linear_fc1.weight", "decoder.layers.0.self_attention.linear_qkv.weight"):
            weight = weights[name]
            place = divmod(int(weight.main_grad.abs().argmax()), weight.shape[1])
            slope, step = float(weight.main_grad[place]), 1e-2
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[place] += sign * step
                losses.append(worker.train_step(BATCH, loss)["loss"])
                worker.load_policy(str(folder))
            assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=0.03)
    finally:
        worker.shutdown()


def test_values_and_gradients_of_the_critic_equal_those_of_hugging_face(folder):
    """The oracle: the last hidden states of transformers' model times the head, by autograd."""
    batch, loss = with_returns(BATCH), ValueLoss(clip_range=0.05)
    worker = MegatronWorker(make_setup(folder, with_critic=True, gradient_clip_val=0.0))
    try:
        model = worker._critic.model
        head = unwrap(model).output_layer.weight
        with torch.no_grad():
            head.copy_(0.1 * torch.randn(head.shape, generator=torch.Generator().manual_seed(3)))
        theirs = hf_oracle.load(folder)
        their_head = head.detach().clone().requires_grad_()
        values = hf_oracle.masked_hidden_states(theirs, batch) @ their_head[0]
        torch.testing.assert_close(worker.values(batch)[batch.loss_mask], values.detach(), atol=1e-4, rtol=0)
        (loss(values[None], batch)[0] / loss.normalizer(batch)).backward()
        expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
        metrics = worker.train_critic(batch, loss)
        torch.testing.assert_close(head.main_grad, their_head.grad, atol=1e-6, rtol=1e-4)
        for name, parameter in named_weights(model):
            rule = worker._architecture.rule_for(name)
            for hf_name, ours in zip(rule.hf_names, rule.to_hf([parameter.main_grad]), strict=True):
                torch.testing.assert_close(ours, expected[hf_name], atol=1e-6, rtol=1e-4)
        grads = [grad for grad in [*expected.values(), their_head.grad] if grad is not None]
        assert metrics["grad_norm"] == pytest.approx(float(torch.stack([g.norm() for g in grads]).norm()), rel=1e-5)
    finally:
        worker.shutdown()


def test_the_critic_takes_all_but_its_head_from_a_folder(folder, tmp_path):
    worker = MegatronWorker(make_setup(folder, with_critic=True))
    try:
        worker.train_step(BATCH, TinyLoss())
        worker.export_hf(str(tmp_path / "policy"))
        worker.load_critic(str(tmp_path / "policy"))
        weights = [dict(named_weights(trained.model)) for trained in (worker._policy, worker._critic)]
        for name, weight in weights[1].items():
            assert torch.equal(weight, weights[0][name]), name
        assert not unwrap(worker._critic.model).output_layer.weight.any()
    finally:
        worker.shutdown()


def _frozen():
    from zs_nemo.config.policy import OptimConfig

    return OptimConfig(lr=0.0)
