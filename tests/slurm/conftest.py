"""The cluster that the tests of this folder share, and the runs that they compare with."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import FREEZER, SlurmCluster, missing
from tests.slurm.jobs import Jobs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes under SLURM; where they cannot be had the tests are skipped, with the reason."""
    if reason := missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="module", params=["every process", "the tasks alone"])
def signalling(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes under a SLURM that signals every process of a step, then under one that signals its tasks alone."""
    if request.param == "every process":
        yield request.getfixturevalue("cluster")
        return
    if reason := missing():
        pytest.skip(reason)
    if not os.access(FREEZER, os.W_OK):
        pytest.skip(f"{FREEZER} cannot be written to")
    with SlurmCluster(tmp_path_factory.mktemp("slurm"), "cgroup") as started:
        yield started


@pytest.fixture(scope="session")
def jobs(cluster: SlurmCluster, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Submits the shipped scripts with settings of a few seconds a step."""
    return Jobs(cluster, tiny_model, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def signalled_jobs(signalling: SlurmCluster, jobs: Jobs, tiny_model: Path) -> Jobs:
    """Submit to the cluster of ``signalling``; the runs lie beside those of ``jobs``."""
    return Jobs(signalling, tiny_model, jobs.folder)


@pytest.fixture(scope="session")
def run_through(jobs: Jobs) -> Path:
    """Return the run directory of a job over two nodes that nothing broke off."""
    number = jobs.submit("through")
    jobs.must_complete(number, "through")
    return jobs.folder / "through"
