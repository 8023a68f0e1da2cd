"""The whole system on a tiny model: two megatron-core ranks, a policy engine and a simulator engine, as Ray actors."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from tests.functional.role_processes import role_processes
from zs_nemo.algorithms.policy_loss import PolicyLoss
from zs_nemo.algorithms.supervised_loss import SupervisedLoss
from zs_nemo.cluster.roles import RoleError
from zs_nemo.cluster.settled_config import settled
from zs_nemo.cluster.system import System
from zs_nemo.config.algorithm import GrpoConfig
from zs_nemo.config.experiment import Accelerator
from zs_nemo.config.policy import OptimConfig, Precision
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.generation import Completion, CompletionPart, GenerationEngine, SamplingParams

PROMPTS = [list(range(100 + 50 * i, 120 + 60 * i)) for i in range(6)]


def tiny_config(model: Path) -> GrpoRecipeConfig:
    cfg = GrpoRecipeConfig(search=SimulatedSearchConfig(model=str(model), kv_cache_gib=0.25))
    cfg.trainer.accelerator = Accelerator.cpu
    cfg.policy.model = str(model)
    cfg.policy.precision = Precision.fp32
    cfg.policy.optim.lr = 1e-3
    cfg.policy.train_mb_tokens = 512
    cfg.generation.kv_cache_gib = 0.25
    cfg.faults.max_engine_restarts = 1
    return settled(cfg)


@pytest.fixture(scope="module")
def system(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    cfg = tiny_config(tiny_model)
    # Over two ranks vLLM has processes of its own, as it has on GPUs.
    cfg.search.tensor_model_parallel_size = 2
    with System.start(cfg, tmp_path_factory.mktemp("run")) as started:
        yield started


def sample(engine: GenerationEngine, max_tokens: int = 12) -> list[Completion]:
    async def all_at_once() -> list[Completion]:
        sampling = SamplingParams(max_tokens=max_tokens)
        return await asyncio.gather(*[engine.generate(ids, sampling, seed) for seed, ids in enumerate(PROMPTS)])

    return asyncio.run(all_at_once())


def to_batch(completions: list[Completion]) -> TrainBatch:
    rows = list(zip(PROMPTS, completions, strict=True))
    mask = [i >= len(prompt) for prompt, completion in rows for i in range(len(prompt) + len(completion.token_ids))]
    logprobs = [value for prompt, completion in rows for value in [0.0] * len(prompt) + list(completion.logprobs)]
    return TrainBatch(
        token_ids=torch.tensor([t for prompt, completion in rows for t in [*prompt, *completion.token_ids]]),
        lengths=torch.tensor([len(prompt) + len(completion.token_ids) for prompt, completion in rows]),
        loss_mask=torch.tensor(mask),
        advantages=torch.ones(len(mask)),
        generation_logprobs=torch.tensor(logprobs),
    )


def test_in_the_first_step_policy_and_reference_agree_and_the_ratio_is_one(system: System) -> None:
    """First in this module: the policy still has the reference's weights."""
    batch = to_batch(sample(system.generation))
    policy, reference = system.policy.logprobs(batch), system.policy.reference_logprobs(batch)
    assert torch.equal(policy, reference)
    loss = PolicyLoss.from_config(GrpoConfig())
    system.policy.reset_optimizer(OptimConfig(lr=0.0), max_steps=1)
    batch = batch.replace(policy_logprobs=policy, reference_logprobs=reference)
    metrics = system.policy.train_step(batch, loss)
    assert (metrics["ratio"], metrics["ratio_max"]) == (1.0, 1.0)
    assert (metrics["kl"], metrics["clip_share"]) == (0.0, 0.0)
    assert metrics["grad_norm"] > 0
    system.policy.reset_optimizer(OptimConfig(lr=1e-3), max_steps=10)


def test_engine_and_policy_agree_before_and_after_an_update_and_a_refit(system: System) -> None:
    batch = to_batch(sample(system.generation))
    torch.testing.assert_close(system.policy.logprobs(batch), batch.generation_logprobs, atol=1e-4, rtol=0)
    frozen = sample(system.simulator) if system.simulator else []

    before = system.policy.train_step(batch, SupervisedLoss())["loss"]
    assert system.policy.train_step(batch, SupervisedLoss())["loss"] < before
    stale = to_batch(sample(system.generation))
    assert (system.policy.logprobs(stale) - stale.generation_logprobs).abs().max() > 1e-2, "the update changed nothing"

    system.refit(version=1)
    fresh = sample(system.generation)
    assert {completion.weight_version for completion in fresh} == {1}
    batch = to_batch(fresh)
    torch.testing.assert_close(system.policy.logprobs(batch), batch.generation_logprobs, atol=1e-4, rtol=0)
    assert system.simulator and sample(system.simulator) == frozen, "the simulator is frozen"


def test_tokens_are_counted_by_role(system: System) -> None:
    before = system.usage()["simulator"].completion_tokens
    assert system.simulator
    sample(system.simulator, max_tokens=5)
    assert system.usage()["simulator"].completion_tokens - before == 5 * len(PROMPTS)


def test_what_an_engine_writes_can_be_read_as_it_comes_and_left_in_the_middle(system: System) -> None:
    engine, sampling = system.generation, SamplingParams(max_tokens=12)

    async def read(limit: int) -> list[CompletionPart]:
        parts = []
        async for part in engine.stream(PROMPTS[0], sampling, 0):
            parts.append(part)
            if len(parts) == limit:
                break
        return parts

    assert len(asyncio.run(read(1))) == 1
    parts = asyncio.run(read(-1))
    whole = asyncio.run(engine.generate(PROMPTS[0], sampling, 0))
    assert parts[-1].completion is not None and parts[-1].completion.token_ids == whole.token_ids
    assert "".join(part.text for part in parts) == whole.text and len(parts) > 2


def test_an_error_in_a_rank_names_the_rank_and_its_log(system: System) -> None:
    with pytest.raises(RoleError, match=r"policy-rank-\d failed in load_checkpoint(?s:.*)log: .*policy-rank-\d\.log"):
        system.policy.load_checkpoint("/nowhere/at/all")


@pytest.mark.faults
def test_a_dead_engine_is_replaced_with_its_weights_and_what_it_was_asked_is_asked_again(system: System) -> None:
    system.refit(version=2)
    undisturbed = sample(system.generation, max_tokens=200)
    (role,) = system.generation.roles
    (actor,) = role_processes(role.log_path)

    async def killed_meanwhile() -> list[Completion]:
        sampling = SamplingParams(max_tokens=200)
        engine = system.generation
        tasks = [asyncio.create_task(engine.generate(ids, sampling, seed)) for seed, ids in enumerate(PROMPTS)]
        await asyncio.sleep(0.05)
        actor.kill()
        return await asyncio.gather(*tasks)

    assert asyncio.run(killed_meanwhile()) == undisturbed
    assert {completion.weight_version for completion in undisturbed} == {2}
    assert system.generation.num_replaced == 1 and system.generation.roles != [role]
    assert role.place is not None
    assert not any(is_alive(pid, began) for pid, began in role.place.processes), "nothing of the dead engine is left"
    (fault,) = system.faults.rows
    assert (fault["kind"], fault["role"]) == ("engine_lost", "policy-engine-0")
    system.refit(version=3)
    assert {completion.weight_version for completion in sample(system.generation)} == {3}


@pytest.mark.faults
def test_an_engine_whose_processes_die_beyond_the_budget_fails_its_requests_with_its_name(system: System) -> None:
    """Last in this module: the simulator is dead afterwards, and the only replacement has been used."""
    assert system.simulator
    role_processes(system.simulator.roles[0].log_path)[1].kill()
    with pytest.raises(RoleError, match=r"simulator-engine-0 failed in generate(?s:.*)faults.max_engine_restarts=1"):
        sample(system.simulator, max_tokens=100)


def is_alive(pid: int, began: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
