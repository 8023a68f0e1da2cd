"""The simulator's engines by themselves, without a policy: what the search server needs."""

from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zs_nemo.cluster.available_memory import available_memory
from zs_nemo.cluster.cpu_threads import usable_cores
from zs_nemo.cluster.engine_pool import EnginePool, EngineUsage
from zs_nemo.cluster.gpu_plan import local_gpus
from zs_nemo.cluster.memory_plan import GIB, engine_memory, with_planned_kv_cache
from zs_nemo.cluster.placement import place_on_gpus
from zs_nemo.cluster.preflight import check_engine_layout
from zs_nemo.cluster.ray_session import RaySession
from zs_nemo.cluster.recovery import EngineRestarts
from zs_nemo.cluster.role_accounts import role_accounts
from zs_nemo.cluster.roles import Role, start_all
from zs_nemo.cluster.setups import derive_simulator, engine_builder
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.generation.engine_setup import EngineSetup, engine_environment
from zs_nemo.observability.cost import SIMULATOR
from zs_nemo.observability.faults import FaultLog

_SHUTDOWN_S = 3.0
# Requests wait inside vLLM, not in Ray's queue.
_MAX_REQUESTS_PER_ENGINE = 10_000


@contextmanager
def simulator_engines(cfg: RecipeConfig, logs: Path) -> Iterator[EnginePool]:
    """Start Ray and the engines that ``cfg.search`` describes; whatever ends the block ends them all.

    An engine that dies is replaced. Of ``cfg`` only ``seed``, ``search``, ``cluster``, ``faults`` and
    ``trainer.accelerator`` are read. Raises ``ValueError`` before anything is started, ``RoleError`` for an engine that
    fails, ``TimeoutError`` after ``cluster.startup_timeout_s``.
    """
    setups, use_gpu = derive_simulator(cfg)
    check_engine_layout("search.tensor_model_parallel_size", setups[0].model_path, cfg.search)
    if not use_gpu:
        _check_memory(setups)
    num_gpus = local_gpus()[0] if use_gpu else 0
    places_itself = use_gpu and not cfg.cluster.ray_address
    shares = _gpu_shares(setups, num_gpus) if places_itself else [None] * len(setups)
    logs.mkdir(parents=True, exist_ok=True)
    session = RaySession(
        cfg.cluster.ray_address, len(setups), num_gpus, logs, startup_timeout_s=cfg.cluster.startup_timeout_s
    )
    try:
        local = {} if cfg.cluster.ray_address else {"VLLM_HOST_IP": "127.0.0.1"}
        parts = {setup.name: (setup, share) for setup, share in zip(setups, shares, strict=True)}

        def begin(name: str, avoid: Set[str] = frozenset()) -> tuple[Role, Any]:
            setup, share = parts[name]
            role = _role(setup, share, local, logs)
            if share is not None and share < setup.tensor_model_parallel_size:
                setup = with_planned_kv_cache(setup)
            return role, role.submit("start", engine_builder(setup))

        begun = [begin(setup.name) for setup in setups]
        roles = [role for role, _ in begun]
        start_all(roles, [reference for _, reference in begun], cfg.cluster.startup_timeout_s)
        restarts = EngineRestarts(begin, cfg.faults, FaultLog(), startup_timeout_s=cfg.cluster.startup_timeout_s)
        pool = EnginePool(roles, [setup.tensor_model_parallel_size for setup in setups], replacer=restarts)
        yield pool
    except BaseException as error:
        # An interrupt is no failure: nobody wants Ray's logs for it.
        session.close(failed=isinstance(error, Exception))
        raise
    _shut_down(pool.roles)
    session.close()


def simulator_roles(cfg: RecipeConfig, usage: EngineUsage, *, wall_s: float) -> dict[str, dict[str, float]]:
    """Return what the engines of ``simulator_engines`` have held and done in ``wall_s`` s, as ``System.accounts``."""
    setups, use_gpu = derive_simulator(cfg)
    sizes = [setup.tensor_model_parallel_size for setup in setups]
    held = float(sum(sizes))
    if use_gpu and not cfg.cluster.ray_address:
        held = sum(share or 0.0 for share in _gpu_shares(setups, local_gpus()[0]))
    elif not use_gpu:
        held = float(min(sum(sizes) * setups[0].threads, usable_cores()))
    usages = {SIMULATOR: (usage, len(setups))}
    return role_accounts({SIMULATOR: held}, on_gpu=use_gpu, wall_s=wall_s, stage_s={}, usage=usages)


def _role(setup: EngineSetup, gpu_share: float | None, local_network: dict[str, str], logs: Path) -> Role:
    import ray

    from zs_nemo.cluster.actors import EngineActor

    resources: dict[str, Any] = {"num_cpus": 1, "max_concurrency": _MAX_REQUESTS_PER_ENGINE}
    if setup.use_gpu:
        resources["num_gpus"] = gpu_share or float(setup.tensor_model_parallel_size)
    log_path = (logs / f"{setup.name}.log").resolve()
    environment = engine_environment(setup) | local_network
    return Role(setup.name, ray.remote(EngineActor).options(**resources).remote(environment, str(log_path)), log_path)


def _gpu_shares(setups: tuple[EngineSetup, ...], num_gpus: int) -> list[float | None]:
    """Return the GPUs of each engine; raise ``ValueError`` where they do not fit."""
    placement = place_on_gpus(num_gpus, 0, [setup.tensor_model_parallel_size for setup in setups])
    return [share for _, share in placement.engines]


def _check_memory(setups: tuple[EngineSetup, ...]) -> None:
    needed, available = sum(engine_memory(setup).total for setup in setups), available_memory()
    if needed > available:
        raise ValueError(
            f"search.num_engines={len(setups)} needs about {needed / GIB:.1f} GiB of memory, but "
            f"{available / GIB:.1f} GiB are available; lower it or search.kv_cache_gib, choose a smaller search.model, "
            "free memory, or raise the limit of the container or the job (sbatch --mem)"
        )


def _shut_down(roles: list[Role]) -> None:
    """Let vLLM end in order; Ray ends whatever does not."""
    import ray

    calls = [role.submit("shutdown") for role in roles]
    with suppress(ray.exceptions.RayError):
        ray.wait(calls, num_returns=len(calls), timeout=_SHUTDOWN_S)
