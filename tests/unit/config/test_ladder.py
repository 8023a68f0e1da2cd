"""The ladder of models, simulators, clusters and published settings: every rung composes and fits by the planner.

The shapes in tests/data/models are those of the published config.json of Llama 3.2 (Meta), Qwen2.5 and Qwen3 (Alibaba),
as Hugging Face serves them; read from the copies in github.com/citsjtu2020/LLM-Prof (sglang/Model_Config.md).
"""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.composed import composed
from zs_nemo.cluster.gpu_plan import misfits, plan_gpus
from zs_nemo.cluster.memory_plan import GIB, parameters_of
from zs_nemo.cluster.setups import derive_layout, num_updates
from zs_nemo.config.collect import CollectRecipeConfig
from zs_nemo.config.evaluate import EvaluateRecipeConfig
from zs_nemo.config.evaluate_simulator import EvaluateSimulatorConfig
from zs_nemo.config.recipe import GrpoRecipeConfig, PpoRecipeConfig, RecipeConfig, ReinforcePpRecipeConfig
from zs_nemo.config.registry import to_dataclass
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.config.sft_simulator import SftSimulatorRecipeConfig
from zs_nemo.config.simulation import GpuModel
from zs_nemo.search.prompt_template import load_template
from zs_nemo.weights.families import read_architecture

ROOT = Path(__file__).parents[3]
SHAPES = ROOT / "tests" / "data" / "models"
KINDS = {"grpo": GrpoRecipeConfig, "reinforce_pp": ReinforcePpRecipeConfig, "ppo": PpoRecipeConfig}
ALL_KINDS = {
    **KINDS,
    "evaluate": EvaluateRecipeConfig,
    "collect_interactions": CollectRecipeConfig,
    "sft_simulator": SftSimulatorRecipeConfig,
    "evaluate_simulator": EvaluateSimulatorConfig,
}
NODES = {"3b": [1, 2, 4, 8, 16], "7b": [1, 2, 4, 8, 16], "14b": [2, 4, 8, 16]}
"""On how many nodes of eight GPUs with 80 GB the published settings of a size fit."""
POLICIES = {
    "llama3_2_3b": "3b",
    "llama3_2_3b_instruct": "3b",
    "qwen2_5_3b": "3b",
    "qwen2_5_3b_instruct": "3b",
    "qwen2_5_7b": "7b",
    "qwen2_5_7b_instruct": "7b",
    "qwen3_8b": "7b",
    "qwen2_5_14b": "14b",
    "qwen2_5_14b_instruct": "14b",
    "qwen3_14b": "14b",
}
"""Policies by the experiment of their size."""
_TEMPLATES = {"simulated": "open", **{f"finetuned_{size}": "mine.j2" for size in ("3b", "7b", "14b")}}
"""Wordings of simulators that cannot do without one in a published experiment."""
SIMULATORS = [f"{kind}_{size}" for kind in ("prompted", "finetuned") for size in ("3b", "7b", "14b")]


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory):
    """A folder with all models by name. What is tuned has the shape of what it was tuned from."""
    folder = tmp_path_factory.mktemp("models")
    for shape in SHAPES.iterdir():
        for name in (shape.name, f"{shape.name}-Instruct"):
            (folder / name).symlink_to(shape)
    for size in ("3B", "7B", "14B"):
        (folder / f"Simulation_LLM_google_{size}").symlink_to(SHAPES / f"Qwen2.5-{size}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZS_NEMO_MODELS", str(folder))
        yield folder


def load(recipe: str, *overrides: str) -> RecipeConfig:
    return to_dataclass(composed(recipe, *overrides), ALL_KINDS[recipe])


def problems(recipe: str, *overrides: str) -> list[str]:
    """Return why a run cannot be placed, by the planner and by the placement."""
    cfg = load(recipe, *overrides)
    layout = derive_layout(cfg, use_gpu=True)
    num_gpus = cfg.cluster.gpus_per_node * cfg.trainer.num_nodes
    return misfits(cfg, layout, num_gpus, cfg.cluster.gpu_memory_gib * GIB)


@pytest.mark.parametrize("recipe", KINDS)
def test_the_quickstart_fits_on_one_gpu_of_40_gb(recipe: str):
    one = ("cluster=local_gpu", "policy.precision=bf16", "cluster.gpus_per_node=1")
    assert not problems(recipe, *one, "cluster.gpu_memory_gib=39")
    assert problems(recipe, *one, "cluster.gpu_memory_gib=12")


def test_on_a_machine_with_more_gpus_the_quickstart_s_policy_still_samples_where_it_trains():
    cfg = load("grpo", "cluster=local_gpu", "policy.precision=bf16")
    loads = plan_gpus(cfg, derive_layout(cfg, use_gpu=True), 3, 39 * GIB)
    roles = [[role for role, _ in each.roles] for each in loads]
    assert roles == [["policy-rank-0", "policy-engine-0"], ["simulator-engine-0"], []]


@pytest.mark.parametrize("recipe", KINDS)
def test_a_published_experiment_trains_on_as_many_documents_a_search_as_it_is_judged_on(recipe: str):
    for search in ("simulated", "simulated_endpoint", "bm25", "retriever", "web", *SIMULATORS):
        template = [f"search.template={_TEMPLATES[search]}"] if search in _TEMPLATES else []
        cfg = load(recipe, f"experiment=zerosearch_{recipe}_7b", f"search={search}", *template)
        assert (cfg.search.num_documents, cfg.evaluation.num_documents) == (5, 5), search


@pytest.mark.parametrize("size", NODES)
@pytest.mark.parametrize("recipe", KINDS)
def test_the_published_settings_fit_on_every_cluster_that_is_named_for_their_size(recipe: str, size: str):
    for nodes in NODES[size]:
        chosen = (f"experiment=zerosearch_{recipe}_{size}", f"cluster=a100_{nodes}x8")
        assert problems(recipe, *chosen) == [], nodes


def test_nodes_of_h100_are_laid_out_as_those_of_a100_and_have_the_gpus_that_their_name_says():
    for nodes in NODES["7b"]:
        a100, h100 = (
            load("grpo", "experiment=zerosearch_grpo_7b", f"cluster={gpu}_{nodes}x8") for gpu in ("a100", "h100")
        )
        assert (a100.simulation.gpu, h100.simulation.gpu) == (GpuModel.a100, GpuModel.h100)
        assert replace(h100, simulation=a100.simulation) == a100
        assert (a100.trainer.num_nodes, a100.cluster.gpus_per_node) == (nodes, 8)


def test_the_published_settings_of_14b_need_more_than_one_node():
    for recipe in ("grpo", "reinforce_pp"):
        assert problems(recipe, f"experiment=zerosearch_{recipe}_14b", "cluster=a100_1x8")
    with pytest.raises(ValueError, match=r"trainer\.devices = 4 must be a multiple of"):
        load("ppo", "experiment=zerosearch_ppo_14b", "cluster=a100_1x8")


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_fits_into_the_experiment_of_its_size(policy: str):
    for recipe in KINDS:
        assert problems(recipe, f"experiment=zerosearch_{recipe}_{POLICIES[policy]}", f"policy={policy}") == []


@pytest.mark.parametrize("search", [*SIMULATORS, "bm25"])
def test_every_simulator_fits_beside_every_size_of_policy(search: str):
    for size in NODES:
        assert problems("grpo", f"experiment=zerosearch_grpo_{size}", f"search={search}") == []


@pytest.mark.parametrize(("search", "engines"), [("bm25", 16), ("prompted_14b", 8)])
def test_an_evaluation_of_the_largest_policy_fits_alone_and_beside_a_simulator(search: str, engines: int):
    assert problems("evaluate", *evaluation_settings(2, engines), "policy=qwen2_5_14b", f"search={search}") == []


def test_an_evaluation_has_the_published_limits():
    cfg = load("evaluate", *evaluation_settings(1, 8), "policy=qwen2_5_7b")
    rollout = cfg.rollout
    assert (rollout.max_turns - 1, rollout.max_turn_tokens, rollout.max_document_tokens) == (5, 500, 2048)
    assert (rollout.max_sequence_tokens, cfg.search.num_documents, rollout.max_concurrency) == (4596, 5, 1024)


@pytest.mark.parametrize("size", NODES)
def test_a_simulator_of_every_size_is_tuned_by_all_gpus_of_every_cluster(size: str):
    for nodes in (1, 2, 4, 8, 16):
        chosen = tuning_settings(size, nodes)
        assert problems("sft_simulator", *chosen) == [], nodes
        layout = derive_layout(load("sft_simulator", *chosen), use_gpu=True)
        assert (layout.num_ranks, layout.engines) == (8 * nodes, ())


@pytest.mark.parametrize("size", NODES)
def test_a_simulator_is_tuned_as_published_with_the_prompts_that_it_is_asked_with_afterwards(size: str):
    cfg = load("sft_simulator", *tuning_settings(size, 1))
    assert cfg.policy.optim.lr == 1e-6 and cfg.policy.model.endswith(f"/Qwen2.5-{size.upper()}-Instruct")
    assert isinstance(cfg.search, SimulatedSearchConfig)
    assert (cfg.search.num_documents, cfg.search.num_words) == (5, 30)
    afterwards = load("grpo", f"experiment=zerosearch_grpo_{size}", f"search=prompted_{size}").search
    assert replace(afterwards, model=cfg.search.model, num_engines=cfg.search.num_engines) == cfg.search
    load_template(cfg.search.template, cfg.search.documents_per_completion)


def test_what_a_simulator_learns_from_is_collected_by_all_gpus_of_a_node():
    assert problems("collect_interactions", "experiment=zerosearch_collect_interactions") == []
    cfg = load("collect_interactions", "experiment=zerosearch_collect_interactions")
    layout = derive_layout(cfg, use_gpu=True)
    assert (layout.num_ranks, len(layout.engines), cfg.search.num_documents) == (0, 8, 5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama-3.2-3B", 3_212_749_824),
        ("Qwen2.5-3B", 3_085_938_688),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Qwen2.5-14B", 14_770_033_664),
        ("Qwen3-8B", 8_190_735_360),
        ("Qwen3-14B", 14_768_307_200),
    ],
)
def test_the_shapes_have_as_many_parameters_as_the_published_models(name: str, parameters: int):
    assert parameters_of(read_architecture(SHAPES / name)) == parameters


@pytest.mark.parametrize(("recipe", "warmup_share"), [("grpo", 0.95), ("reinforce_pp", 0.95), ("ppo", 0.285)])
def test_the_experiments_are_the_published_table(recipe: str, warmup_share: float):
    cfg = load(recipe, f"experiment=zerosearch_{recipe}_7b")
    optim, rollout = cfg.policy.optim, cfg.rollout
    assert (optim.lr, cfg.trainer.max_steps, cfg.search.num_documents) == (1e-6, 203, 5)
    assert (rollout.num_prompts_per_step, rollout.num_generations_per_prompt, cfg.policy.global_batch_size) == (
        64,
        5,
        256,
    )
    updates_a_step = num_updates(cfg) / 203
    assert optim.sched.warmup_steps == int(warmup_share * 203) * updates_a_step
    # The published turns count searches; a search is only run when a turn is left to read its documents.
    assert (rollout.max_turns - 1, rollout.max_turn_tokens, rollout.max_document_tokens) == (5, 500, 2048)
    assert rollout.max_sequence_tokens == 4096 + 500
    assert (cfg.generation.temperature, cfg.policy.gradient_clip_val) == (1.0, 1.0)
    assert (cfg.algorithm.clip_ratio_low, cfg.algorithm.clip_ratio_high, cfg.algorithm.kl.coef) == (0.2, 0.2, 0.001)
    assert (cfg.curriculum.start_noise, cfg.curriculum.end_noise, cfg.curriculum.base) == (0.0, 0.5, 4.0)
    assert isinstance(cfg.search, SimulatedSearchConfig) and cfg.search.temperature == 0.8
    if isinstance(cfg, PpoRecipeConfig):
        assert (cfg.critic.optim.lr, cfg.critic.optim.sched.warmup_steps) == (1e-5, int(0.015 * 203) * updates_a_step)
        assert (cfg.algorithm.gamma, cfg.algorithm.gae_lambda) == (1.0, 1.0)
    if isinstance(cfg, GrpoRecipeConfig):
        assert cfg.algorithm.normalize_std


def test_an_experiment_of_another_algorithm_is_refused():
    with pytest.raises(Exception, match="'value_clip_range' not in 'GrpoConfig'"):
        load("grpo", "experiment=zerosearch_ppo_7b")


def test_a_model_that_is_not_there_is_refused_with_its_setting_and_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ZS_NEMO_MODELS")
    cfg = load("grpo", "experiment=zerosearch_grpo_7b")
    with pytest.raises(ValueError, match=r"policy\.model='models/Qwen2\.5-7B'.* set ZS_NEMO_MODELS to the folder"):
        derive_layout(cfg, use_gpu=True)


def evaluation_settings(nodes: int, engines: int, gpu: str = "a100") -> list[str]:
    """Return what launch/slurm/evaluate.sbatch sets; tests/unit/test_slurm_scripts.py sees it do so."""
    return [
        "experiment=zerosearch_evaluation",
        f"cluster={gpu}_{nodes}x8",
        f"generation.num_engines={engines}",
        f"rollout.max_concurrency={128 * engines}",
    ]


def tuning_settings(size: str, nodes: int, gpu: str = "a100") -> list[str]:
    """Return what launch/slurm/sft_simulator.sbatch sets; tests/unit/test_slurm_scripts.py sees it do so."""
    return [f"experiment=zerosearch_sft_simulator_{size}", f"cluster={gpu}_{nodes}x8"]


def commands_of(text: str) -> list[list[str]]:
    """Return the words of every sbatch, chain, doctor or NeMo-Run command in a text; continued lines are joined."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    commands = [line.strip().removeprefix("#").strip() for line in lines]
    return [
        shlex.split(command, comments=True)
        for command in commands
        if re.match(
            r"(\w+=\S+ )*(sbatch|launch/slurm/chain\.sh|launch/doctor\.sh|\S+ launch/nemo_run/submit\.py) .*\w", command
        )
    ]


def overrides_of(command: list[str]) -> tuple[str, list[str]]:
    """Return recipe and overrides of one command, as its script completes them."""
    variables = dict(word.split("=", 1) for word in command if re.match(r"[A-Z_]+=", word))
    script = next(index for index, word in enumerate(command) if word.endswith((".sbatch", "doctor.sh", "submit.py")))
    nodes = next((word.split("=")[1] for word in command if word.startswith("--nodes=")), None)
    algorithm, size, gpu = (variables.get(*pair) for pair in (("ALGORITHM", "grpo"), ("SIZE", "7b"), ("GPU", "a100")))
    rest = command[script + 1 :]
    match Path(command[script]).name:
        case "train_policy.sbatch":
            return algorithm, [f"experiment=zerosearch_{algorithm}_{size}", f"cluster={gpu}_{nodes or 2}x8", *rest]
        case "sft_simulator.sbatch":
            return "sft_simulator", [*tuning_settings(size, int(nodes or 1), gpu), *rest]
        case "evaluate.sbatch":
            return "evaluate", [*evaluation_settings(int(nodes or 1), 8, gpu), *rest]
        case "submit.py":
            recipe = next(index for index, word in enumerate(rest) if word in KINDS)
            return rest[recipe], rest[recipe + 1 :]
        case "recipe.sbatch":
            return rest[0], rest[1:]
        case _:
            recipe = rest[rest.index("--config-name") + 1] if "--config-name" in rest else "grpo"
            return recipe, [word for word in rest if "=" in word]


def test_every_command_for_a_cluster_that_the_docs_name_composes_and_passes_the_planner():
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "launch").rglob("*.s*"),
        ROOT / "launch/nemo_run/submit.py",
    ]
    commands = [command for page in pages for command in commands_of(page.read_text())]
    assert len(commands) >= 5 and any("launch/nemo_run/submit.py" in command for command in commands)
    for command in commands:
        recipe, overrides = overrides_of(command)
        cfg = load(recipe, *overrides)
        assert cfg.trainer.num_nodes >= 1, command
        # What has to be made first is not there to be looked at.
        if recipe in KINDS and cfg.cluster.gpus_per_node and "runs/" not in " ".join(overrides):
            assert problems(recipe, *overrides) == [], command


def test_on_one_node_all_gpus_can_train_generate_and_simulate_in_turn_alone():
    (command,) = (
        command
        for command in commands_of((ROOT / "docs" / "cluster.md").read_text())
        if "generation.sleep_while_training=true" in command
    )
    recipe, overrides = overrides_of(command)
    awake = [word for word in overrides if "sleep_while_training" not in word]
    assert problems(recipe, *overrides) == [] != problems(recipe, *awake)


def test_every_choice_that_the_page_about_clusters_names_in_passing_composes():
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / "cluster.md").read_text(), flags=re.DOTALL)
    choice = r"(?:policy|search|cluster|experiment)=[a-z0-9_]+"
    named = [span.split() for span in re.findall(rf"`({choice}(?: {choice})*)`", text)]
    assert ["policy=llama3_2_3b_instruct", "search=prompted_7b", "cluster=h100_4x8"] in named
    for overrides in named:
        recipe = "evaluate" if "experiment=zerosearch_evaluation" in overrides else "grpo"
        load(recipe, *overrides)


def test_engines_start_at_once_in_the_quickstart_on_a_gpu_and_are_compiled_on_clusters():
    quick = load("grpo", "cluster=local_gpu")
    assert quick.generation.enforce_eager and quick.search.enforce_eager
    for size in NODES:
        for search in (f"prompted_{size}", f"finetuned_{size}"):
            large = load("grpo", f"experiment=zerosearch_grpo_{size}", f"search={search}")
            assert not (large.generation.enforce_eager or large.search.enforce_eager)
