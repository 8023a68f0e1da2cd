"""What can be known to go wrong before anything expensive starts: ``ValueError`` naming setting, rule and remedy."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zs_nemo.cluster.available_memory import available_memory
from zs_nemo.cluster.gpu_plan import check_gpus, local_gpus
from zs_nemo.cluster.host_plan import host_misfit, host_parts
from zs_nemo.cluster.memory_plan import GIB, MemoryPlan, checkpoint_bytes, engine_weight_bytes, plan_memory
from zs_nemo.cluster.rendezvous import usable_port
from zs_nemo.cluster.setups import Layout, critic_settings, num_critic_updates, num_updates
from zs_nemo.config.collect import CollectConfig, JudgeName, LlmJudgeConfig
from zs_nemo.config.endpoints import RecordingMode
from zs_nemo.config.experiment import ExpManagerConfig
from zs_nemo.config.policy import PolicyConfig
from zs_nemo.config.recipe import PpoRecipeConfig, RecipeConfig
from zs_nemo.config.rollout import RefitTransport, RolloutConfig
from zs_nemo.config.search import DocumentsPerCompletion, SimulatedSearchConfig, settings_stand_at
from zs_nemo.search.build import completion_form, simulator_sampling
from zs_nemo.search.endpoint_trial import Trial, check_served
from zs_nemo.search.http_client import secret_from
from zs_nemo.search.judges import JUDGE_SAMPLING
from zs_nemo.search.prompt_template import load_template
from zs_nemo.search.recording import read_answers
from zs_nemo.training.schedule import check_schedule
from zs_nemo.types.generation import SamplingParams
from zs_nemo.weights.config_json import ConfigJson
from zs_nemo.weights.families import read_architecture
from zs_nemo.weights.hf_folder import HfTensors

_LOGGER = logging.getLogger(__name__)
_SHM = Path("/dev/shm")
_OBJECT_STORE_BYTES = 512 * 2**20
_CROWDED = 2
"""Of so many requests for each that is taken at once most wait, even while many trajectories do not search."""
MEMORY_REMEDY = (
    "lower policy.train_mb_tokens, generation.kv_cache_gib, search.kv_cache_gib or trainer.devices, choose a smaller "
    "model, free memory, or raise the limit of the container or the job (sbatch --mem)"
)
"""For a run that does not fit into a machine without a GPU."""


def check(cfg: RecipeConfig, layout: Layout) -> None:
    """Check the trained models, layouts and, for a run on this machine, its port, memory and shared memory."""
    check_cuts(cfg, layout)
    check_sleep(cfg, layout)
    if layout.num_ranks:
        if cfg.trainer.max_steps:
            check_schedules(cfg)
        read_architecture(layout.policy_folder).check_tensors(HfTensors(layout.policy_folder))
    if isinstance(cfg.search, SimulatedSearchConfig) and cfg.has_engines:
        check_simulator(cfg.search)
        warn_of_waiting(cfg.rollout, cfg.search)
    if layout.num_ranks:
        warn_of_little_disk(cfg.exp_manager, checkpoint_bytes(cfg, layout))
    if cfg.cluster.ray_address:
        return
    check_one_machine(cfg)
    check_refit_transport(cfg, layout)
    usable_port("127.0.0.1", cfg.cluster.master_port)
    refit_bytes = engine_weight_bytes(layout.policy_engines[0]) if layout.num_ranks and layout.policy_engines else 0
    check_shared_memory(refit_bytes, shutil.disk_usage(_SHM).free)
    if layout.use_gpu:
        gpus = local_gpus()
        check_planned_gpus(cfg, gpus[0])
        check_gpus(cfg, layout, gpus)
        if problem := host_misfit(host_parts(cfg, layout), available_memory()):
            # An estimate: what it costs to be wrong is a process that the system ends, which restarts.
            _LOGGER.warning("%s", problem)
    else:
        check_memory(cfg, layout, available_memory())
        warn_of_too_few_cores(cfg, len(os.sched_getaffinity(0)))


def check_schedules(cfg: RecipeConfig) -> None:
    """Raise unless the learning rates can be what their schedules say, over the updates that the run makes."""
    check_schedule(cfg.policy.optim.sched, max_steps=num_updates(cfg), group="policy")
    if isinstance(cfg, PpoRecipeConfig):
        check_schedule(cfg.critic.optim.sched, max_steps=num_critic_updates(cfg), group="critic")


def check_cuts(cfg: RecipeConfig, layout: Layout) -> None:
    """Raise unless every model can be cut over its ranks or engines as configured. Needs its ``config.json`` alone."""
    if layout.num_ranks:
        check_cut(cfg.policy, layout.policy_folder)
    critic = critic_settings(cfg)
    if critic is not None and layout.num_critic_ranks:
        check_cut(critic, layout.policy_folder, group="critic")
    if layout.policy_engines:
        path = layout.policy_engines[0].model_path
        check_engine_layout("generation.tensor_model_parallel_size", path, cfg.generation)
    if layout.simulator_engines:
        check_engine_layout("search.tensor_model_parallel_size", layout.simulator_engines[0].model_path, cfg.search)
    check_context_lengths(layout)


def check_context_lengths(layout: Layout) -> None:
    """Raise when engines are to take longer sequences than their model was made for; vLLM would refuse to start.

    A rule that stretches the positions, such as YaRN, may allow more than the model's config.json says.
    """
    engines = {"rollout": layout.policy_engines[:1], "search": layout.simulator_engines[:1]}
    for group, setup in ((group, setup) for group, setups in engines.items() for setup in setups):
        config = ConfigJson.read(Path(setup.model_path))
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        is_stretched = (rope.get("rope_type") or rope.get("type") or "default") not in ("default", "llama3")
        longest: int = config.get("max_position_embeddings", setup.max_model_len)
        if setup.max_model_len > longest and not is_stretched:
            raise ValueError(
                f"{group}.max_sequence_tokens={setup.max_model_len} is more than the {longest} tokens that the model "
                f"takes (max_position_embeddings of {setup.model_path}); set it to {longest} at most, or choose a "
                "model with a longer context"
            )


def check_simulator(search: SimulatedSearchConfig, place: str = "search") -> None:
    """Raise unless the simulator's template and recording can be used, and one of its endpoints, if it has any.

    ``place`` is where its settings stand.
    """
    with settings_stand_at(place):
        load_template(search.template, search.documents_per_completion)
        read_answers(Path(search.recording.path).expanduser(), search.recording.mode)
    if not search.endpoints or search.recording.mode is RecordingMode.replay:
        return
    _check_endpoints(place, search, simulator_sampling(search))


def check_judge(collect: CollectConfig) -> None:
    """Raise unless a language model that is to judge has its key, and one of its endpoints can be used."""
    if collect.judge is JudgeName.llm:
        _check_endpoints("collect.llm", collect.llm, JUDGE_SAMPLING)


def warn_of_waiting(rollout: RolloutConfig, search: SimulatedSearchConfig) -> None:
    """Log a warning when so many trajectories may search at once that most of them wait for the endpoints."""
    is_single = search.documents_per_completion is DocumentsPerCompletion.one
    requests = rollout.max_concurrency * (search.num_documents if is_single else 1)
    room = len(search.endpoints) * search.pool.max_concurrency
    if room and requests > _CROWDED * room:
        _LOGGER.warning(
            "rollout.max_concurrency=%d trajectories may send %d requests at once, but search.endpoints take %d "
            "(%d x search.pool.max_concurrency=%d): the others wait for a turn, within rollout.search_deadline_s=%g; "
            "raise search.pool.max_concurrency to what a server takes, name more endpoints, or raise the deadline",
            rollout.max_concurrency,
            requests,
            room,
            len(search.endpoints),
            search.pool.max_concurrency,
            rollout.search_deadline_s,
        )


def _check_endpoints(group: str, settings: SimulatedSearchConfig | LlmJudgeConfig, sampling: SamplingParams) -> None:
    key = secret_from(settings.api_key_variable, f"{group}.api_key_variable")
    setting = f"{group}.endpoints"
    trial = Trial(form=completion_form(settings), sampling=sampling, timeout_s=settings.pool.request_timeout_s)
    wrong = check_served(settings.endpoints, trial, key, setting=setting)
    for url, error in wrong.items():
        _LOGGER.warning("%s: %s cannot be used now (%s); the others are asked", setting, url, error)


def check_cut(policy: PolicyConfig, folder: Path, *, group: str = "policy") -> None:
    """Raise unless the model can be cut over the ranks; ``group`` is where the settings of the cut stand."""
    read_architecture(folder).check_layout(
        tensor_parallel=policy.tensor_model_parallel_size,
        pipeline_parallel=policy.pipeline_model_parallel_size,
        layers_in_first_stage=policy.num_layers_in_first_pipeline_stage,
        layers_in_last_stage=policy.num_layers_in_last_pipeline_stage,
        group=group,
    )


def check_engine_layout(setting: str, model_path: str, settings: object) -> None:
    """Raise unless vLLM can cut the model's heads over the engine's tensor-parallel ranks."""
    size: int = settings.tensor_model_parallel_size  # type: ignore[attr-defined]
    config = ConfigJson.read(Path(model_path))
    heads: int = config.required("num_attention_heads")
    kv_heads: int = config.get("num_key_value_heads", heads)
    # vLLM repeats key/value heads when there are more ranks than heads.
    if heads % size or (kv_heads % size and size % kv_heads):
        fitting = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
        raise ValueError(
            f"{setting}={size} must divide the model's {heads} attention heads, and divide its {kv_heads} key/value "
            f"heads or be a multiple of them ({model_path}); set it to one of {fitting}"
        )


def check_one_machine(cfg: RecipeConfig) -> None:
    """Raise when more machines are asked for than a Ray of our own can have."""
    if cfg.trainer.num_nodes > 1:
        raise ValueError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}, but cluster.ray_address is empty, which starts Ray on this "
            "machine alone; start a Ray cluster first (launch/slurm) and give its address, or set trainer.num_nodes=1"
        )


def check_allocation(cfg: RecipeConfig, layout: Layout, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise when more machines, GPUs or cores are asked for than the Ray cluster has, by ``ray.nodes()``.

    Ray itself would wait for what never comes.
    """
    alive = [node for node in nodes if node["Alive"]]
    if len(alive) < cfg.trainer.num_nodes:
        raise ValueError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}, but the Ray cluster at {cfg.cluster.ray_address} has "
            f"{len(alive)}; allocate as many (sbatch --nodes={cfg.trainer.num_nodes}), or set "
            f"trainer.num_nodes={len(alive)}"
        )
    if layout.use_gpu:
        check_planned_gpus(cfg, int(sum(node["Resources"].get("GPU", 0.0) for node in alive)))
    num_processes = layout.num_ranks + layout.num_critic_ranks + len(layout.engines)
    cores = sum(node["Resources"].get("CPU", 0.0) for node in alive)
    if cores < num_processes:
        raise ValueError(
            f"{num_processes} processes (ranks and engines) need a core each, but {cores:g} are allocated on "
            f"{len(alive)} nodes; allocate more (sbatch --cpus-per-task, --exclusive), or lower trainer.devices, "
            "generation.num_engines or search.num_engines"
        )


def check_planned_gpus(cfg: RecipeConfig, num_gpus: int) -> None:
    """Raise when there are fewer GPUs than the run is laid out for: its engines would have to share what there is."""
    per_node, nodes = cfg.cluster.gpus_per_node, cfg.trainer.num_nodes
    if num_gpus < per_node * nodes:
        raise ValueError(
            f"cluster.gpus_per_node={per_node} with trainer.num_nodes={nodes} plans for {per_node * nodes} GPUs, but "
            f"{num_gpus} are allocated; ask for all of them (sbatch --gpus-per-node={per_node}), or choose another "
            "cluster=, or set cluster.gpus_per_node to what a node has"
        )


def check_refit_transport(cfg: RecipeConfig, layout: Layout) -> None:
    """Raise when weights are to travel through GPUs that are not there."""
    if cfg.generation.refit_transport is RefitTransport.cuda_ipc and not layout.use_gpu:
        raise ValueError(
            "generation.refit_transport=cuda_ipc needs GPUs, and this run has none; set "
            "generation.refit_transport=shared_memory"
        )


def check_sleep(cfg: RecipeConfig, layout: Layout) -> None:
    """Raise when engines are to give up GPUs that are not there."""
    for setting in cfg.engines_that_sleep:
        if not layout.use_gpu:
            raise ValueError(f"{setting}=true needs GPUs, and this run has none; set {setting}=false")


def check_shared_memory(refit_bytes: int, free: int) -> None:
    """Raise when /dev/shm is too small for Ray's object store and the weights of one refit."""
    needed = refit_bytes + _OBJECT_STORE_BYTES
    if free < needed:
        raise ValueError(
            f"/dev/shm has {free / 2**20:.0f} MiB free, but Ray's object store and the weights of one refit need "
            f"{needed / 2**20:.0f} MiB; enlarge it (container: --shm-size={needed // 2**30 + 1}g, machine: "
            f"mount -o remount,size={needed // 2**30 + 1}g /dev/shm)"
        )


def check_memory(cfg: RecipeConfig, layout: Layout, available: int) -> None:
    """Raise when the estimate for all processes exceeds the memory that is available."""
    if problem := memory_misfit(plan_memory(cfg, layout), available):
        raise ValueError(f"{problem}; {MEMORY_REMEDY}")


def memory_misfit(plan: MemoryPlan, available: float) -> str | None:
    """Return why all processes together do not fit into a machine's memory; None if they do."""
    if plan.total <= available:
        return None
    ranks = (*plan.ranks, *plan.critic_ranks)
    parts = {
        "driver and Ray": plan.driver.total,
        f"{len(ranks)} training ranks": sum(process.total for process in ranks),
        f"{len(plan.engines)} engines": sum(process.total for process in plan.engines),
    }
    listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return (
        f"this run needs about {plan.total / GIB:.1f} GiB of memory ({listed}), but {available / GIB:.1f} GiB are "
        "available"
    )


def warn_of_too_few_cores(cfg: RecipeConfig, cores: int) -> None:
    """Log a warning when the ranks alone have more threads than there are cores."""
    threads = cfg.trainer.devices * cfg.cluster.threads_per_process
    if threads > cores:
        _LOGGER.warning(
            "trainer.devices=%d with cluster.threads_per_process=%d make %d threads on %d cores: "
            "they will wait for each other",
            cfg.trainer.devices,
            cfg.cluster.threads_per_process,
            threads,
            cores,
        )


def warn_of_little_disk(settings: ExpManagerConfig, bytes_each: float) -> None:
    """Log a warning when the checkpoints that are kept and the one being written may not fit; ``bytes_each`` of one."""
    folder = Path(settings.exp_dir)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    # Of a run that goes on: they make room for those to come.
    written = (folder / settings.name / "checkpoints").rglob("*")
    free += sum(path.stat().st_size for path in written if path.is_file())
    needed = (settings.save_top_k + 1) * bytes_each
    if free < needed:
        _LOGGER.warning(
            "%s has %.1f GiB free, but exp_manager.save_top_k=%d checkpoints and the one being written take about "
            "%.1f GiB: free some room, or set exp_manager.exp_dir or exp_manager.save_top_k otherwise",
            existing,
            free / GIB,
            settings.save_top_k,
            needed / GIB,
        )
