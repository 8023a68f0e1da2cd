"""Cutting, packing and recomputing change nothing; nor does padding, in Hugging Face's model under PyTorch's AdamW."""

from pathlib import Path

import pytest
import torch

from tests.parity import hf_oracle
from tests.parity.batches import TinyLoss, make_batch, with_shared_prefixes
from tests.parity.ranks import run_on_one_rank
from tests.tiny_model import build_tiny_model
from zs_nemo.config.policy import OptimConfig, Recompute, RecomputeMethod
from zs_nemo.training.model import iterate_hf
from zs_nemo.training.worker import MegatronWorker
from zs_nemo.types.batch import TrainBatch

VOCAB = 515
NUM_UPDATES = 3
LENGTHS = [23, 9, 31, 17, 12, 40, 8]
BATCH = with_shared_prefixes(make_batch(LENGTHS, vocab_size=VOCAB, mask_share=0.6), {0: [1, 2], 3: [4]}, num_tokens=7)
# An eps far above the gradients' rounding: else Adam makes whole steps of gradients that are nothing but rounding.
OPTIM = OptimConfig(lr=1e-2, eps=1e-2, weight_decay=0.5)
FULL = {"activations_checkpoint_granularity": Recompute.full}
CASES: dict[str, dict] = {
    "one micro-batch": {"train_mb_tokens": 512},
    "a micro-batch a sequence": {"train_mb_tokens": 1},
    "some micro-batches": {"train_mb_tokens": 48},
    "nothing shared": {"train_mb_tokens": 512},
    "attention recomputed": {"activations_checkpoint_granularity": Recompute.selective},
    "each layer recomputed": FULL,
    "layers recomputed in twos": {**FULL, "activations_checkpoint_num_layers": 2},
    "the first layer recomputed": {**FULL, "activations_checkpoint_method": RecomputeMethod.block},
}
MINIBATCHES = (1, 2, 3, 7)


def train(worker: MegatronWorker, shares: bool) -> dict:
    """Return the metrics of some updates, the weights after them, and then the losses of mini-batches."""
    worker._passes._share_prefixes = shares
    metrics = [worker.train_step(BATCH, TinyLoss()) for _ in range(NUM_UPDATES)]
    with worker.platform.active():
        model = worker._policy.model.module
        weights = {name: tensor.clone() for name, tensor in iterate_hf(model, worker._architecture)}
    worker.reset_optimizer(0.0)
    parts = {size: [worker.train_step(part, TinyLoss()) for part in BATCH.minibatches(size)] for size in MINIBATCHES}
    return {"metrics": metrics, "weights": weights, "parts": parts}


def padded_outputs(model, batch: TrainBatch) -> torch.Tensor:
    """Return logprobs and entropies of the masked tokens from one padded forward pass."""
    lengths = batch.lengths.tolist()
    ids = torch.nn.utils.rnn.pad_sequence(list(batch.token_ids.split(lengths)), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence(list(batch.loss_mask.split(lengths)), batch_first=True)
    attention = torch.arange(ids.shape[1]) < batch.lengths[:, None]
    log_p = model(input_ids=ids, attention_mask=attention.long(), use_cache=False).logits[:, :-1].log_softmax(-1)
    chosen = log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return torch.stack([chosen, -(log_p.exp() * log_p).sum(-1)])[:, mask[:, 1:]]


def train_padded(folder: Path) -> dict:
    """The same updates with padding."""
    model = hf_oracle.load(folder)
    # Norms and biases do not decay.
    groups = [
        {"params": [each for each in model.parameters() if each.ndim > 1], "weight_decay": OPTIM.weight_decay},
        {"params": [each for each in model.parameters() if each.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=OPTIM.lr, eps=OPTIM.eps)
    loss, metrics = TinyLoss(), []
    for _ in range(NUM_UPDATES):
        optimizer.zero_grad()
        total = loss(padded_outputs(model, BATCH), BATCH)[0] / loss.normalizer(BATCH)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        metrics.append({"loss": float(total.detach()), "grad_norm": float(norm)})
    return {"metrics": metrics, "weights": {name: value.detach() for name, value in model.state_dict().items()}}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"), vocab_size=VOCAB)


@pytest.fixture(scope="module")
def runs(model) -> dict[str, dict]:
    return {
        name: run_on_one_rank(train, model, name != "nothing shared", optim=OPTIM, **policy)
        for name, policy in CASES.items()
    }


def assert_same_training(ours: dict, theirs: dict, start: dict[str, torch.Tensor]) -> None:
    """Loss, gradient norm and weights, relative to their size."""
    for got, expected in zip(ours["metrics"], theirs["metrics"], strict=True):
        for name in ("loss", "grad_norm"):
            assert got[name] == pytest.approx(expected[name], rel=1e-5), name
    for name, weights in ours["weights"].items():
        expected = theirs["weights"][name]
        assert (expected - start[name]).norm() > 1e-3 * expected.norm(), f"{name} was hardly trained"
        assert (weights - expected).norm() < 1e-5 * expected.norm(), name


def test_packed_training_equals_padded_training_of_hugging_face(runs, model):
    start = {name: value.clone() for name, value in hf_oracle.load(model).state_dict().items()}
    assert_same_training(runs["one micro-batch"], train_padded(model), start)


@pytest.mark.parametrize("case", [name for name in CASES if name != "one micro-batch"])
def test_neither_micro_batches_nor_sharing_nor_recomputation_changes_the_training(runs, model, case):
    start = {name: value.clone() for name, value in hf_oracle.load(model).state_dict().items()}
    assert_same_training(runs[case], runs["one micro-batch"], start)


@pytest.mark.parametrize("size", MINIBATCHES)
def test_mini_batches_count_by_their_tokens_the_remainder_too(runs, size):
    whole, parts = (runs["some micro-batches"]["parts"][number] for number in (max(MINIBATCHES), size))
    (expected,) = whole
    assert len(parts) == -(-len(LENGTHS) // size)
    assert sum(part["loss_normalizer"] for part in parts) == expected["loss_normalizer"]
    total = sum(part["loss"] * part["loss_normalizer"] for part in parts)
    assert total == pytest.approx(expected["loss"] * expected["loss_normalizer"], rel=1e-5)
