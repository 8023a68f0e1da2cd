"""One vLLM engine on an NVIDIA GPU beside a training rank on the same one: what it samples, and its refits."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from tests.parity import hf_oracle
from tests.parity.batches import TinyLoss, make_batch
from tests.parity.ranks import free_port, make_setup
from tests.tiny_model import build_tiny_model
from zs_nemo.config.policy import Precision
from zs_nemo.generation.vllm_engine import EngineSetup, VllmEngine
from zs_nemo.training.worker import MegatronWorker
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.generation import Completion, SamplingParams
from zs_nemo.weights.transfer import TransferAddress

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.asyncio(loop_scope="module"),
]

PROMPT = list(range(1000, 1060))
SAMPLING = SamplingParams(max_tokens=48)
# Two bf16 implementations of one model, and its float32 arithmetic.
NEAR = 0.05


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    # Heads of 64, which every attention backend has kernels for.
    return build_tiny_model(tmp_path_factory.mktemp("model"), dtype="bfloat16", head_dim=64)


@pytest.fixture(scope="module")
def worker(model: Path):
    built = MegatronWorker(
        replace(make_setup(model, precision=Precision.bf16, train_mb_tokens=512), use_gpu=True, seed=3)
    )
    yield built
    built.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[VllmEngine]:
    # What is compared is no question of speed, and a cold compiler takes minutes.
    setup = EngineSetup(
        model_path=str(model),
        dtype="bfloat16",
        max_model_len=320,
        use_gpu=True,
        gpu_memory_utilization=0.2,
        enforce_eager=True,
        # As where it shares the GPU with the worker: half of what it has is for keys and values.
        besides_kv_gib=0.1 * torch.cuda.get_device_properties(0).total_memory / 2**30,
        sleeps=True,
    )
    built = VllmEngine(setup)
    yield built
    await built.shutdown()


async def sample(engine: VllmEngine, count: int = 16) -> list[Completion]:
    return list(await asyncio.gather(*[engine.generate(PROMPT[i:], SAMPLING, seed=i) for i in range(count)]))


def as_batch(completions: list[Completion]) -> TrainBatch:
    ids, mask, lengths = [], [], []
    for i, completion in enumerate(completions):
        prompt = PROMPT[i:]
        ids += [*prompt, *completion.token_ids]
        mask += [False] * len(prompt) + [True] * len(completion.token_ids)
        lengths.append(len(prompt) + len(completion.token_ids))
    return TrainBatch(
        token_ids=torch.tensor(ids),
        lengths=torch.tensor(lengths),
        loss_mask=torch.tensor(mask),
        generation_logprobs=torch.zeros(len(ids)),
    )


def logprobs_of(completions: list[Completion]) -> torch.Tensor:
    return torch.tensor([logprob for completion in completions for logprob in completion.logprobs])


async def test_logprobs_are_those_of_hugging_face_and_of_the_trainer(engine, worker, model) -> None:
    completions = await sample(engine)
    batch, ours = as_batch(completions), logprobs_of(completions)
    with torch.no_grad():
        exact, _ = hf_oracle.logprobs_and_entropy(hf_oracle.load(model), batch)
    assert (ours - exact).abs().mean() < NEAR
    assert (ours - worker.logprobs(batch)[batch.loss_mask]).abs().mean() < NEAR
    assert len({completion.token_ids for completion in completions}) == len(completions)


async def test_a_seed_repeats_its_tokens(engine) -> None:
    first, second = await sample(engine), await sample(engine)
    assert [each.token_ids for each in first] == [each.token_ids for each in second]


async def test_an_engine_that_sleeps_gives_its_memory_up_and_wakes_as_it_was(engine) -> None:
    before, held = await sample(engine), torch.cuda.mem_get_info()[0]
    for _ in range(2):
        await engine.sleep()
        freed = torch.cuda.mem_get_info()[0] - held
        assert freed > 0.08 * torch.cuda.get_device_properties(0).total_memory, "keys and values alone are a tenth"
        waiting = asyncio.create_task(engine.generate(PROMPT, SAMPLING, seed=0))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        await engine.wake()
        assert (await waiting).token_ids == before[0].token_ids
        assert [each.token_ids for each in await sample(engine)] == [each.token_ids for each in before]


async def test_a_refit_from_a_file_is_what_is_sampled_from(engine, worker, tmp_path) -> None:
    old = await sample(engine)
    move(worker, seed=1)
    worker.export_refit(str(tmp_path / "refit.safetensors"))
    await engine.load_weights(str(tmp_path / "refit.safetensors"), 1)
    await expect_weights_of(worker, engine, old, version=1)


async def test_a_refit_through_the_memory_of_the_gpu_is_what_is_sampled_from(engine, worker) -> None:
    address = TransferAddress(host="127.0.0.1", port=free_port(), num_members=2, shares_devices=True)
    await asyncio.gather(asyncio.to_thread(worker.join_refit, address), engine.join_refit(address, 1))
    for version in (2, 3):
        old = await sample(engine)
        move(worker, seed=version)
        send = asyncio.to_thread(worker.send_refit, "bfloat16", 300_000)
        await asyncio.gather(send, engine.receive_weights(version))
        await expect_weights_of(worker, engine, old, version=version)


def move(worker: MegatronWorker, *, seed: int) -> None:
    """Make updates until the weights are far from those that they were."""
    for _ in range(12):
        worker.train_step(make_batch([60, 90, 40], vocab_size=4096, seed=seed), TinyLoss())


async def expect_weights_of(worker: MegatronWorker, engine: VllmEngine, old: list[Completion], *, version: int) -> None:
    """The engine samples from the worker's weights, which are far from those that ``old`` came from."""
    completions = await sample(engine)
    batch = as_batch(completions)
    assert {completion.weight_version for completion in completions} == {version}
    assert (logprobs_of(completions) - worker.logprobs(batch)[batch.loss_mask]).abs().mean() < NEAR
    before = as_batch(old)
    moved = (logprobs_of(old) - worker.logprobs(before)[before.loss_mask]).abs().mean()
    assert moved > 4 * NEAR, "the update has moved the weights too little to tell old from new"
