"""Memory by role, worked out by hand, and what is done where it does not fit."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes.plan import plan
from zs_nemo.cluster import available_memory
from zs_nemo.cluster.gpu_plan import check_gpus, misfits, overrides_of, plan_gpus, propose_layout
from zs_nemo.cluster.host_plan import host_misfit, host_parts
from zs_nemo.cluster.memory_plan import GIB, parameters_of, plan_memory, stage_layers, stage_parameters
from zs_nemo.cluster.setups import Layout, derive_layout
from zs_nemo.config.algorithm import KlConfig, KlPlace
from zs_nemo.config.critic import CriticConfig
from zs_nemo.config.experiment import Accelerator, ClusterConfig, TrainerConfig
from zs_nemo.config.policy import OptimConfig, PolicyConfig, Precision, Recompute, RecomputeMethod
from zs_nemo.config.recipe import GrpoRecipeConfig, PpoRecipeConfig, RecipeConfig
from zs_nemo.config.search import Bm25SearchConfig, SimulatedSearchConfig
from zs_nemo.weights.families import read_architecture

QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
}
SMALL = QWEN_7B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "tie_word_embeddings": True,
}


def folder(path: Path, config: dict) -> Path:
    """Write a model folder that holds a configuration alone."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def big(tmp_path: Path) -> Path:
    return folder(tmp_path / "big", QWEN_7B)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return folder(tmp_path / "small", SMALL)


def on_gpus(cfg: RecipeConfig, model: Path, devices: int) -> Layout:
    """Return the layout of a run on a node of GPUs, with one policy engine and BM25."""
    cfg.policy.model, cfg.trainer.devices = str(model), devices
    return derive_layout(cfg, use_gpu=True)


def test_the_parts_of_a_rank_are_those_worked_out_by_hand(small: Path):
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy = PolicyConfig(model=str(small), tensor_model_parallel_size=2, train_mb_tokens=100)
    cfg.trainer.devices = 4
    plan = plan_memory(cfg, derive_layout(cfg, use_gpu=False))
    count = parameters_of(read_architecture(small))
    # Embedding, then per layer the projections with their biases, the feed-forward part and two norms, then a norm.
    layer = 64 * 64 * 2 + 64 + 2 * (32 * 64 + 32) + 3 * 64 * 128 + 2 * 64
    assert count == 1000 * 64 + 4 * layer + 64
    for rank in plan.ranks:
        assert rank.parts["weights"] == rank.parts["reference"] == 2 * count / 2
        assert rank.parts["gradients"] == 4 * count / 2
        assert rank.parts["optimizer"] == 12 * count / 2 / 2
        assert rank.parts["activations"] == (30 / 2 + 4) * 4 * 64 * 100 * 2
        assert rank.parts["logits"] == 100 * 500 * (2 + 12)
    assert len(plan.ranks) == 4 and not plan.critic_ranks


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, (30 / 2 + 4) * 4),
        ({"sequence_parallel": True}, 34 / 2 * 4),
        ({"activations_checkpoint_granularity": Recompute.full}, 4 + 30 / 2 + 4),
        ({"activations_checkpoint_granularity": Recompute.full, "sequence_parallel": True}, 4 / 2 + 34 / 2),
    ],
)
def test_tensor_parallelism_cuts_what_norms_keep_along_the_sequence_alone(
    small: Path, settings: dict[str, Any], kept: float
):
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.trainer.devices = 2
    cfg.policy = PolicyConfig(model=str(small), tensor_model_parallel_size=2, train_mb_tokens=100, **settings)
    for rank in plan_memory(cfg, derive_layout(cfg, use_gpu=False)).ranks:
        assert rank.parts["activations"] == kept * 64 * 100 * 2


@pytest.mark.parametrize(
    ("method", "num_layers", "kept"),
    [
        (RecomputeMethod.uniform, 1, 4 + 34),
        (RecomputeMethod.uniform, 3, 2 + 3 * 34),
        (RecomputeMethod.block, 3, 3 + 34),
        (RecomputeMethod.block, 9, 4 + 34),
    ],
)
def test_recomputed_layers_keep_their_inputs(small: Path, method: RecomputeMethod, num_layers: int, kept: int):
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.trainer.devices = 1
    cfg.policy = PolicyConfig(
        model=str(small),
        train_mb_tokens=100,
        activations_checkpoint_granularity=Recompute.full,
        activations_checkpoint_method=method,
        activations_checkpoint_num_layers=num_layers,
    )
    (rank,) = plan_memory(cfg, derive_layout(cfg, use_gpu=False)).ranks
    assert rank.parts["activations"] == kept * 64 * 100 * 2


def test_an_optimizer_in_the_host_s_memory_stands_on_the_gpu_only_where_the_activations_were(small: Path):
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy = PolicyConfig(train_mb_tokens=1, optim=OptimConfig(optimizer_cpu_offload=True))
    layout = on_gpus(cfg, small, 1)
    parts = plan_memory(cfg, layout).ranks[0].parts
    cfg.policy.optim.optimizer_cpu_offload = False
    without = plan_memory(cfg, layout).ranks[0].parts
    assert parts["optimizer"] == without["optimizer"] - parts["activations"] - parts["logits"] > 0
    cfg.policy.optim.optimizer_cpu_offload, cfg.policy.train_mb_tokens = True, 10**6
    assert plan_memory(cfg, layout).ranks[0].parts["optimizer"] == 0


def test_a_critic_s_optimizer_in_the_host_s_memory_finds_the_room_of_activations_and_of_the_policy_s(small: Path):
    def parts(num_ranks: int, *, policy: bool, critic: bool):
        cfg = PpoRecipeConfig(search=Bm25SearchConfig(), critic=CriticConfig(num_ranks=num_ranks))
        cfg.policy = PolicyConfig(train_mb_tokens=1, optim=OptimConfig(optimizer_cpu_offload=policy))
        cfg.critic.optim.optimizer_cpu_offload = critic
        plan = plan_memory(cfg, on_gpus(cfg, small, 1))
        return (plan.critic_ranks or plan.ranks)[0].parts

    resident = parts(0, policy=False, critic=False)
    room = resident["activations"] + resident["logits"]
    critic_optimizer = parts(1, policy=False, critic=False)["optimizer"]
    assert resident["critic"] - parts(0, policy=False, critic=True)["critic"] == pytest.approx(room)
    # The policy's is the larger one, and off the GPU by then.
    assert resident["critic"] - parts(0, policy=True, critic=True)["critic"] == pytest.approx(critic_optimizer)
    own = parts(1, policy=False, critic=True)
    assert own["optimizer"] == pytest.approx(critic_optimizer - own["activations"])


def test_stages_hold_their_layers_and_a_tied_embedding_twice(small: Path):
    model = read_architecture(small)
    settings = PolicyConfig(pipeline_model_parallel_size=2, num_layers_in_first_pipeline_stage=1)
    assert [stage_layers(model, settings, stage) for stage in range(2)] == [1, 3]
    first, last = (stage_parameters(model, settings, stage) for stage in range(2))
    embedding = 1000 * 64
    assert first + last == parameters_of(model) + embedding
    assert last - first == 2 * (parameters_of(model) - embedding - 64) / 4 + 64
    assert stage_parameters(model, settings, 1, is_critic=True) == last - embedding


def test_a_reference_and_a_critic_are_counted_where_they_stand(small: Path):
    def ranks(cfg: RecipeConfig):
        cfg.policy.model, cfg.trainer.devices = str(small), 2
        plan = plan_memory(cfg, derive_layout(cfg, use_gpu=False))
        return plan.ranks[0].parts, plan.critic_ranks

    off = GrpoRecipeConfig(search=Bm25SearchConfig())
    off.algorithm.kl = KlConfig(where=KlPlace.off)
    assert "reference" not in ranks(off)[0]
    shared, own = ranks(PpoRecipeConfig(search=Bm25SearchConfig()))
    assert shared["critic"] == pytest.approx(shared["weights"] + shared["gradients"] + shared["optimizer"])
    assert not own
    alone, own = ranks(PpoRecipeConfig(search=Bm25SearchConfig(), critic=CriticConfig(num_ranks=2)))
    assert "critic" not in alone and len(own) == 2
    assert sum(own[0].parts[name] for name in ("weights", "gradients", "optimizer")) == pytest.approx(shared["critic"])
    assert "logits" not in own[0].parts


def test_seven_billion_parameters_fit_on_eight_gpus_of_80_gib_with_tensor_parallelism_alone(big: Path):
    assert parameters_of(read_architecture(big)) == 7_615_616_512
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy.train_mb_tokens = 4096
    layout = on_gpus(cfg, big, 8)
    problems = misfits(cfg, layout, 8, 80 * GIB)
    assert problems and "GPU 0 would hold policy-rank-0" in problems[0] and "policy-engine-0" in problems[0]
    proposal = propose_layout(cfg, layout, 8, 80 * GIB)
    assert proposal is not None
    # With 2: 3.8e9 parameters * (2 + 2 + 4 + 12 / 4) bytes and 15 GiB of activations beside an engine's 32 GiB.
    assert (proposal.tensor_model_parallel_size, proposal.pipeline_model_parallel_size) == (4, 1)
    assert not misfits(replace(cfg, policy=proposal), layout, 8, 80 * GIB)
    sizes = "policy.tensor_model_parallel_size=4 policy.pipeline_model_parallel_size=1"
    assert overrides_of(cfg.policy, proposal) == sizes
    uneven = replace(
        proposal, pipeline_model_parallel_size=2, num_layers_in_first_pipeline_stage=1, context_parallel_size=2
    )
    more = " policy.num_layers_in_first_pipeline_stage=null policy.context_parallel_size=1"
    assert overrides_of(uneven, proposal) == sizes + more


def test_what_fits_nowhere_has_no_proposal_and_is_refused_before_anything_starts(big: Path):
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    layout = on_gpus(cfg, big, 2)
    assert propose_layout(cfg, layout, 2, 24 * GIB) is None
    with pytest.raises(ValueError, match=r"GPU 0 would hold .* of 24\.0; see what would fit with recipes/plan\.py"):
        check_gpus(cfg, layout, (2, 24 * GIB))


@pytest.mark.parametrize("group", ["policy", "critic", "generation", "search"])
def test_a_cut_that_does_not_divide_the_model_is_refused_by_the_plan_as_by_the_run(big: Path, group: str):
    cfg = PpoRecipeConfig(
        search=SimulatedSearchConfig(model=str(big)),
        policy=PolicyConfig(model=str(big)),
        critic=CriticConfig(num_ranks=3),
        trainer=TrainerConfig(devices=3),
        cluster=ClusterConfig(gpus_per_node=9, gpu_memory_gib=80.0),
    )
    getattr(cfg, group).tensor_model_parallel_size = 3
    with pytest.raises(ValueError, match=rf"{group}\.tensor_model_parallel_size=3 must divide the model's 28"):
        plan(cfg)


def test_an_engine_whose_share_does_not_hold_its_weights_is_named(big: Path):
    cfg = GrpoRecipeConfig(search=SimulatedSearchConfig(model=str(big), gpu_memory_utilization=0.1))
    cfg.policy.tensor_model_parallel_size = 4
    layout = on_gpus(cfg, big, 4)
    problems = misfits(cfg, layout, 8, 80 * GIB)
    assert len(problems) == 1
    assert (
        "simulator-engine-0 needs 16.7 GiB" in problems[0] and "gpu_memory_utilization=0.1 gives it 8.0" in problems[0]
    )


def test_the_plan_of_a_gpu_says_what_its_engines_have_for_keys_and_values(
    big: Path, capsys: pytest.CaptureFixture[str]
):
    cfg = GrpoRecipeConfig(
        search=SimulatedSearchConfig(model=str(big), gpu_memory_utilization=0.9),
        policy=PolicyConfig(model=str(big), tensor_model_parallel_size=4),
        trainer=TrainerConfig(devices=4),
        cluster=ClusterConfig(gpus_per_node=8, gpu_memory_gib=80.0),
    )
    cfg.generation.tensor_model_parallel_size = 2
    assert plan(cfg) == 0
    engines = [line for line in capsys.readouterr().out.splitlines() if line.split(" ")[0].endswith("engine-0")]
    # 0.4 and 0.9 of 80 GiB, less half of 14.19 GiB of weights and all of them, the process, and in the policy's engine
    # the embedding's 1.02 GiB one and a half times.
    assert engines == [
        "policy-engine-0        32.00 GiB   weights 7.09, process 2.50, refit 1.52, KV cache 20.88",
        "simulator-engine-0     72.00 GiB   weights 14.19, process 2.50, KV cache 55.31",
    ]


def test_a_plan_that_does_not_fit_into_the_memory_of_a_machine_gives_the_reason_and_the_layout_that_does(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def planned(available: float) -> tuple[int, str]:
        monkeypatch.setattr(available_memory, "available_memory", lambda: available)
        cfg = GrpoRecipeConfig(
            search=Bm25SearchConfig(),
            policy=PolicyConfig(model=str(small)),
            trainer=TrainerConfig(devices=2, accelerator=Accelerator.cpu),
        )
        return plan(cfg), capsys.readouterr().out

    code, said = planned(64 * GIB)
    needed = float(re.search(r"all processes +([0-9.]+) GiB", said)[1])
    assert code == 0 and "does not fit" not in said
    code, said = planned(1 * GIB)
    assert code == 2 and "does not fit: this run needs about" in said and "1.0 GiB are available" in said
    assert "no layout of the policy fits" in said
    # Cut in two the weights of a rank are half as many.
    code, said = planned((needed - 0.01) * GIB)
    assert code == 2
    assert "fits with policy.tensor_model_parallel_size=2 policy.pipeline_model_parallel_size=1" in said


def test_engines_that_sleep_while_ranks_train_take_turns_with_what_the_passes_need(big: Path):
    cfg = GrpoRecipeConfig(search=SimulatedSearchConfig(model=str(big), gpu_memory_utilization=0.3))
    cfg.policy.tensor_model_parallel_size, cfg.generation.gpu_memory_utilization = 8, 0.3
    cfg.policy.train_mb_tokens = 24_000
    layout = on_gpus(cfg, big, 8)
    assert layout.engines[0].sleeps is False
    (rank,) = {process.total for process in plan_memory(cfg, layout).ranks}
    assert "policy-rank-0" in misfits(cfg, layout, 8, 80 * GIB)[0]
    cfg.search.sleep_while_training = cfg.generation.sleep_while_training = True
    layout = derive_layout(cfg, use_gpu=True)
    assert not misfits(cfg, layout, 8, 80 * GIB)
    training = dict(plan_gpus(cfg, layout, 8, 80 * GIB)[0].roles)
    assert training == pytest.approx({"policy-rank-0": rank, "policy-engine-0": 2.5 * GIB})
    cfg.policy.train_mb_tokens = 1000
    episodes = dict(plan_gpus(cfg, layout, 8, 80 * GIB)[0].roles)
    parts = plan_memory(cfg, layout).ranks[0].parts
    between_passes = sum(parts.values()) - parts["activations"] - parts["logits"] - parts["heap"]
    assert episodes == pytest.approx({"policy-rank-0": between_passes, "policy-engine-0": 24 * GIB})


def test_the_machine_of_sleeping_engines_holds_their_weights_and_the_optimizer_that_is_saved(big: Path):
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy.precision = Precision.bf16
    assert list(host_parts(cfg, on_gpus(cfg, big, 8))) == ["a checkpoint"]
    cfg.generation.sleep_while_training, cfg.generation.num_engines = True, 8
    cfg.policy.optim.optimizer_cpu_offload = True
    parts = host_parts(cfg, on_gpus(cfg, big, 8))
    number = 7_615_616_512
    assert parts == {"engines asleep": 8 * 2 * number, "optimizers": 12 * number, "a checkpoint": 12 * number}
    assert host_misfit(parts, sum(parts.values())) is None
    told = host_misfit(parts, 200 * GIB)
    assert told is not None and "engines asleep 113.5 + optimizers 85.1 + a checkpoint 85.1 = 283.7 GiB" in told
    without_sleepers = host_misfit({"a checkpoint": 12.0 * number}, 64 * GIB)
    assert without_sleepers is not None and "sleep" not in without_sleepers and "more memory" in without_sleepers


def test_every_process_has_its_gpu_and_engines_share_only_when_there_are_too_few(big: Path):
    cfg = GrpoRecipeConfig(search=SimulatedSearchConfig(model=str(big), tensor_model_parallel_size=2))
    layout = on_gpus(cfg, big, 4)
    roles = [[role for role, _ in load.roles] for load in plan_gpus(cfg, layout, 8, 80 * GIB)]
    ranks = [[f"policy-rank-{rank}"] for rank in range(4)]
    assert roles == [*ranks, ["policy-engine-0"], ["simulator-engine-0"], ["simulator-engine-0"], []]
    cfg.search.tensor_model_parallel_size = 1
    layout = derive_layout(cfg, use_gpu=True)
    roles = [[role for role, _ in load.roles] for load in plan_gpus(cfg, layout, 4, 80 * GIB)]
    assert [len(each) for each in roles] == [2, 2, 1, 1]
