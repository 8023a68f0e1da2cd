"""Real processes, killed for real: nothing that carries a run's marker outlives its driver."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from zs_nemo.cluster.reaper import marked_processes

pytestmark = pytest.mark.faults

# The driver starts a child that ignores SIGTERM, which starts a grandchild in a session of its own.
DRIVER = """
import os, subprocess, sys, time, pathlib
from zs_nemo.cluster.reaper import MARKER, Reaper
token, folder = sys.argv[1:]
reaper = Reaper(token, [pathlib.Path(folder)])
os.environ[MARKER] = token
grandchild = "import time; time.sleep(300)"
child = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    f"subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True); time.sleep(300)"
)
subprocess.Popen([sys.executable, "-c", child])
if os.fork() == 0:
    time.sleep(300)
print("ready", flush=True)
END
"""

RAY_DRIVER = """
import sys, time, pathlib
from zs_nemo.cluster.ray_session import RaySession

class Sleeper:
    def spawn(self):
        import subprocess
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]).pid

if __name__ == "__main__":
    session = RaySession("", num_processes=2, num_gpus=0, logs=pathlib.Path(sys.argv[1]), startup_timeout_s=120.0)
    import ray
    actors = [ray.remote(Sleeper).remote() for _ in range(2)]
    ray.get([actor.spawn.remote() for actor in actors])
    print(session.token, session._ray_folder, session.shm_folder, flush=True)
    END
"""


def wait_until(condition: Callable[[], bool], timeout_s: float) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, f"not within {timeout_s} s"
        time.sleep(0.05)
    return time.monotonic() - start


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def is_running(pid: int) -> bool:
    # A zombie has ended; when it is collected is up to the machine's init process.
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_killed_driver_leaves_no_process_and_no_folder(tmp_path: Path, number: signal.Signals) -> None:
    token, folder = f"test-{os.getpid()}-{number}", tmp_path / "session"
    folder.mkdir()
    (folder / "socket").touch()
    driver = start(DRIVER.replace("END", "time.sleep(300)"), token, str(folder))
    assert driver.stdout is not None and driver.stdout.readline() == "ready\n"
    # The forked copy of the driver has the driver's own environment, so no marker: it must not hold up the others.
    wait_until(lambda: len(marked_processes(token)) == 2, 10)
    os.kill(driver.pid, number)
    wait_until(lambda: not marked_processes(token) and not folder.exists(), 8)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


def test_a_driver_that_ends_in_order_waits_for_the_reaper(tmp_path: Path) -> None:
    token, folder = f"test-{os.getpid()}-finish", tmp_path / "session"
    folder.mkdir()
    driver = start(DRIVER.replace("END", "reaper.finish()"), token, str(folder))
    assert driver.stdout is not None and driver.stdout.readline() == "ready\n"
    assert driver.wait(10) == 0
    assert not marked_processes(token) and not folder.exists()
    os.killpg(driver.pid, signal.SIGKILL)


def test_processes_of_another_run_are_left_alone(tmp_path: Path) -> None:
    environment = os.environ | {"ZS_NEMO_RUN_TOKEN": f"other-{os.getpid()}"}
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
    try:
        driver = start(DRIVER.replace("END", "reaper.finish()"), f"test-{os.getpid()}-mine", str(tmp_path / "gone"))
        assert driver.wait(15) == 0
        assert other.poll() is None
        os.killpg(driver.pid, signal.SIGKILL)
    finally:
        other.kill()
        other.wait()


def test_ray_and_the_children_of_its_actors_end_with_a_killed_driver(tmp_path: Path) -> None:
    driver = start(RAY_DRIVER.replace("END", "time.sleep(300)"), str(tmp_path))
    assert driver.stdout is not None
    token, ray_folder, shm_folder = driver.stdout.readline().split()
    pids = marked_processes(token)
    # Ray's own six or more, two actors, two children of theirs.
    assert len(pids) >= 10
    assert Path(ray_folder).exists() and Path(shm_folder).exists()
    listening = _listening_addresses(pids)
    assert listening and all(address.endswith("127.0.0.1") for address in listening), listening
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not any(map(is_running, pids)) and not marked_processes(token), 10)
    wait_until(lambda: not Path(ray_folder).exists() and not Path(shm_folder).exists(), 3)


def _listening_addresses(pids: list[int]) -> set[str]:
    return {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids
    }
