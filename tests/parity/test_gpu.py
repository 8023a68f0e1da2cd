"""The training core on an NVIDIA GPU against Hugging Face transformers, through both layer specs.

The oracle computes in float32 from the weights as bf16 holds them; how far transformers itself is from that when it
computes in bf16 is what ours may be off by.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.family_models import CONFIGS, VOCAB, build_family_model
from tests.parity import hf_oracle
from tests.parity.batches import TinyLoss, make_batch, with_returns, with_shared_prefixes
from tests.parity.ranks import free_port, make_setup
from zs_nemo.algorithms.value_loss import ValueLoss
from zs_nemo.config.policy import OptimConfig, Precision, Recompute
from zs_nemo.training import model as model_module
from zs_nemo.training.model import named_weights
from zs_nemo.training.worker import MegatronWorker
from zs_nemo.weights.handle_transfer import HandleTransfer, cuda_handles, cuda_place
from zs_nemo.weights.transfer import TransferAddress

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

LOCAL, FUSED = "local", "transformer_engine"
SPECS = (LOCAL, FUSED)
MODELS = ("llama 3.2, tied", "qwen2.5, untied", "qwen3, tied")
BATCH = with_returns(
    with_shared_prefixes(make_batch([230, 90, 310, 20, 170, 120], vocab_size=VOCAB), {0: [2, 4], 1: [5]}, num_tokens=60)
)
MAX_TOKENS = 512
# Of random models, one rounding may be where the other is not.
SLACK = 1.5


@dataclass
class Oracle:
    """What Hugging Face computes on the batch: exactly, and in bf16."""

    logprobs: Tensor
    rough_logprobs: Tensor
    gradients: dict[str, Tensor]
    rough_gradients: dict[str, Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: build_family_model(root / name.replace(" ", "_"), CONFIGS[name]) for name in MODELS}


@pytest.fixture(scope="module")
def oracles(folders) -> dict[str, Oracle]:
    found = {}
    for name, folder in folders.items():
        rough, exact = hf_oracle.load(folder, torch.bfloat16), hf_oracle.load(folder, torch.bfloat16).float()
        with torch.no_grad():
            logprobs, rough_logprobs = (hf_oracle.logprobs_and_entropy(each, BATCH)[0] for each in (exact, rough))
        gradients, rough_gradients = (hf_oracle.gradients(each, BATCH, TinyLoss()) for each in (exact, rough))
        found[name] = Oracle(logprobs, rough_logprobs, gradients, rough_gradients)
    return found


@contextmanager
def on_gpu(folder: Path, spec: str, **settings) -> Iterator[MegatronWorker]:
    """Build a worker whose layers are of a spec."""
    if spec == FUSED and not model_module.HAVE_TE:
        pytest.skip("transformer-engine is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "HAVE_TE", spec == FUSED)
        options = {"precision": Precision.bf16, "train_mb_tokens": MAX_TOKENS, "gradient_clip_val": 0.0, **settings}
        worker = MegatronWorker(replace(make_setup(folder, **options), use_gpu=True))
        try:
            yield worker
        finally:
            worker.shutdown()
            torch.cuda.empty_cache()


def error(values: Tensor, exact: Tensor) -> float:
    return float((values.float() - exact).norm() / exact.norm())


def gradients_of(worker: MegatronWorker) -> dict[str, Tensor]:
    found = {}
    for name, parameter in named_weights(worker._policy.model):
        rule = worker._architecture.rule_for(name)
        found |= dict(zip(rule.hf_names, (each.cpu() for each in rule.to_hf([parameter.main_grad])), strict=True))
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("spec", SPECS)
def test_logprobs_and_gradients_are_as_near_to_exact_as_those_of_hugging_face(folders, oracles, name, spec):
    oracle = oracles[name]
    with on_gpu(folders[name], spec) as worker:
        logprobs = worker.logprobs(BATCH)
        metrics = worker.train_step(BATCH, TinyLoss())
        gradients = gradients_of(worker)
    assert not logprobs[~BATCH.loss_mask].any()
    ours, theirs = error(logprobs[BATCH.loss_mask], oracle.logprobs), error(oracle.rough_logprobs, oracle.logprobs)
    print(f"{name}, {spec}: logprobs off by {ours:.2e}, transformers in bf16 by {theirs:.2e}")
    assert ours < SLACK * theirs
    assert gradients.keys() == oracle.gradients.keys()
    whole = [torch.cat([each[key].flatten().float() for key in oracle.gradients]) for each in (
        gradients, oracle.rough_gradients, oracle.gradients
    )]  # fmt: skip
    ours, theirs = error(whole[0], whole[2]), error(whole[1], whole[2])
    print(f"{name}, {spec}: gradients off by {ours:.2e}, transformers in bf16 by {theirs:.2e}")
    assert ours < SLACK * theirs
    for key, exact in oracle.gradients.items():
        assert error(gradients[key], exact) < 0.01 + 2 * error(oracle.rough_gradients[key], exact), key
    assert metrics["grad_norm"] == pytest.approx(float(whole[2].norm()), rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_in_float32_logprobs_are_those_of_hugging_face(folders, name):
    with on_gpu(folders[name], LOCAL, precision=Precision.fp32) as worker:
        ours = worker.logprobs(BATCH)
    with torch.no_grad():
        theirs, _ = hf_oracle.logprobs_and_entropy(hf_oracle.load(folders[name]), BATCH)
    torch.testing.assert_close(ours[BATCH.loss_mask], theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "settings",
    [
        {"train_mb_tokens": 10_000},
        {"activations_checkpoint_granularity": Recompute.full},
        {"activations_checkpoint_granularity": Recompute.selective},
        {"optim": OptimConfig(lr=1e-3, optimizer_cpu_offload=True)},
        {"use_distributed_optimizer": False},
    ],
    ids=["one micro-batch", "full recomputation", "selective recomputation", "optimizer off the GPU", "not sharded"],
)
def test_settings_that_change_no_result(folders, spec, settings):
    losses = []
    for options in ({}, settings):
        with on_gpu(folders["qwen2.5, untied"], spec, **options) as worker:
            losses.append([worker.train_step(BATCH, TinyLoss())["loss"] for _ in range(4)])
    assert abs(losses[0][3] - losses[0][0]) > 0.05, "four updates have changed too little to tell anything"
    assert losses[1] == pytest.approx(losses[0], abs=0.01)


@pytest.mark.parametrize(("written_by", "read_by"), [(LOCAL, FUSED), (FUSED, LOCAL), (FUSED, FUSED), (LOCAL, LOCAL)])
def test_checkpoints_go_from_one_spec_to_the_other(folders, tmp_path, written_by, read_by):
    folder = folders["qwen3, tied"]
    with on_gpu(folder, written_by) as worker:
        worker.train_step(BATCH, TinyLoss())
        worker.save_checkpoint(str(tmp_path / "checkpoint"))
        worker.export_hf(str(tmp_path / "written"))
        expected = worker.train_step(BATCH, TinyLoss())["loss"], worker.train_step(BATCH, TinyLoss())["loss"]
    with on_gpu(folder, read_by) as worker:
        worker.load_checkpoint(str(tmp_path / "checkpoint"))
        worker.export_hf(str(tmp_path / "read"))
        losses = worker.train_step(BATCH, TinyLoss())["loss"], worker.train_step(BATCH, TinyLoss())["loss"]
    written, read = (load_file(tmp_path / each / "model.safetensors") for each in ("written", "read"))
    assert written.keys() == read.keys()
    assert all(torch.equal(written[key], read[key]) for key in written)
    assert losses == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("spec", SPECS)
def test_values_of_the_critic_are_those_of_hugging_face(folders, spec):
    folder = folders["llama 3.2, tied"]
    with on_gpu(folder, spec, with_critic=True) as worker:
        head = model_module.unwrap(worker._critic.model).output_layer.weight
        with torch.no_grad():
            head.copy_(0.1 * torch.randn(head.shape, generator=torch.Generator().manual_seed(3)))
        values, kept = worker.values(BATCH), head.detach().cpu().float()
        metrics = worker.train_critic(BATCH, ValueLoss(clip_range=0.2))
    with torch.no_grad():
        exact, rough = (
            hf_oracle.masked_hidden_states(model, BATCH).float() @ kept[0]
            for model in (hf_oracle.load(folder, torch.bfloat16).float(), hf_oracle.load(folder, torch.bfloat16))
        )
    assert error(values[BATCH.loss_mask], exact) < SLACK * error(rough, exact)
    assert metrics["grad_norm"] > 0


def _lend(address: TransferAddress, rounds: int) -> None:
    device = torch.device("cuda", 0)
    sender = HandleTransfer(address, 0, place=cuda_place(device), handles=cuda_handles(device))
    for seed in range(rounds):
        sender.send(((name, value.to(device)) for name, value in _values(seed)), dtype=torch.bfloat16, bucket_bytes=999)


def _values(seed: int) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(f"tensor {n}", torch.randn(7, 10 * n + 1, generator=generator)) for n in range(40)]


def test_tensors_reach_another_process_on_the_same_gpu():
    address = TransferAddress(host="127.0.0.1", port=free_port(), num_members=2, shares_devices=True)
    process = multiprocessing.get_context("spawn").Process(target=_lend, args=(address, 3))
    process.start()
    device = torch.device("cuda", 0)
    receiver = HandleTransfer(address, 1, place=cuda_place(device), handles=cuda_handles(device))
    for seed in range(3):
        came = list(receiver.receive())
        assert [name for name, _ in came] == [name for name, _ in _values(seed)]
        for (_, ours), (_, sent) in zip(came, _values(seed), strict=True):
            assert ours.is_cuda
            assert torch.equal(ours.cpu(), sent.to(torch.bfloat16))
    process.join(30)
    assert process.exitcode == 0
