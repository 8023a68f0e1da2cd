"""What ``launch/doctor.sh`` looks at: checks of a machine or an allocation, each a verdict with a remedy.

Every check judges what it is given; looking is the callers' part (``recipes/doctor.py``, ``cluster.probe``), so that
all verdicts can be had on any machine.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from zs_nemo.cluster.gpu_plan import misfits, overrides_of, propose_layout
from zs_nemo.cluster.memory_plan import GIB, plan_memory
from zs_nemo.cluster.placement import place_run
from zs_nemo.cluster.preflight import check_cuts
from zs_nemo.cluster.seating import planned_seating
from zs_nemo.cluster.settled_config import settled
from zs_nemo.cluster.setups import derive_layout
from zs_nemo.config.recipe import RecipeConfig

_SLOW_DISK_MIB_PER_S = 100.0
_LARGEST_CLOCK_DIFFERENCE_S = 1.0
# Bytes a second on the bus that a healthy machine reaches with room to spare: NVLink within a node, and between nodes
# a network that NCCL does not drive through plain sockets.
_SLOW_NODE_GB_PER_S, _SLOW_NETWORK_GB_PER_S = 30.0, 5.0
_NAMES_IN_A_LINE = 5


class Verdict(Enum):
    """How a check ended."""

    ok = "ok"
    warning = "warning"
    """A run works, but slowly or not everywhere."""
    problem = "problem"
    """A run fails."""
    skipped = "skipped"
    """There is nothing here to look at."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    verdict: Verdict
    check: str
    text: str

    @property
    def is_problem(self) -> bool:
        """Whether a run would fail for it."""
        return self.verdict is Verdict.problem

    def __str__(self) -> str:
        """Return the line."""
        return f"{self.verdict.value:<8} {self.check}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """What one rank of ``cluster.probe`` saw."""

    rank: int
    node: str
    sees_folder: bool
    """Whether the doctor's file in the run directory is there."""
    num_gpus: int = 0
    met: bool = False
    """Whether the collective came to its end."""
    time_s: float = 0.0
    """Wall clock at a moment that is the same for all ranks."""
    bus_gb_per_s: float = 0.0
    met_by_gloo: bool = False
    """Whether the CPUs' collective came to its end; looked at where the first one was the GPUs'."""


def read_pins(text: str) -> dict[str, str]:
    """Return version by canonical name of a requirement file."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", text, re.MULTILINE)
    return {canonical(name): version for name, version in pins}


def canonical(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def check_versions(pins: Mapping[str, str], installed: Mapping[str, str], source: str) -> Finding:
    """Compare installed packages with the pinned ones. Transformer Engine may be missing: training runs without it."""
    differing = [
        f"{name} {installed[name]} in place of {version}"
        for name, version in pins.items()
        if name in installed and installed[name].partition("+")[0] != version
    ]
    missing = [name for name in pins if name not in installed]
    vital = [name for name in missing if not name.startswith("transformer-engine")]
    if differing or vital:
        found = _listed([*(f"{name} is missing" for name in vital), *differing])
        return Finding(
            Verdict.problem, "versions", f"{found}; install them as {source} pins them (launch/test.sh imports)"
        )
    if missing:
        return Finding(Verdict.warning, "versions", f"{_listed(missing)} missing: training takes its own layers")
    return Finding(Verdict.ok, "versions", f"{len(pins)} packages as pinned in requirements/{source}")


def left_to_container(check: str, image: str) -> Finding:
    """Leave a check of what is installed: the run takes what is in the container, and the doctor is outside of it."""
    return Finding(
        Verdict.skipped,
        check,
        f"those inside ZS_NEMO_CONTAINER={image} count, and this is outside of it; inside, "
        "`env -u ZS_NEMO_CONTAINER -u SLURM_JOB_ID python -m recipes.doctor` looks at them",
    )


def check_gpus(listed: str | None, wanted: int) -> Finding:
    """Judge ``nvidia-smi --query-gpu=name,memory.total --format=csv,noheader``, None where there is no such command.

    ``wanted`` is ``cluster.gpus_per_node``, 0 for any number.
    """
    gpus = [line.strip() for line in (listed or "").splitlines() if line.strip()]
    if not gpus and not wanted:
        return Finding(Verdict.skipped, "gpus", "nvidia-smi lists none here")
    if len(gpus) < wanted:
        return Finding(
            Verdict.problem,
            "gpus",
            f"{len(gpus)} here, but cluster.gpus_per_node={wanted}; ask for them (sbatch --gpus-per-node={wanted}), "
            "or choose another cluster=",
        )
    kinds = {kind: gpus.count(kind) for kind in dict.fromkeys(gpus)}
    if len(kinds) > 1:
        return Finding(Verdict.warning, "gpus", f"of several kinds: {_counted(kinds)}; the smallest decides what fits")
    return Finding(Verdict.ok, "gpus", _counted(kinds))


def check_compiler(compiler: str | None, headers: Path, *, has_gpus: bool) -> Finding:
    """Judge what Triton builds its kernels' launchers with, ours and vLLM's; ``headers`` is Python's own folder."""
    if not has_gpus:
        return Finding(Verdict.skipped, "compiler", "kernels are compiled where there are GPUs, none here")
    if compiler is None:
        return Finding(Verdict.problem, "compiler", "neither gcc nor clang is on the PATH; install one, or set CC")
    if not (headers / "Python.h").exists():
        return Finding(
            Verdict.problem,
            "compiler",
            f"no Python.h in {headers}; install Python's headers (Debian, Ubuntu: apt-get install python3.11-dev)",
        )
    return Finding(Verdict.ok, "compiler", f"{compiler}, with Python's headers")


def check_links(topology: str | None) -> Finding:
    """Judge ``nvidia-smi topo -m``: whether every pair of GPUs is joined by NVLink."""
    pairs = _pairs(topology or "")
    if not pairs:
        return Finding(Verdict.skipped, "links", "fewer than two GPUs here")
    slow = [f"{first}-{second} {link}" for (first, second), link in pairs.items() if not link.startswith("NV")]
    if slow:
        return Finding(
            Verdict.warning,
            "links",
            f"without NVLink: {_listed(slow)}; keep tensor parallelism among GPUs that have it, or set it to 1",
        )
    return Finding(Verdict.ok, "links", f"NVLink between all {len(pairs)} pairs of GPUs")


def _pairs(topology: str) -> dict[tuple[str, str], str]:
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line).split() for line in topology.splitlines()]
    names = [name for name in next((row for row in rows if row), []) if re.fullmatch(r"GPU\d+", name)]
    links = {row[0]: row[1 : 1 + len(names)] for row in rows if row and row[0] in names and len(row) > len(names)}
    return {
        (first, second): links[first][column]
        for first in links
        for column, second in enumerate(names)
        if column > names.index(first)
    }


def check_folder(folder: Path, mib_per_s: float | OSError) -> Finding:
    """Judge the file system of the run directories by a write that was flushed to it, or the error of it."""
    if isinstance(mib_per_s, OSError):
        return Finding(
            Verdict.problem, "folder", f"{folder} cannot be written ({mib_per_s.strerror}); set exp_manager.exp_dir"
        )
    text = f"{folder} takes {mib_per_s:.0f} MiB/s"
    if mib_per_s < _SLOW_DISK_MIB_PER_S:
        remedy = "checkpoints of a 7B model (100 GiB) would take a quarter of an hour and more; name a faster one"
        return Finding(Verdict.warning, "folder", f"{text}; {remedy} in exp_manager.exp_dir")
    return Finding(Verdict.ok, "folder", text)


def check_shared_folder(folder: Path, reports: Sequence[RankReport], num_nodes: int) -> Finding:
    """Judge whether all nodes see the run directories."""
    nodes = {report.node for report in reports}
    if num_nodes < 2:
        return Finding(Verdict.skipped, "shared folder", "one node")
    if len(nodes) < num_nodes:
        text = f"{num_nodes - len(nodes)} of {num_nodes} nodes gave no answer; see the collective"
        return Finding(Verdict.problem, "shared folder", text)
    blind = sorted({report.node for report in reports if not report.sees_folder})
    if blind:
        return Finding(
            Verdict.problem,
            "shared folder",
            f"{_listed(blind)} do not see {folder}; set exp_manager.exp_dir to a folder on a shared file system",
        )
    return Finding(Verdict.ok, "shared folder", f"all {num_nodes} nodes see {folder}")


def check_collective(reports: Sequence[RankReport], num_ranks: int, error: str = "") -> Finding:
    """Judge the all-reduce over all ranks. ``error`` is what the ranks wrote if they failed."""
    met = [report for report in reports if report.met]
    if len(met) < num_ranks:
        why = f" ({error})" if error else ""
        return Finding(
            Verdict.problem,
            "collective",
            f"{len(met)} of {num_ranks} ranks came through{why}; if the nodes have several networks, name the right "
            "one in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME",
        )
    speed, nodes = min(report.bus_gb_per_s for report in met), len({report.node for report in met})
    if num_ranks == 1:
        return Finding(Verdict.ok, "collective", "one rank, which has nobody to exchange with")
    text = f"{num_ranks} ranks on {nodes} {'node' if nodes == 1 else 'nodes'}, {speed:.2f} GB/s"
    limit = _SLOW_NODE_GB_PER_S if nodes == 1 else _SLOW_NETWORK_GB_PER_S
    if all(report.num_gpus for report in met) and speed < limit:
        return Finding(
            Verdict.warning,
            "collective",
            f"{text}, less than {limit:g}; NCCL_DEBUG=INFO shows which way NCCL takes (NVLink, InfiniBand, sockets)",
        )
    return Finding(Verdict.ok, "collective", text)


def check_gloo(reports: Sequence[RankReport], error: str = "") -> Finding:
    """Judge the all-reduce over the CPUs of all ranks on GPUs, for which gloo takes the address of a node's own name.

    ``error`` is what the ranks wrote if they failed.
    """
    met = [report for report in reports if report.met and report.num_gpus]
    if not met:
        return Finding(Verdict.skipped, "gloo", "see the collective")
    lost = sorted({report.node for report in met if not report.met_by_gloo})
    if lost:
        why = f" ({error})" if error else ""
        return Finding(
            Verdict.problem,
            "gloo",
            f"ranks on {_listed(lost)} did not come through on their CPUs{why}, as those of a run must; where a "
            "node's own name means a loopback address, name the network in GLOO_SOCKET_IFNAME",
        )
    return Finding(Verdict.ok, "gloo", f"{len(met)} ranks on their CPUs too")


def check_clocks(reports: Iterable[RankReport]) -> Finding:
    """Judge how far the nodes' clocks lie apart."""
    times: dict[str, float] = {}
    for report in reports:
        if report.met:
            times.setdefault(report.node, report.time_s)
    if len(times) < 2:
        return Finding(Verdict.skipped, "clocks", "no two nodes answered")
    first, last = min(times, key=lambda node: times[node]), max(times, key=lambda node: times[node])
    apart = times[last] - times[first]
    if apart > _LARGEST_CLOCK_DIFFERENCE_S:
        return Finding(
            Verdict.problem,
            "clocks",
            f"{last} is {apart:.1f} s ahead of {first}; have the clocks synchronised (chrony, ntpd), or leave one node "
            f"out (sbatch --exclude={last})",
        )
    return Finding(Verdict.ok, "clocks", f"{len(times)} nodes within {apart:.2f} s")


def check_ports(ports: Mapping[str, int], is_free: Callable[[int], bool]) -> Finding:
    """Judge the ports that a run would take here, by what each is for; 0 stands for any free one."""
    fixed = {purpose: port for purpose, port in ports.items() if port}
    taken = [f"{port} ({purpose})" for purpose, port in fixed.items() if not is_free(port)]
    if taken:
        remedy = "end what holds them, or set cluster.master_port=0 for any free one"
        return Finding(Verdict.problem, "ports", f"in use: {_listed(taken)}; {remedy}")
    named = _listed([f"{port} ({purpose})" for purpose, port in fixed.items()])
    return Finding(Verdict.ok, "ports", f"free: {named}" if fixed else "any free one is taken")


def check_ray(process_ids: Sequence[int], *, num_nodes: int | None) -> Finding:
    """Judge Ray processes, of whoever, that are running on this machine already.

    ``num_nodes`` is the allocation's, None outside of one. A run of one node starts a Ray of its own in either.
    """
    if not process_ids:
        return Finding(Verdict.ok, "ray", "none is running here")
    text = f"already running here (processes {_listed([str(number) for number in process_ids])})"
    if num_nodes is not None and num_nodes > 1:
        return Finding(
            Verdict.problem,
            "ray",
            f"{text}: ray symmetric-run, by which a run on several nodes starts, refuses that; end those processes if "
            "they are yours (ray stop ends all of yours), or leave this node out",
        )
    return Finding(Verdict.warning, "ray", f"{text}; a run starts one of its own beside it")


def check_allocation(cfg: RecipeConfig, num_nodes: int | None) -> Finding:
    """Compare the allocation's nodes, None outside of one, with the configuration's."""
    if num_nodes is None:
        return Finding(Verdict.skipped, "allocation", "not inside one")
    if num_nodes < cfg.trainer.num_nodes:
        return Finding(
            Verdict.problem,
            "allocation",
            f"{num_nodes} nodes, but trainer.num_nodes={cfg.trainer.num_nodes}; ask for as many (sbatch "
            f"--nodes={cfg.trainer.num_nodes}), or choose a smaller cluster=",
        )
    if num_nodes > cfg.trainer.num_nodes:
        return Finding(
            Verdict.warning,
            "allocation",
            f"{num_nodes} nodes, of which trainer.num_nodes={cfg.trainer.num_nodes} are planned for; choose a larger "
            "cluster=",
        )
    return Finding(Verdict.ok, "allocation", f"{num_nodes} nodes, as configured")


def check_plan(cfg: RecipeConfig, local_gpus: tuple[int, float], available_bytes: float) -> Finding:
    """Judge by the planner whether the run fits: on the GPUs that are configured, else on those or the memory here."""
    planned = cfg.cluster.gpus_per_node * cfg.trainer.num_nodes
    try:
        use_gpu = True if planned else None
        cfg = settled(cfg, use_gpu=use_gpu)
        layout = derive_layout(cfg, use_gpu=use_gpu)
        check_cuts(cfg, layout)
        if not layout.use_gpu:
            needed = plan_memory(cfg, layout).total
            text = f"{needed / GIB:.1f} GiB are needed and {available_bytes / GIB:.1f} GiB available"
            if needed <= available_bytes:
                return Finding(Verdict.ok, "plan", text)
            return Finding(Verdict.problem, "plan", f"{text}; free memory, or see recipes/plan.py for what would fit")
        num_gpus, gpu_bytes = (planned, cfg.cluster.gpu_memory_gib * GIB) if planned else local_gpus
        machines = cfg.trainer.num_nodes if planned else 1
        placement = place_run(layout, num_gpus, cfg.generation.refit_transport)
        planned_seating(placement, num_machines=machines, gpus_per_machine=num_gpus // machines)
        problems = misfits(cfg, layout, num_gpus, gpu_bytes)
        proposal = propose_layout(cfg, layout, num_gpus, gpu_bytes) if problems else None
    except ValueError as error:
        return Finding(Verdict.problem, "plan", str(error))
    if not problems:
        return Finding(Verdict.ok, "plan", f"fits on {num_gpus} GPUs of {gpu_bytes / GIB:.0f} GiB")
    remedy = "take more nodes or a smaller model; recipes/plan.py shows what takes the memory"
    if proposal is not None:
        remedy = f"set {overrides_of(cfg.policy, proposal)}"
    return Finding(Verdict.problem, "plan", f"{problems[0]}; {remedy}")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_IN_A_LINE
    return ", ".join(names[:_NAMES_IN_A_LINE]) + (f" and {more} more" if more > 0 else "")


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
