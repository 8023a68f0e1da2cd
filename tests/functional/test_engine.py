"""One real vLLM engine on CPU, held against Hugging Face in float32. The engine is shared: a test that changes its
weights loads those that it wants first."""

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_model import build_tiny_model
from zs_nemo.generation.vllm_engine import EngineSetup, VllmEngine
from zs_nemo.types.generation import Completion, EngineDied, SamplingParams, StopReason
from zs_nemo.weights.transfer import TransferAddress, TransferGroup

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_MODEL_LEN = 320


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two untied models of one shape, and a tied pair."""
    root = tmp_path_factory.mktemp("models")
    return {
        f"{kind}-{seed}": build_tiny_model(root / f"{kind}-{seed}", seed=seed, tie=kind == "tied")
        for kind in ("untied", "tied")
        for seed in (0, 1)
    }


async def start(model: Path) -> VllmEngine:
    return VllmEngine(EngineSetup(model_path=str(model), dtype="float32", max_model_len=MAX_MODEL_LEN, name="test"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models: dict[str, Path]) -> AsyncIterator[VllmEngine]:
    built = await start(models["untied-0"])
    yield built
    await built.shutdown()


def weights(model: Path) -> str:
    return str(model / "model.safetensors")


def hf_logprobs(model: Path, prompt: list[int], completion: Completion, temperature: float = 1.0) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        logits = reference(ids).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]


def assert_matches(model: Path, prompt: list[int], completion: Completion, temperature: float = 1.0) -> None:
    expected = hf_logprobs(model, prompt, completion, temperature)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


PROMPT = list(range(1000, 1060))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_those_of_the_sampled_distribution(
    engine: VllmEngine, models: dict[str, Path], temperature: float
) -> None:
    await engine.load_weights(weights(models["untied-0"]), 0)
    sampling = SamplingParams(max_tokens=32, temperature=temperature)
    completions = await asyncio.gather(*[engine.generate(PROMPT[i:], sampling, seed=i) for i in range(8)])
    for i, completion in enumerate(completions):
        assert len(completion.token_ids) == len(completion.logprobs) == 32
        assert completion.stop_reason is StopReason.length
        assert_matches(models["untied-0"], PROMPT[i:], completion, temperature)
    assert len({completion.token_ids for completion in completions}) == 8


async def test_greedy_takes_the_likeliest_token(engine: VllmEngine, models: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    await engine.load_weights(weights(models["untied-0"]), 0)
    completion = await engine.generate(PROMPT, SamplingParams(max_tokens=12, temperature=0.0), seed=3)
    reference = AutoModelForCausalLM.from_pretrained(models["untied-0"], dtype=torch.float32)
    expected = reference.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert list(completion.token_ids) == expected[0, len(PROMPT) :].tolist()
    assert_matches(models["untied-0"], PROMPT, completion)


async def test_a_seed_repeats_its_tokens_alone_and_among_others(engine: VllmEngine, models: dict[str, Path]) -> None:
    await engine.load_weights(weights(models["untied-0"]), 0)
    sampling = SamplingParams(max_tokens=24)
    alone = await engine.generate(PROMPT, sampling, seed=77)
    others = [engine.generate(PROMPT[: 5 + i], sampling, seed=i) for i in range(24)]
    among, *_ = await asyncio.gather(engine.generate(PROMPT, sampling, seed=77), *others)
    other_seed = await engine.generate(PROMPT, sampling, seed=78)
    assert among.token_ids == alone.token_ids
    torch.testing.assert_close(torch.tensor(among.logprobs), torch.tensor(alone.logprobs), atol=1e-4, rtol=0)
    assert other_seed.token_ids != alone.token_ids


async def test_a_stream_tells_the_completion_part_by_part(engine: VllmEngine, models: dict[str, Path]) -> None:
    await engine.load_weights(weights(models["untied-0"]), 0)
    sampling = SamplingParams(max_tokens=24)
    whole = await engine.generate(PROMPT, sampling, seed=5)
    parts = [part async for part in engine.stream(PROMPT, sampling, seed=5)]
    assert [part.completion is None for part in parts] == [True] * (len(parts) - 1) + [False]
    assert parts[-1].completion.token_ids == whole.token_ids
    assert "".join(part.text for part in parts) == whole.text
    assert sum(bool(part.text) for part in parts) > 8


def write_chain_model(folder: Path, model: Path, chain: list[int]) -> str:
    """Write weights under which every token of the chain is followed by the next one, almost surely."""
    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")) or name == "lm_head.weight":
            tensor.zero_()
    tensors["model.norm.weight"].fill_(1.0)
    embedding = tensors["model.embed_tokens.weight"]
    for token, following in itertools.pairwise(chain):
        # Rows of a random embedding are nearly orthogonal: only the predecessor's own row points this way.
        direction = embedding[token] / embedding[token].norm()
        tensors["lm_head.weight"][following] = 4.0 * direction
    folder.mkdir()
    save_file(tensors, folder / "chain.safetensors")
    return str(folder / "chain.safetensors")


@pytest.mark.parametrize("tag", ["</search>", "</answer>"])
async def test_generation_ends_with_the_token_that_completes_a_stop_string(
    engine: VllmEngine, models: dict[str, Path], tmp_path: Path, tag: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models["untied-0"])
    chain = tokenizer.encode(f" capital of France{tag} and more")
    assert len(set(chain)) == len(chain), "a token that occurs twice would have two successors"
    await engine.load_weights(write_chain_model(tmp_path / "chain", models["untied-0"], chain), 5)
    stopped = await engine.generate(chain[:1], SamplingParams(max_tokens=30, stop=("</search>", "</answer>")), seed=1)
    assert stopped.stop_reason is StopReason.stop_string
    assert stopped.text == f" of France{tag}"
    assert list(stopped.token_ids) == chain[1 : 1 + len(stopped.token_ids)]
    assert tokenizer.decode(stopped.token_ids[:-1]).find(tag) == -1
    assert stopped.weight_version == 5
    longer = await engine.generate(chain[:1], SamplingParams(max_tokens=len(chain) - 1), seed=1)
    assert longer.text.endswith(" and more"), "without stop strings the model goes on"


async def test_the_end_of_text_token_is_part_of_the_output(
    engine: VllmEngine, models: dict[str, Path], tmp_path: Path
) -> None:
    await engine.load_weights(write_chain_model(tmp_path / "chain", models["untied-0"], [500, 501, 502, 2]), 6)
    completion = await engine.generate([500], SamplingParams(max_tokens=30), seed=1)
    assert completion.token_ids == (501, 502, 2)
    assert completion.stop_reason is StopReason.end_of_text
    assert completion.text.endswith("<|im_end|>")


async def assert_files_replace_the_weights(engine: VllmEngine, models: dict[str, Path], kind: str) -> None:
    long_prompt = list(range(2000, 2000 + 260))
    for version, seed in ((10, 0), (11, 1), (12, 0)):
        await engine.load_weights(weights(models[f"{kind}-{seed}"]), version)
        # The same long prompt again: a prefix cache that survived would bring the old weights' keys and values.
        completion = await engine.generate(long_prompt, SamplingParams(max_tokens=16), seed=9)
        assert completion.weight_version == version
        assert_matches(models[f"{kind}-{seed}"], long_prompt, completion)


async def test_after_a_refit_the_logprobs_are_those_of_the_new_weights(
    engine: VllmEngine, models: dict[str, Path]
) -> None:
    await assert_files_replace_the_weights(engine, models, "untied")


async def joined(engine: VllmEngine) -> TransferGroup:
    """Join the engine and a sender of this process into a group; return the sender."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = TransferAddress(host="127.0.0.1", port=probe.getsockname()[1], num_members=2)
    sending = asyncio.to_thread(TransferGroup, address, 0, torch.device("cpu"))
    sender, _ = await asyncio.gather(sending, engine.join_refit(address, 1))
    return sender


async def send(sender: TransferGroup, tensors: dict[str, torch.Tensor]) -> None:
    await asyncio.to_thread(sender.send, iter(tensors.items()), dtype=torch.float32, bucket_bytes=2**22)


async def assert_a_group_replaces_the_weights(engine: VllmEngine, models: dict[str, Path], kind: str) -> None:
    sender, long_prompt = await joined(engine), list(range(2000, 2000 + 260))
    for version, seed in ((13, 1), (14, 0), (15, 1)):
        tensors = load_file(models[f"{kind}-{seed}"] / "model.safetensors")
        await asyncio.gather(send(sender, tensors), engine.receive_weights(version))
        completion = await engine.generate(long_prompt, SamplingParams(max_tokens=16), seed=9)
        assert completion.weight_version == version
        assert_matches(models[f"{kind}-{seed}"], long_prompt, completion)


async def test_weights_that_a_group_sends_replace_the_old_ones(engine: VllmEngine, models: dict[str, Path]) -> None:
    await assert_a_group_replaces_the_weights(engine, models, "untied")


async def test_an_engine_that_was_sent_half_a_model_serves_nothing_until_a_whole_one_comes(
    engine: VllmEngine, models: dict[str, Path]
) -> None:
    sender = await joined(engine)
    tensors = load_file(models["untied-1"] / "model.safetensors")
    whole = dict(tensors)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"the refit does not fit .*model\.layers\.1\.mlp\.up_proj\.weight"):
        await asyncio.gather(send(sender, tensors), engine.receive_weights(16))
    with pytest.raises(RuntimeError, match="weights of version 16 could not be loaded"):
        await engine.generate(PROMPT, SamplingParams(max_tokens=8), seed=1)
    await asyncio.gather(send(sender, whole), engine.receive_weights(17))
    completion = await engine.generate(PROMPT, SamplingParams(max_tokens=8), seed=1)
    assert completion.weight_version == 17
    assert_matches(models["untied-1"], PROMPT, completion)


async def test_no_completion_mixes_weights(engine: VllmEngine, models: dict[str, Path]) -> None:
    await engine.load_weights(weights(models["untied-0"]), 20)
    before = asyncio.gather(*[engine.generate(PROMPT, SamplingParams(max_tokens=150), seed=i) for i in range(4)])
    await asyncio.sleep(0.1)
    update = asyncio.create_task(engine.load_weights(weights(models["untied-1"]), 21))
    await asyncio.sleep(0)
    after = asyncio.gather(*[engine.generate(PROMPT, SamplingParams(max_tokens=8), seed=i) for i in range(4)])
    for completion in await before:
        assert completion.weight_version == 20
        assert_matches(models["untied-0"], PROMPT, completion)
    await update
    for completion in await after:
        assert completion.weight_version == 21
        assert_matches(models["untied-1"], PROMPT, completion)


async def test_a_file_of_another_model_is_refused_and_nothing_changes(
    engine: VllmEngine, models: dict[str, Path], tmp_path: Path
) -> None:
    await engine.load_weights(weights(models["untied-0"]), 30)
    tensors = load_file(models["untied-1"] / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "torn.safetensors")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        await engine.load_weights(str(tmp_path / "torn.safetensors"), 31)
    completion = await engine.generate(PROMPT, SamplingParams(max_tokens=8), seed=1)
    assert completion.weight_version == 30
    assert_matches(models["untied-0"], PROMPT, completion)


async def test_a_cancelled_request_holds_up_no_refit(engine: VllmEngine, models: dict[str, Path]) -> None:
    request = asyncio.create_task(engine.generate(PROMPT, SamplingParams(max_tokens=250), seed=1))
    await asyncio.sleep(0.1)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await asyncio.wait_for(engine.load_weights(weights(models["untied-0"]), 40), timeout=10)
    assert engine.weight_version == 40


async def test_a_request_that_cannot_fit_names_the_limit(engine: VllmEngine) -> None:
    with pytest.raises(ValueError, match=f"max_model_len={MAX_MODEL_LEN}"):
        await engine.generate(PROMPT, replace(SamplingParams(max_tokens=1), max_tokens=MAX_MODEL_LEN), seed=1)
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        await engine.generate([], SamplingParams(max_tokens=1), seed=1)


async def test_the_number_of_threads_can_be_changed_between_requests(
    engine: VllmEngine, models: dict[str, Path]
) -> None:
    await engine.load_weights(weights(models["untied-0"]), 0)
    sampling = SamplingParams(max_tokens=16)
    before = await engine.generate(PROMPT, sampling, seed=5)
    cores = len(os.sched_getaffinity(0))
    for asked, got in ((2, min(2, cores)), (10**6, cores), (1, 1)):
        assert await engine.set_threads(asked) == [got]
        completion = await engine.generate(PROMPT, sampling, seed=5)
        assert completion.token_ids == before.token_ids
        assert_matches(models["untied-0"], PROMPT, completion)


async def test_an_engine_that_gives_memory_back_goes_on_as_before(engine: VllmEngine, models: dict[str, Path]) -> None:
    await engine.load_weights(weights(models["untied-0"]), 0)
    sampling = SamplingParams(max_tokens=16)
    many = [engine.generate([100 + i, *PROMPT], sampling, seed=i) for i in range(48)]
    before = await asyncio.gather(*many)
    held = psutil.Process().memory_info().rss
    await engine.release_memory()
    assert psutil.Process().memory_info().rss < held - 20 * 2**20
    after = await engine.generate([100, *PROMPT], sampling, seed=0)
    assert after.token_ids == before[0].token_ids


async def test_the_prefix_cache_finds_a_prompt_that_is_shorter_than_a_hundred_tokens(
    engine: VllmEngine, models: dict[str, Path]
) -> None:
    """Prompts and turns are that short: with vLLM's own block size on CPU nothing would ever be reused."""
    await engine.load_weights(weights(models["untied-0"]), 0)
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.inputs import tokens_input

    cached = []
    for name in ("first", "again"):
        params = VllmSamplingParams(max_tokens=1)
        outputs = [output async for output in engine._llm.generate(tokens_input(list(PROMPT)), params, name)]
        cached.append(outputs[-1].num_cached_tokens)
    assert len(PROMPT) == 60
    assert cached == [0, 32]


# The last ones: of two engines in one process, the first that ends takes along what both were built on.


async def test_an_engine_that_fails_says_so_to_every_request_and_serves_nothing_more(models: dict[str, Path]) -> None:
    failing = await start(models["tied-0"])
    request = asyncio.create_task(failing.generate(PROMPT, SamplingParams(max_tokens=250), seed=1))
    await asyncio.sleep(0.1)
    failing._llm._engine.step = None  # What calls it fails.
    with pytest.raises(EngineDied, match="test: vLLM has failed"):
        await request
    one_token = SamplingParams(max_tokens=1)
    for call in (failing.check_alive(), failing.set_threads(1), failing.generate(PROMPT, one_token, seed=1)):
        with pytest.raises(EngineDied):
            await asyncio.wait_for(call, timeout=5)
    await failing.shutdown()


async def test_a_refit_reaches_an_output_layer_that_is_the_embedding(models: dict[str, Path]) -> None:
    tied = await start(models["tied-0"])
    await assert_files_replace_the_weights(tied, models, "tied")
    await assert_a_group_replaces_the_weights(tied, models, "tied")
    await tied.shutdown()
