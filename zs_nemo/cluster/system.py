"""The handle that a recipe owns: starts every process of a run, gives access to them, and ends them all."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from zs_nemo.cluster import preflight
from zs_nemo.cluster.core_loan import CoreLoan
from zs_nemo.cluster.engine_pool import EnginePool, EngineUsage, OneEngine
from zs_nemo.cluster.gpu_plan import check_gpus, local_gpus
from zs_nemo.cluster.memory_plan import GIB, engine_weight_bytes, with_planned_kv_cache
from zs_nemo.cluster.placement import (
    Placement,
    check_engines_within_machines,
    check_tensor_parallel_within_machines,
    in_machine_order,
    place_run,
)
from zs_nemo.cluster.placement_drawing import draw_placement
from zs_nemo.cluster.rank_groups import CriticGroup, PolicyGroup
from zs_nemo.cluster.ray_session import RaySession
from zs_nemo.cluster.recovery import EngineRestarts, elsewhere, hosts_to_avoid, selector_of_others
from zs_nemo.cluster.rendezvous import usable_port
from zs_nemo.cluster.role_accounts import GENERATION, held_units, role_accounts
from zs_nemo.cluster.roles import STARTUP_LIMIT, RanksLost, Role, RoleError, gather, start_all
from zs_nemo.cluster.seating import seating_by_ray
from zs_nemo.cluster.setups import (
    Layout,
    critic_rank_builder,
    critic_settings,
    derive_layout,
    engine_builder,
    rank_builder,
    rank_environment,
)
from zs_nemo.cluster.waking_hours import WakingHours
from zs_nemo.cluster.watchdog import Watchdog
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.rollout import RefitTransport
from zs_nemo.generation.engine_setup import engine_environment
from zs_nemo.observability.cost import SIMULATOR
from zs_nemo.observability.faults import FaultLog
from zs_nemo.refit.direct import DirectRefit
from zs_nemo.refit.shared_memory import SharedMemoryRefit, WeightReceiver
from zs_nemo.weights.transfer import TransferAddress

_SHUTDOWN_S = 3.0
# Requests wait inside vLLM, not in Ray's queue, where they would keep a weight update from being seen.
_MAX_REQUESTS_PER_ENGINE = 10_000


class System:
    """All processes of a run. Use with ``with``: whatever ends the block, Ctrl-C included, ends them too.

    A driver that is killed cannot clean up; the reaper does it then.
    """

    policy: PolicyGroup
    """Absent in a recipe that trains nothing."""
    critic: CriticGroup | None
    """None with an algorithm that has none."""
    generation: EnginePool
    """The policy's engines; absent in a recipe that does not sample from it."""
    simulator: EnginePool | None
    """The frozen simulator's engines; None when a real engine answers during training."""

    _refit: SharedMemoryRefit | DirectRefit

    def __init__(self, cfg: RecipeConfig, layout: Layout, session: RaySession, run_dir: Path, faults: FaultLog) -> None:
        """Not for callers: ``System.start``."""
        self._cfg = cfg
        self._layout = layout
        self._session: RaySession | None = session
        self._logs = run_dir / "logs"
        self.faults = faults
        """Deaths and hangs of the processes."""
        timeout_s = cfg.faults.hang_timeout_s
        self._watchdog = Watchdog(self._living, timeout_s, self._logs, faults, self._is_replacing)
        self._one_load = threading.Lock()
        self._ranks: list[Role] = []
        """The policy's and, after them, a critic's own."""
        self.simulator = None

    @classmethod
    def start(
        cls,
        cfg: RecipeConfig,
        run_dir: Path,
        on_placed: Callable[[str, bool], None] | None = None,
        faults: FaultLog | None = None,
    ) -> "System":
        """Check, start Ray, start all processes at once, and return when every one of them is ready.

        ``on_placed`` is given the drawing of who sits where, and whether on GPUs, as soon as that is decided. Deaths
        are recorded in ``faults``, and machines that it knows for them are avoided.
        Raises ``ValueError`` before anything is started for what ``preflight`` finds, ``RoleError`` for a process that
        fails, ``TimeoutError`` after ``cluster.startup_timeout_s``.
        """
        layout = derive_layout(cfg)
        preflight.check(cfg, layout)
        logs = run_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        num_gpus = local_gpus()[0] if layout.use_gpu else 0
        session = RaySession(
            cfg.cluster.ray_address,
            layout.num_processes,
            num_gpus,
            logs,
            startup_timeout_s=cfg.cluster.startup_timeout_s,
        )
        system = cls(cfg, layout, session, run_dir, faults or FaultLog())
        try:
            system._start_roles(on_placed)
        except BaseException as error:
            # An interrupt is no failure: nobody wants Ray's logs for it.
            system._close(failed=isinstance(error, Exception))
            raise
        return system

    def refit(self, version: int) -> None:
        """Bring the policy's current weights into its generation engines, stamped with ``version``.

        Engines that sleep wake up for it.
        """
        self._waking_hours.wake([self.generation])
        if self._cfg.generation.refit_transport is RefitTransport.shared_memory:
            self._refit.refit(version)
            return
        self.generation.heal()
        if self._num_joined != self.generation.num_replaced:
            # The group has no place for an engine that came later.
            self._refit = self._build_refit()
        try:
            self._refit.refit(version)
        except RoleError as error:
            if not error.died:
                raise
            raise RanksLost.saying(f"{error}\nthe ranks wait for it", error) from error

    def engines_alone(self) -> AbstractContextManager[object]:
        """While open, nothing but engines computes.

        On CPU those that are busy get the cores of those that wait; on GPUs those that sleep at other times are awake.
        """
        cluster = self._cfg.cluster
        if self._layout.use_gpu:
            return self._waking_hours
        if cluster.threads_of_lone_engine in (0, cluster.threads_per_process):
            return contextlib.nullcontext()
        threads_alone = {self.generation: cluster.threads_of_lone_engine}
        if self.simulator is not None:
            cores = cluster.threads_of_lone_engine * self.generation.num_processes
            threads_alone[self.simulator] = max(cluster.threads_per_process, cores // self.simulator.num_processes)
        return CoreLoan(threads_alone, shared=cluster.threads_per_process)

    def usage(self) -> dict[str, EngineUsage]:
        """Return tokens and busy seconds by role."""
        pools = {"policy": getattr(self, "generation", None), "simulator": self.simulator}
        return {name: pool.usage for name, pool in pools.items() if pool is not None}

    def accounts(self, *, wall_s: float, stage_s: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Return what each role has held and done in ``wall_s`` seconds, of which ``stage_s`` went to the stages."""
        done = self.usage()
        usage = {
            role: (done[name], len(engines))
            for role, name, engines in (
                (GENERATION, "policy", self._layout.policy_engines),
                (SIMULATOR, "simulator", self._layout.simulator_engines),
            )
            if name in done
        }
        return role_accounts(self._units, on_gpu=self._layout.use_gpu, wall_s=wall_s, stage_s=stage_s, usage=usage)

    def close(self) -> None:
        """End every process of the run. May be called again."""
        self._close(failed=False)

    def __enter__(self) -> "System":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(failed=isinstance(error, Exception))

    def _close(self, *, failed: bool) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        self._watchdog.close()
        import ray

        try:
            # Politely first, so that vLLM and torch.distributed end in order; a role in the middle of a call cannot.
            calls = [role.submit("shutdown") for role in self._living() if not failed]
            with contextlib.suppress(ray.exceptions.RayError):
                ray.wait(calls, num_returns=len(calls), timeout=_SHUTDOWN_S) if calls else None
        finally:
            session.close(failed=failed)

    def _start_roles(self, on_placed: Callable[[str, bool], None] | None) -> None:
        layout, cfg = self._layout, self._cfg
        if cfg.cluster.ray_address:
            import ray

            preflight.check_allocation(cfg, layout, ray.nodes())
        placement = self._placement()
        num_cores = len(os.sched_getaffinity(0)) * cfg.trainer.num_nodes
        self._units = held_units(layout, placement, threads=cfg.cluster.threads_per_process, num_cores=num_cores)
        if on_placed is not None:
            on_placed(self._drawing(placement), layout.use_gpu)
        self._placed = placement
        # The engines need longest: they are first in the queue for the cores.
        begun = [self._begin_engine(setup.name) for setup in layout.engines]
        engines = [role for role, _ in begun]
        ranks = [self._rank(f"policy-rank-{rank}", rank, placement) for rank in range(layout.num_ranks)]
        critics = [
            self._rank(f"critic-rank-{rank}", layout.num_ranks + rank, placement)
            for rank in range(layout.num_critic_ranks)
        ]
        self._ranks = [*ranks, *critics]
        starts = [reference for _, reference in begun]
        for roles, builder, port in ((ranks, rank_builder, cfg.cluster.master_port), (critics, critic_rank_builder, 0)):
            if roles:
                address = self._rendezvous(roles[0], port)
                starts += [role.submit("start", builder(cfg, layout, rank, address)) for rank, role in enumerate(roles)]
        start_all([*engines, *self._ranks], starts, cfg.cluster.startup_timeout_s)
        self._connect(ranks, critics, engines)
        self._watchdog.start()

    def _connect(self, ranks: Sequence[Role], critics: Sequence[Role], engines: Sequence[Role]) -> None:
        layout, cfg = self._layout, self._cfg
        sizes, count = [setup.tensor_model_parallel_size for setup in layout.engines], len(layout.policy_engines)
        if ranks:
            self.policy = PolicyGroup(
                ranks,
                has_reference=layout.has_reference,
                refit_dtype=layout.policy_engines[0].dtype if count else "auto",
                refit_bucket_bytes=cfg.generation.refit_bucket_mib * 2**20,
            )
        self.critic = CriticGroup(critics or ranks) if layout.has_critic else None
        limit_s = cfg.cluster.startup_timeout_s
        restarts = EngineRestarts(self._begin_engine, cfg.faults, self.faults, startup_timeout_s=limit_s)
        made = partial(EnginePool, replacer=restarts, startup_timeout_s=limit_s)
        if count:
            load = self._load_weights if ranks else None
            self.generation = made(engines[:count], sizes[:count], load_weights=load)
        if layout.simulator_engines:
            self.simulator = made(engines[count:], sizes[count:])
        pools = {"generation": getattr(self, "generation", None), "search": self.simulator}
        sleepers = [pools[setting.partition(".")[0]] for setting in cfg.engines_that_sleep if ranks]
        groups = [self.policy if ranks else None, self.critic]
        self._waking_hours = WakingHours(list(filter(None, sleepers)), list(filter(None, groups)))
        if ranks and count:
            self._refit = self._build_refit()
        # Training comes first.
        self._waking_hours.sleep()

    def _living(self) -> list[Role]:
        """Return all roles, those that took the place of others included."""
        return [role for pool in self._pools() for role in pool.roles] + self._ranks

    def _is_replacing(self) -> bool:
        return any(pool.is_replacing for pool in self._pools())

    def _pools(self) -> list[EnginePool]:
        return [pool for pool in (getattr(self, "generation", None), self.simulator) if pool is not None]

    def _load_weights(self, engine: Role, version: int) -> None:
        """Bring the policy's current weights into one engine, stamped with ``version``."""
        with self._one_load:
            # With rollout.max_staleness a refit of all engines may be under way: it waits for this one.
            receiver = OneEngine(engine, self._cfg.cluster.startup_timeout_s)
            self._file_refit(receiver, name=f"weights-{engine.name}").refit(version)

    def _build_refit(self) -> SharedMemoryRefit | DirectRefit:
        transport, num_ranks = self._cfg.generation.refit_transport, self._layout.num_ranks
        self._num_joined = self.generation.num_replaced
        if transport is RefitTransport.shared_memory:
            return self._file_refit(self.generation)
        host, port = self._rendezvous(self._ranks[0], 0)
        by_handles = transport is RefitTransport.cuda_ipc
        num_senders = num_ranks if by_handles else 1
        address = TransferAddress(
            host=host,
            port=port,
            num_members=num_senders + sum(setup.tensor_model_parallel_size for setup in self._layout.policy_engines),
            num_senders=num_senders,
            shares_devices=by_handles,
        )
        return DirectRefit(self.policy, self.generation, address)

    def _file_refit(self, receiver: WeightReceiver, name: str = "weights") -> SharedMemoryRefit:
        assert self._session is not None
        folder = self._session.shm_folder
        if self._session.num_machines > 1:
            # Shared memory ends at the machine; the run directory is on a file system that all of them see.
            folder = self._logs.parent / "refit"
            folder.mkdir(exist_ok=True)
        num_bytes = engine_weight_bytes(self._layout.policy_engines[0])
        return SharedMemoryRefit(self.policy, receiver, folder, num_bytes, name)

    def _rendezvous(self, first_rank: Role, port: int) -> tuple[str, int]:
        if self._cfg.cluster.ray_address:
            # Where others hold the cluster's cores, the rank may wait for its own.
            asked, timeout_s = first_rank.submit("address", port), self._cfg.cluster.startup_timeout_s
            address: tuple[str, int] = gather([first_rank], [asked], "address", timeout_s, STARTUP_LIMIT)[0]
            return address
        return "127.0.0.1", usable_port("127.0.0.1", port)

    def _placement(self) -> Placement | None:
        if not self._layout.use_gpu:
            return None
        import ray

        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        placement = place_run(self._layout, num_gpus, self._cfg.generation.refit_transport)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        check_engines_within_machines(placement, [int(resources.get("GPU", 0)) for resources in nodes])
        # The driver may sit on a machine without a GPU.
        if gpu_bytes := local_gpus()[1] or self._cfg.cluster.gpu_memory_gib * GIB:
            check_gpus(self._cfg, self._layout, (num_gpus, gpu_bytes))
        avoid = selector_of_others(hosts_to_avoid(self.faults, self._cfg.faults), {"GPU": placement.num_gpus})
        self._group = ray.util.placement_group(
            list(placement.bundles),
            strategy="PACK",
            bundle_label_selector=[avoid] * len(placement.bundles) if avoid else None,
        )
        timeout_s = self._cfg.cluster.startup_timeout_s
        try:
            ray.get(self._group.ready(), timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(
                f"{placement.num_gpus:g} GPUs did not become free on the Ray cluster within "
                f"cluster.startup_timeout_s={timeout_s:g}; end what holds them, raise it, or ask for fewer "
                "(trainer.devices, generation.num_engines, search.num_engines)"
            ) from error
        return self._in_machine_order(placement)

    def _in_machine_order(self, placement: Placement) -> Placement:
        """Seat the ranks as they talk, now that Ray has chosen the machines. Raises ``ValueError`` where it cannot."""
        nodes = self._nodes_of_bundles()
        machines = [nodes[index] for index in range(len(placement.bundles))]
        placement = in_machine_order(placement, machines)
        if not self._cfg.policy.tensor_parallel_across_nodes:
            import ray

            names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
            hosts = [names.get(machines[bundle], machines[bundle]) for bundle, _ in placement.ranks]
            count, critic = self._layout.num_ranks, critic_settings(self._cfg)
            of_roles = [("policy", self._cfg.policy, hosts[:count]), ("critic", critic, hosts[count:])]
            for role, settings, own in of_roles:
                if settings is not None:
                    check_tensor_parallel_within_machines(role, settings.tensor_model_parallel_size, own)
        return placement

    def _nodes_of_bundles(self) -> Mapping[int, str]:
        import ray

        nodes: Mapping[int, str] = ray.util.placement_group_table(self._group)["bundles_to_node_id"]
        return nodes

    def _drawing(self, placement: Placement | None) -> str:
        if placement is None:
            return draw_placement(self._cfg, self._layout)
        import ray

        seating = seating_by_ray(placement, ray.nodes(), self._nodes_of_bundles())
        return draw_placement(self._cfg, self._layout, seating)

    def _rank(self, name: str, place: int, placement: Placement | None) -> Role:
        from zs_nemo.cluster.actors import RankActor

        environment = rank_environment(self._cfg, self._layout.use_gpu) | self._local_network()
        resources = self._resources(placement.ranks[place] if placement else None)
        return self._role(name, RankActor, environment, resources)

    def _begin_engine(self, name: str, avoid: Set[str] = frozenset()) -> tuple[Role, Any]:
        """Make the actor of an engine, and begin to start it; where there is room elsewhere, not on ``avoid``.

        One that gets its weights through its GPU's memory stays on the GPU of the ranks that write them.
        """
        from zs_nemo.cluster.actors import EngineActor

        index = [setup.name for setup in self._layout.engines].index(name)
        setup, placement = self._layout.engines[index], self._placed
        place = placement.engines[index] if placement else None
        by_handles = self._cfg.generation.refit_transport is RefitTransport.cuda_ipc
        may_move = bool(avoid) and not (by_handles and setup in self._layout.policy_engines)
        resources = (elsewhere(place[1] if place else 0.0, avoid) if may_move else None) or self._resources(place)
        resources["max_concurrency"] = _MAX_REQUESTS_PER_ENGINE
        role = self._role(name, EngineActor, engine_environment(setup) | self._local_network(), resources)
        role.hang_timeout_s = self._cfg.engine_hang_timeout_s
        if place is not None and place[1] < setup.tensor_model_parallel_size:
            setup = with_planned_kv_cache(setup)
        return role, role.submit("start", engine_builder(setup))

    def _role(self, name: str, actor: type, environment: dict[str, str], resources: dict[str, Any]) -> Role:
        import ray

        log_path = (self._logs / f"{name}.log").resolve()
        handle = ray.remote(actor).options(**resources).remote(environment, str(log_path))
        return Role(name, handle, log_path)

    def _resources(self, place: tuple[int, float] | None) -> dict[str, Any]:
        if place is None:
            avoid = selector_of_others(
                hosts_to_avoid(self.faults, self._cfg.faults), {"CPU": self._layout.num_processes}
            )
            return {"num_cpus": 1} | ({"label_selector": avoid} if avoid else {})
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle, num_gpus = place
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        return {"num_cpus": 1, "num_gpus": num_gpus, "scheduling_strategy": strategy}

    def _local_network(self) -> dict[str, str]:
        if self._cfg.cluster.ray_address:
            return {}
        return {"GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
