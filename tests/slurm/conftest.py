"""The cluster that the tests of this folder share, and the runs that they compare with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster, missing
from tests.slurm.jobs import Jobs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes under SLURM; where they cannot be had the tests are skipped, with the reason."""
    if reason := missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="session")
def jobs(cluster: SlurmCluster, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Submits the shipped scripts with settings of a few seconds a step."""
    return Jobs(cluster, tiny_model, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def run_through(jobs: Jobs) -> Path:
    """Return the run directory of a job over two nodes that nothing broke off."""
    number = jobs.submit("through")
    jobs.must_complete(number, "through")
    return jobs.folder / "through"
