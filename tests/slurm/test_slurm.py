"""The shipped scripts under a real SLURM of two nodes, with the real Ray and the real recipe on a tiny model."""

import json
from pathlib import Path

import pytest

from tests.slurm.cluster import NODES, SlurmCluster, wait_for
from tests.slurm.jobs import NUM_STEPS, START_S, Jobs
from tests.slurm.slow_reward import GATE


def assert_same_metrics(jobs: Jobs, name: str, run_through: Path) -> None:
    broken, whole = jobs.steps(name), jobs.steps(run_through.name)
    assert [row["step"] for row in broken] == [row["step"] for row in whole] == list(range(NUM_STEPS))
    for mine, theirs in zip(broken, whole, strict=True):
        for measure in ("train/loss", "train/grad_norm", "reward/mean", "rollout/searches_per_episode"):
            assert mine[measure] == pytest.approx(theirs[measure], rel=1e-4, abs=1e-6), (mine["step"], measure)


def assert_nothing_is_left(cluster: SlurmCluster, *numbers: str) -> None:
    wait_for(cluster.is_idle, 60, "the nodes are free again")
    assert [process.name() for node in NODES for process in cluster.processes_of(node)] == []
    assert [path for number in numbers for path in Path("/tmp").glob(f"zsn-{number}-*")] == []


def test_the_shipped_sbatch_trains_over_two_nodes_to_the_end_and_leaves_nothing_behind(
    cluster: SlurmCluster, jobs: Jobs, run_through: Path
) -> None:
    report = json.loads((run_through / "report.json").read_text())
    assert report["steps"] == NUM_STEPS and (run_through / "report.html").is_file()
    assert [row["step"] for row in jobs.steps("through")] == list(range(NUM_STEPS))
    (output,) = (path.read_text() for path in jobs.folder.glob("through-*.out"))
    assert "On head node." in output and "On worker node." in output
    (number,) = (path.stem.rpartition("-")[2] for path in jobs.folder.glob("through-*.out"))
    assert_nothing_is_left(cluster, number)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_job_that_is_told_of_its_limit_is_requeued_and_ends_with_the_metrics_of_one_that_ran_through(
    cluster: SlurmCluster, jobs: Jobs, run_through: Path, tmp_path: Path
) -> None:
    # It is in its third step when SLURM signals it, 160 s after its beginning, and stays there until then.
    gate = tmp_path / "gate"
    number = jobs.submit("limited", "--time=6", "--signal=USR1@200", **{GATE: str(gate)})
    wait_for(lambda: "SIGUSR1" in jobs.output(number, "limited"), 2 * START_S, "the signal comes")
    assert len(jobs.steps("limited")) == 2
    gate.touch()
    job = jobs.must_complete(number, "limited")
    assert int(job["Restarts"]) >= 1
    assert "resumed from" in jobs.output(number, "limited")
    assert_same_metrics(jobs, "limited", run_through)
    assert_nothing_is_left(cluster, number)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_signalled_job_is_requeued_and_goes_on_whichever_processes_slurm_signals(
    signalling: SlurmCluster, signalled_jobs: Jobs, run_through: Path, tmp_path: Path, nodes: int
) -> None:
    gate, name = tmp_path / "gate", f"signalled_{nodes}_{signalling.process_tracking}"
    number = signalled_jobs.submit(name, nodes=nodes, **{GATE: str(gate)})
    signalled_jobs.wait_for_steps(name, 2)
    signalling.output_of("scancel", "--signal=USR1", number)
    wait_for(lambda: "SIGUSR1" in signalled_jobs.output(number, name), 60, "the recipe hears of it")
    gate.touch()
    job = signalled_jobs.must_complete(number, name)
    assert int(job["Restarts"]) == 1
    assert "resumed from" in signalled_jobs.output(number, name)
    faults = [measure for row in signalled_jobs.steps(name) for measure in row if measure.startswith("faults/")]
    assert faults == [], "the signal has ended nothing"
    assert_same_metrics(signalled_jobs, name, run_through)
    assert_nothing_is_left(signalling, number)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_an_evaluation_over_two_nodes_that_is_told_of_its_limit_is_requeued_and_asks_only_what_is_left(
    cluster: SlurmCluster, jobs: Jobs
) -> None:
    number = jobs.submit_evaluation("examined", 60)
    wait_for(lambda: len(jobs.answers("examined")) >= 3, 2 * START_S, "the first answers come")
    # What SLURM does so long before the limit.
    cluster.output_of("scancel", "--signal=USR1", number)
    job = jobs.must_complete(number, "examined")
    assert int(job["Restarts"]) == 1
    answers = jobs.answers("examined")
    assert len(answers) == len(set(answers)) == 60, "no question was asked twice"
    report = json.loads((jobs.folder / "examined" / "report.json").read_text())
    assert report["evaluation"]["agent_bm25_greedy"]["n"] == 60 and report["sessions"] == 2
    assert_nothing_is_left(cluster, number)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("node", NODES)
def test_a_job_survives_the_loss_of_a_node_and_its_slurmd(
    cluster: SlurmCluster, jobs: Jobs, run_through: Path, tmp_path: Path, node: str
) -> None:
    # Where nothing of the run is on the node, it would otherwise be done before SLURM sees that one is missing.
    gate, name = tmp_path / "gate", f"without_{node}"
    number = jobs.submit(name, **{GATE: str(gate)})
    jobs.wait_for_steps(name, 2)
    cluster.cut_power(node)
    wait_for(lambda: int(cluster.job(number)["Restarts"]) >= 1, START_S, "the job is requeued")
    gate.touch()
    cluster.start_node(node)
    jobs.must_complete(number, name)
    assert "resumed from" in jobs.output(number, name)
    assert_same_metrics(jobs, name, run_through)
    assert_nothing_is_left(cluster, number)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_jobs_that_run_at_once_on_one_node_collide_neither_in_ports_nor_in_files(
    cluster: SlurmCluster, jobs: Jobs
) -> None:
    shared = ("--oversubscribe", "--nodelist=node1", "--cpus-per-task=2")
    numbers = {name: jobs.submit(name, *shared, nodes=1) for name in ("one", "other")}
    for name in numbers:
        jobs.wait_for_steps(name, 1)
    assert {cluster.job(number)["JobState"] for number in numbers.values()} == {"RUNNING"}
    intruder = jobs.submit("one", *shared, nodes=1)
    assert cluster.wait_for_end(intruder, START_S)["ExitCode"] == "2:0"
    assert "is being written by another process" in jobs.output(intruder, "one")
    for name, number in numbers.items():
        jobs.must_complete(number, name)
        assert len(jobs.steps(name)) == NUM_STEPS
    assert_nothing_is_left(cluster, *numbers.values())
