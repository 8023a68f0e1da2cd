"""A real run survives each fault, injected at a random moment. ``launch/faults.sh`` does the same many times over."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.functional.injected_faults import FAULTS, ROOT, Plan, run_trial, undisturbed

pytestmark = pytest.mark.faults

NUM_STEPS = 8
TOGETHER = [("engine", "simulator", "policy_rank", "hang"), ("driver", "torn_checkpoint"), ("full_disk",)]
"""Every fault once. Those of one run come one after the other, in any order."""

FILLS_ITS_DISK = """
import sys
from omegaconf import OmegaConf
from tests.unit.observability.runs import config
from zs_nemo.cluster.terminal import run_in_terminal
from zs_nemo.config.recipe import GrpoRecipeConfig

def train(cfg, run_dir, progress):
    for step in range(100_000):
        run_dir.log_step(step, {f"reward/{number}": 0.5 for number in range(1000)})

cfg = config()
cfg.exp_manager.exp_dir = sys.argv[1]
sys.exit(run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, train))
"""


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run without faults."""
    folder = tmp_path_factory.mktemp("faults")
    undisturbed(tiny_model, folder, NUM_STEPS)
    return folder


def mounts_are_allowed() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run(["unshare", "-Urm", "true"]).returncode == 0


def test_no_fault_is_forgotten() -> None:
    assert sorted(fault for faults in TOGETHER for fault in faults) == sorted(FAULTS)


@pytest.mark.long
@pytest.mark.parametrize("faults", TOGETHER, ids="-".join)
def test_a_run_survives_faults_at_random_moments(faults: tuple[str, ...], tiny_model: Path, folder: Path) -> None:
    if "full_disk" in faults and not mounts_are_allowed():
        pytest.skip("this machine lets nobody mount a small disk (unshare -Urm)")
    order = tuple(random.SystemRandom().sample(faults, len(faults)))
    seed = random.SystemRandom().randrange(10**6)
    trial = run_trial("_".join(order), Plan(num_steps=NUM_STEPS, faults=order), tiny_model, folder, seed=seed)
    assert trial.survived and [each.fault for each in trial.injections] == list(order), (order, seed, trial)


def test_a_disk_that_is_really_full_ends_a_run_with_a_message_and_the_reason(tmp_path: Path) -> None:
    """The run's files alone: no process computes anything."""
    if not mounts_are_allowed():
        pytest.skip("this machine lets nobody mount a small disk (unshare -Urm)")
    script = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "$0" -c "$1" {tmp_path}'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, sys.executable, FILLS_ITS_DISK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    # TensorBoard's own thread may say something in between.
    assert "error: disk full (0 MiB are free in " in done.stderr
    assert "The same command goes on from the last checkpoint.\n" in done.stderr
