"""A whole system that is broken off by Ctrl-C or SIGKILL: nothing of it is left within seconds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from zs_nemo.cluster.reaper import marked_processes

# The system alone; that a user's whole run leaves nothing behind is seen in test_grpo_recipe.py each time.
pytestmark = [pytest.mark.faults, pytest.mark.long]

DRIVER = """
import asyncio, sys
from pathlib import Path
from tests.functional.test_system import PROMPTS, tiny_config
from zs_nemo.cluster.system import System
from zs_nemo.types.generation import SamplingParams

async def for_ever(engine):
    print(engine_token, flush=True)
    while True:
        sampling = SamplingParams(max_tokens=200)
        await asyncio.gather(*[engine.generate(ids, sampling, seed) for seed, ids in enumerate(PROMPTS)])

if __name__ == "__main__":
    with System.start(tiny_config(Path(sys.argv[1])), Path(sys.argv[2])) as system:
        engine_token = system._session.token
        asyncio.run(for_ever(system.generation))
"""


def is_running(pid: int) -> bool:
    # A zombie has ended; when it is collected is up to the machine's init process.
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, id="Ctrl-C"), pytest.param(signal.SIGKILL, id="SIGKILL")]
)
def test_a_run_that_is_broken_off_leaves_nothing_behind(
    tiny_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tiny_model), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A group of its own, so that the signal reaches what a terminal's Ctrl-C would reach.
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        errors = break_off(driver, number)
    finally:
        # The run's reaper ends what a failed test leaves.
        driver.kill()
    if number is signal.SIGINT:
        assert errors.rstrip().endswith("KeyboardInterrupt"), errors
        assert errors.count("Traceback") <= 2, errors


def break_off(driver: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send the driver the signal once it works, see all its processes end, and return what it wrote of errors."""
    assert driver.stdout is not None
    token = driver.stdout.readline().strip()
    assert len(token) == 32, driver.communicate()[1]
    time.sleep(1)
    pids = marked_processes(token)
    assert len(pids) >= 10, pids
    sent = time.monotonic()
    os.killpg(driver.pid, number) if number is signal.SIGINT else os.kill(driver.pid, number)
    while any(map(is_running, pids)) or driver.poll() is None or list(Path("/dev/shm").glob(f"*{token[:8]}*")):
        assert time.monotonic() - sent < 15, "processes are left"
        time.sleep(0.1)
    _, errors = driver.communicate()
    assert not marked_processes(token)
    return errors
