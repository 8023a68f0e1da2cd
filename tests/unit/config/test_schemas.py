"""Bad settings are refused with the setting, the value and the rule, before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from tests.composed import composed
from zs_nemo.config.collect import CollectRecipeConfig
from zs_nemo.config.endpoints import version_url
from zs_nemo.config.evaluate import EvaluateRecipeConfig
from zs_nemo.config.policy import Recompute, RecomputeMethod
from zs_nemo.config.recipe import GrpoRecipeConfig, PpoRecipeConfig, ReinforcePpRecipeConfig
from zs_nemo.config.registry import to_dataclass
from zs_nemo.config.rollout import CoinScope, CurriculumConfig, CurriculumName, RolloutConfig
from zs_nemo.config.search import Bm25SearchConfig, SimulatedSearchConfig
from zs_nemo.observability.config_file import changed_settings, to_yaml

CONFIGS = str(Path(__file__).parents[3] / "configs")


KINDS = {"grpo": GrpoRecipeConfig, "reinforce_pp": ReinforcePpRecipeConfig, "ppo": PpoRecipeConfig}


def load(*overrides: str, recipe: str = "grpo"):
    """Compose a recipe's configuration."""
    return to_dataclass(composed(recipe, *overrides), KINDS[recipe])


def test_the_quickstart_follows_the_papers_curriculum_and_kl_apart_from_the_noise_at_the_end():
    cfg, published = load(), CurriculumConfig()
    assert isinstance(cfg.search, SimulatedSearchConfig)
    assert (published.start_noise, published.end_noise, published.base) == (0.0, 0.5, 4.0)
    assert cfg.curriculum == replace(published, end_noise=0.25)
    assert (cfg.algorithm.kl.coef, cfg.algorithm.clip_ratio_low) == (0.001, 0.2)


def test_a_policy_that_is_cut_for_training_can_be_asked_on_a_workstation():
    cut = ("policy.tensor_model_parallel_size=4", "trainer.devices=2")
    asked = to_dataclass(composed("evaluate", *cut), EvaluateRecipeConfig)
    assert asked.policy.tensor_model_parallel_size == 4
    with pytest.raises(ValueError, match=r"trainer\.num_nodes \* trainer\.devices = 2 must be a multiple"):
        load(*cut)


def test_the_real_engine_is_one_override_away():
    assert isinstance(load("search=bm25").search, Bm25SearchConfig)


@pytest.mark.parametrize(
    "override",
    ["trainer.max_step=3", "search.temprature=1", "policy.optim.learning_rate=1", "algorithm.gamma=1", "nonsense=1"],
)
def test_an_unknown_key_is_refused_with_its_name(override):
    with pytest.raises(ConfigCompositionException) as caught:
        load(override)
    assert override.split("=")[0].split(".")[-1] in str(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.num_generations_per_prompt=1", r"rollout\.num_generations_per_prompt=1: GRPO compares.*2 or more"),
        ("seed=-1", r"seed=-1 must lie in \[0, 2\*\*32\)"),
        ("seed=4294967296", r"seed=4294967296 must lie in"),
        ("algorithm.kl.where=reward", r"algorithm\.kl\.where=reward.*set it to loss"),
        ("algorithm.kl.estimator=k1", r"algorithm\.kl\.estimator=k1.*set the estimator to k2 or k3"),
        ("algorithm.clip_ratio_low=1", r"algorithm\.clip_ratio_low=1"),
        ("generation.tensor_model_parallel_size=0", r"generation\.tensor_model_parallel_size=0 must be at least 1"),
        ("generation.gpu_memory_utilization=1.5", r"generation\.gpu_memory_utilization=1\.5 is a share of a GPU"),
        ("generation.temperature=nan", r"generation\.temperature=nan must be positive"),
        ("search.num_engines=0", r"search\.num_engines=0 must be at least 1"),
        ("search.max_num_seqs=0", r"search\.max_num_seqs=0 must be at least 1"),
        ("search.kv_cache_gib=-1", r"search\.kv_cache_gib=-1\.0 must be positive"),
        ("search.temperature=-1", r"search\.temperature=-1\.0 must be 0 \(greedy\) or positive"),
        ("search.max_tokens=600", r"search\.max_tokens=600 must be smaller than search\.max_sequence_tokens=512"),
        ("rollout.search_deadline_s=0", r"rollout\.search_deadline_s=0 must be positive"),
        ("policy.optim.lr=nan", r"^policy\.optim\.lr=nan must be 0"),
        ("policy.optim.weight_decay=-1", r"optim\.weight_decay=-1\.0"),
        ("policy.optim.eps=0", r"optim\.eps=0\.0 must be positive"),
        ("cluster.startup_timeout_s=0", r"cluster\.startup_timeout_s=0 must be positive"),
        ("algorithm.entropy_coef=-1", r"algorithm\.entropy_coef=-1"),
        ("algorithm.importance.cap=0.5", r"algorithm\.importance\.cap=0\.5"),
        ("algorithm.loss_tokens_per_sequence=0", r"algorithm\.loss_tokens_per_sequence=0"),
        ("algorithm.max_resampling_rounds=0", r"algorithm\.max_resampling_rounds=0.*zero_variance=drop"),
        ("reward.f1=0", r"rewards nothing; set one, such as reward\.f1=1"),
        ("reward.exact_match=nan", r"reward\.exact_match=nan"),
        ("curriculum.end_noise=1.5", r"curriculum\.end_noise=1\.5 .*\[0, 1\]"),
        ("curriculum.base=0", r"curriculum\.base=0"),
        ("curriculum.base=inf", r"curriculum\.base=inf must be positive and finite"),
        ("curriculum.constant_noise=-0.1", r"curriculum\.constant_noise=-0\.1 .*\[0, 1\]"),
        ("curriculum.stepwise.levels=[0.1]", r"stepwise\.levels=\[0\.1\] must be of the same length.*its level"),
        ("curriculum.stepwise.fractions=[0.1,0.5]", r"stepwise\.fractions=\[0\.1, 0\.5\] must begin with 0.*put a 0"),
        ("curriculum.stepwise.fractions=[0,0]", r"stepwise\.fractions=\[0\.0, 0\.0\] must ascend"),
        ("curriculum.stepwise.fractions=[0,12]", r"stepwise\.fractions=\[0\.0, 12\.0\] must .*below 1.*write i/m"),
        ("curriculum.stepwise.levels=[0,50]", r"stepwise\.levels=\[0\.0, 50\.0\].*\[0, 1\], not 50"),
        ("curriculum.adaptive.target_reward=nan", r"adaptive\.target_reward=nan must be a number"),
        ("curriculum.adaptive.step_size=0", r"adaptive\.step_size=0\.0 .*\(0, 1\].*curriculum\.name=constant"),
        ("curriculum.adaptive.sensitivity=-2", r"adaptive\.sensitivity=-2\.0 must be positive"),
        ("curriculum.adaptive.smoothing=1", r"adaptive\.smoothing=1\.0 must lie in \[0, 1\)"),
        (
            "cost.usd_per_gpu_hour=-1",
            r"cost\.usd_per_gpu_hour=-1\.0 is a price and must be 0 \(not known\)",
        ),
        ("cost.usd_per_1000_searches=nan", r"cost\.usd_per_1000_searches=nan"),
        ("generation.temperature=0", r"generation\.temperature=0.*evaluation\.temperatures"),
        ("policy.tensor_model_parallel_size=3", r"must be a multiple of .*= 3; change trainer\.devices"),
        ("algorithm.kl.coef=-1", r"algorithm\.kl\.coef=-1"),
        ("rollout.max_turn_tokens=900", r"rollout\.max_sequence_tokens=768"),
        ("rollout.max_staleness=-1", r"rollout\.max_staleness=-1 must be 0"),
        (
            "rollout.max_staleness=1",
            r"max_staleness=1 trains on tokens that older .*importance\.level=off .*; set algorithm\.importance",
        ),
        ("search.num_documents=0", r"search\.num_documents=0"),
        ("exp_manager.name=''", r"exp_manager\.name is empty"),
        ("evaluation.split=train", r"evaluation\.split='train'"),
        ("evaluation.num_documents=0", r"evaluation\.num_documents=0 must be at least 1"),
        ("evaluation.bootstrap_samples=0", r"evaluation\.bootstrap_samples=0 must be at least 1"),
        ("evaluation.temperatures=[0,-1]", r"evaluation\.temperatures=\[0\.0, -1\.0\] must be finite and not neg"),
        ("evaluation.temperatures=[nan]", r"evaluation\.temperatures=\[nan\] must be finite"),
        ("evaluation.temperatures=[1,1.0]", r"evaluation\.temperatures=\[1\.0, 1\.0\] names one twice"),
        ("cluster.master_port=80", r"cluster\.master_port=80"),
        ("policy.optim.betas=[0.9]", r"optim\.betas=\[0\.9\]"),
        ("policy.optim.sched.warmup_steps=-1", r"optim\.sched\.warmup_steps=-1 must be 0"),
        ("policy.optim.sched.warmup_ratio=0.1", r"ratio=0\.1 and policy\.optim\.sched\.warmup_steps=4 both .*s=0"),
        ("policy.optim.sched.warmup_ratio=1.5", r"optim\.sched\.warmup_ratio=1\.5 must lie in \[0, 1\]"),
        ("policy.optim.sched.constant_steps=-1", r"optim\.sched\.constant_steps=-1 must be 0"),
        (
            "policy.optim.sched={name:InverseSquareRootAnnealing,constant_steps:2}",
            r"=2 belongs to policy\.optim\.sched\.name=CosineAnnealing, not Inv.*, or set .*constant_steps=0",
        ),
        ("policy.optim.sched.min_lr=-1", r"^policy\.optim\.sched\.min_lr=-1\.0 must be 0"),
        ("policy.optim.lr=1e-6", r"\.min_lr=1e-05 must not be above policy\.optim\.lr=1e-06, .*; lower it"),
        ("warm_start.steps=-1", r"warm_start\.steps=-1 must be 0"),
        ("warm_start.global_batch_size=0", r"warm_start\.global_batch_size=0 must be at least 1"),
        ("warm_start.lr=0", r"warm_start\.lr=0\.0 must be a positive number; set warm_start\.steps=0"),
        ("policy.num_layers_in_first_pipeline_stage=2", r"needs policy\.pipeline_model_parallel_size > 1, .*=null"),
        ("policy.num_layers_in_last_pipeline_stage=0", r"num_layers_in_last_pipeline_stage=0 must be at least 1"),
    ],
)
def test_a_bad_value_is_refused_with_its_rule(override, message):
    with pytest.raises(ValueError, match=message):
        load(override)


@pytest.mark.parametrize("recipe", sorted(KINDS))
def test_overlap_is_taken_with_the_correction_for_it(recipe):
    cfg = load("rollout.max_staleness=2", "algorithm.importance.level=sequence", recipe=recipe)
    assert cfg.rollout.max_staleness == 2


def test_a_limit_on_ratios_that_never_move_is_refused():
    limits = ("guards.max_ratio=2", "rollout.num_prompts_per_step=4", "rollout.num_generations_per_prompt=2")
    with pytest.raises(ValueError, match=r"guards\.max_ratio=2 .*global_batch_size=8 makes one .* 8 .* below 8, or"):
        load(*limits, "policy.global_batch_size=8")
    assert load(*limits, "policy.global_batch_size=4").guards.max_ratio == 2.0


@pytest.mark.parametrize("group", ["generation", "search"])
def test_engines_that_work_while_ranks_train_cannot_sleep_then(group):
    overlap = ("rollout.max_staleness=1", "algorithm.importance.level=token")
    with pytest.raises(ValueError, match=rf"{group}\.sleep_while_training=true with rollout\.max_staleness=1, but"):
        load(*overlap, f"{group}.sleep_while_training=true")
    assert load(f"{group}.sleep_while_training=true").engines_that_sleep == [f"{group}.sleep_while_training"]


def test_overlap_is_refused_where_nothing_is_collected_beside_training():
    with pytest.raises(
        ValueError, match=r"rollout\.max_staleness=1 overlaps .* this recipe does not do both; set it to 0"
    ):
        CollectRecipeConfig(search=Bm25SearchConfig(), rollout=RolloutConfig(max_staleness=1))


def test_a_curriculum_is_chosen_by_its_group_and_keeps_the_experiments_end():
    assert load("curriculum=reverse").curriculum == replace(load().curriculum, name=CurriculumName.reverse)
    assert load("curriculum=off").curriculum.constant_noise == 0.0
    assert load("curriculum=constant", "curriculum.constant_noise=0.3", recipe="ppo").curriculum.constant_noise == 0.3
    assert load("curriculum.coin=group", recipe="reinforce_pp").curriculum.coin is CoinScope.group
    for overrides, end in ((), 0.25), (("curriculum.end_noise=0.4",), 0.4):
        assert load("curriculum=stepwise", *overrides).curriculum.stepwise.levels == [0.0, end]


def test_every_curriculum_can_be_chosen_by_its_name():
    files = {path.stem for path in (Path(CONFIGS) / "curriculum").glob("*.yaml")}
    assert files == {name.value for name in CurriculumName} | {"off"}
    for name in files - {"off"}:
        assert load(f"curriculum={name}").curriculum.name.value == name


def test_an_adaptive_curriculum_that_could_not_move_is_refused():
    with pytest.raises(ValueError, match=r"start_noise=0\.3 must be below .*end_noise=0\.25.*raise end_noise"):
        load("curriculum=adaptive", "curriculum.start_noise=0.3")
    with pytest.raises(ValueError, match=r"target_reward=1\.0 must be below 1, the largest reward.*lower it"):
        load("curriculum=adaptive", "curriculum.adaptive.target_reward=1")
    assert load("curriculum=adaptive", "curriculum.adaptive.target_reward=1", "reward.exact_match=1")
    assert load("curriculum=adaptive", "curriculum.adaptive.target_reward=3", "reward.function=my.own.reward")
    assert load("curriculum.adaptive.target_reward=1"), "a rule that is not in use may say anything"


def simulated(*overrides: str) -> SimulatedSearchConfig:
    """Return the settings of a simulator behind an endpoint, changed; composing a whole recipe takes longer."""
    base = OmegaConf.structured(SimulatedSearchConfig(endpoints=["http://host:8000/v1"], served_model="llama"))
    return OmegaConf.to_object(OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides))))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("endpoints=[ftp://host]", r"search\.endpoints: 'ftp://host' must be an address such as http"),
        ("endpoints=[host:8000]", r"search\.endpoints: 'host:8000' must be an address"),
        ("endpoints=['http://host/v1?key=1']", r"search\.endpoints\[0\] must be .*without a user part, a query part"),
        ("endpoints=['http://host:99999']", r"must be an address"),
        ("endpoints=[http://host:1,http://host:1/v1/]", r"names an endpoint twice"),
        ("extra_body={seed: 1, top_k: 5, n: 2}", r"search\.extra_body names seed, which other settings decide"),
        ("served_model=''", r"search\.served_model is empty, but search\.endpoints are given"),
        ("cache_size=10", r"search\.cache_size=10 keeps answers that search\.seed_group=request never asks"),
        ("max_answers=-1", r"search\.max_answers=-1 must be 0 or positive"),
        ("max_redraws=-1", r"search\.max_redraws=-1 must be 0 or positive"),
        ("num_words=0", r"search\.num_words=0 must be at least 1"),
        ("recording.mode=replay", r"search\.recording\.mode=replay needs a file"),
        ("pool.max_concurrency=0", r"search\.pool\.max_concurrency=0 must be at least 1"),
        ("pool.open_s=0", r"search\.pool\.open_s=0\.0 must be more than 0"),
        ("pool.health_interval_s=-1", r"search\.pool\.health_interval_s=-1\.0 must be 0"),
        ("pool.hedge_quantile=1", r"search\.pool\.hedge_quantile=1\.0 must be in \[0, 1\)"),
        ("pool.request_timeout_s=50", r"request_timeout_s=50 must not be more than .*deadline_s=45"),
    ],
)
def test_a_bad_setting_of_endpoints_is_refused_with_its_rule(override, message):
    with pytest.raises(ValueError, match=message):
        simulated(override)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("http://host:8000/v1/", "http://host:8000/v1"),
        ("https://host/v1beta/openai", "https://host/v1beta/openai"),
        ("https://host/paas/v4/", "https://host/paas/v4"),
    ],
)
def test_an_endpoint_with_a_path_of_its_own_keeps_it(address, url):
    assert version_url(address) == url


def test_fields_for_endpoints_are_refused_without_any():
    with pytest.raises(ValueError, match=r"search\.extra_body=.* is sent to search\.endpoints, and none are given"):
        simulated("endpoints=[]", "extra_body={top_k: 5}")


def test_the_endpoints_have_less_time_than_the_search_that_waits_for_them():
    told = r"search\.pool\.deadline_s=45 must be less than rollout\.search_deadline_s=45"
    with pytest.raises(ValueError, match=told):
        load("search=simulated_endpoint", "rollout.search_deadline_s=45")


@pytest.mark.parametrize(
    "override",
    [
        "endpoints=['http://user:hunter2@host']",
        "endpoints=['user:hunter2@host:8000']",
        "endpoints=['http://host/v1?api_key=hunter2']",
        "endpoints=['host/v1#hunter2']",
        "api_key_variable=sk-hunter2",
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_repeated(override):
    with pytest.raises(ValueError, match=r"environment variable") as refused:
        simulated(override)
    assert "hunter2" not in str(refused.value)


def test_engines_are_started_only_where_nobody_else_answers():
    assert not simulated().needs_engines
    assert SimulatedSearchConfig().needs_engines
    recorded = "recording.path=answers.jsonl"
    assert not simulated("endpoints=[]", "recording.mode=replay", recorded).needs_engines
    assert simulated("endpoints=[]", "recording.mode=record_missing", recorded).needs_engines


def test_each_algorithm_has_the_published_place_and_estimator_of_the_kl():
    kl = {recipe: load(recipe=recipe).algorithm.kl for recipe in KINDS}
    published = {"grpo": ("loss", "k3"), "reinforce_pp": ("loss", "k3"), "ppo": ("reward", "k1")}
    assert {name: (each.where.name, each.estimator.name) for name, each in kl.items()} == published
    assert {each.coef for each in kl.values()} == {0.001}


def test_reinforce_pp_and_ppo_need_no_group_unless_asked_to_compare_with_it():
    one = "rollout.num_generations_per_prompt=1"
    for recipe in ("reinforce_pp", "ppo"):
        assert load(one, recipe=recipe).rollout.num_generations_per_prompt == 1
    with pytest.raises(ValueError, match=r"num_generations_per_prompt=1: algorithm\.group_baseline=true"):
        load(one, "algorithm.group_baseline=true", recipe="reinforce_pp")


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("ppo", "algorithm.gae_lambda=1.1", r"algorithm\.gae_lambda=1\.1 must lie between 0 and 1"),
        ("ppo", "algorithm.value_clip_range=-1", r"algorithm\.value_clip_range=-1"),
        ("ppo", "algorithm.kl.coef=0", r"algorithm\.kl\.where=reward with algorithm\.kl\.coef=0"),
        ("ppo", "critic.optim.lr=-1", r"^critic\.optim\.lr=-1\.0 must be 0"),
        ("ppo", "critic.optim.sched.warmup_ratio=2", r"^critic\.optim\.sched\.warmup_ratio=2"),
        ("ppo", "critic.gradient_clip_val=-1", r"critic\.gradient_clip_val=-1"),
        (
            "ppo",
            "algorithm.critic_warmup_steps=22",
            r"^algorithm\.critic_warmup_steps=22 must be below trainer\.max_steps=22",
        ),
        ("ppo", "critic.num_ranks=2 critic.pipeline_model_parallel_size=2", r"^critic\.pipeline.* must be 1 with"),
        (
            "ppo",
            "policy.precision=fp32 policy.stochastic_rounding=false critic.optim.optimizer_cpu_offload=true",
            r"^critic\.optim\.optimizer_cpu_offload=true needs policy\.precision=bf16",
        ),
        (
            "grpo",
            "generation.top_p=0.9 algorithm.importance.level=token",
            r"generation\.top_p=0\.9 must be 1 with algorithm\.importance\.level=token: .*set top_p to 1, or .*off",
        ),
        ("ppo", "critic.num_epochs=0", r"critic\.num_epochs=0 must be at least 1"),
        ("ppo", "critic.global_batch_size=-1", r"critic\.global_batch_size=-1 must be positive, or 0"),
        ("reinforce_pp", "algorithm.gamma=2", r"algorithm\.gamma=2"),
    ],
)
def test_a_bad_value_of_another_algorithm_is_refused_with_its_rule(recipe, override, message):
    with pytest.raises(ValueError, match=message):
        load(*override.split(), recipe=recipe)


def test_a_key_of_another_algorithm_is_refused():
    with pytest.raises(ConfigCompositionException):
        load("algorithm.normalize_std=false", recipe="ppo")


def test_stages_of_the_pipeline_may_differ_in_their_layers():
    assert load().policy.num_layers_in_first_pipeline_stage is None
    split = ("policy.pipeline_model_parallel_size=2", "policy.num_layers_in_first_pipeline_stage=16")
    policy = load(*split, "policy.stochastic_rounding=false").policy
    assert (policy.num_layers_in_first_pipeline_stage, policy.num_layers_in_last_pipeline_stage) == (16, None)


def test_tensor_parallelism_across_nodes_has_to_be_said():
    wide = ("trainer.num_nodes=2", "trainer.devices=4", "policy.tensor_model_parallel_size=8")
    told = r"tensor_model_parallel_size=8 does not divide trainer\.devices=4.*policy\.tensor_parallel_across_nodes=true"
    with pytest.raises(ValueError, match=told):
        load(*wide)
    assert load(*wide, "policy.tensor_parallel_across_nodes=true")
    with pytest.raises(ValueError, match="does not divide"):
        load("trainer.num_nodes=2", "trainer.devices=6", "policy.tensor_model_parallel_size=4")
    assert load("trainer.num_nodes=2", "trainer.devices=8", "policy.tensor_model_parallel_size=4")


def test_what_is_recomputed_or_kept_in_the_host_s_memory_is_set_by_nemo_s_names():
    names = ("granularity=full", "method=block", "num_layers=4")
    policy = load(*(f"policy.activations_checkpoint_{name}" for name in names)).policy
    assert policy.activations_checkpoint_granularity is Recompute.full
    assert policy.activations_checkpoint_method is RecomputeMethod.block
    assert load().policy.activations_checkpoint_granularity is None
    with pytest.raises(ValueError, match=r"activations_checkpoint_num_layers=0 must be at least 1"):
        load("policy.activations_checkpoint_num_layers=0")
    with pytest.raises(ValueError, match=r"sequence_parallel=true .*tensor_model_parallel_size=1; raise it"):
        load("policy.sequence_parallel=true")
    offload = "policy.optim.optimizer_cpu_offload=true"
    assert load(offload).policy.optim.optimizer_cpu_offload
    with pytest.raises(ValueError, match=r"optimizer_cpu_offload=true needs policy\.precision=bf16"):
        load(offload, "policy.precision=fp32", "policy.stochastic_rounding=false")


@pytest.mark.parametrize("group", ["generation", "search"])
def test_a_run_goes_on_with_engines_that_sleep_or_no_longer_do(group):
    asleep = load(f"{group}.sleep_while_training=true")
    assert changed_settings(to_yaml(load()), asleep) == []
    # So does one from before there was such a setting.
    assert changed_settings(to_yaml(asleep).replace("  sleep_while_training: true\n", ""), asleep) == []
