import os
import signal
import subprocess
import sys
from pathlib import Path

from zs_nemo.cluster.held_folders import delete_abandoned, hold

HOLDER = """
import pathlib, signal, subprocess, sys
from zs_nemo.cluster.held_folders import hold
lock = hold(pathlib.Path(sys.argv[1]))
reaper = subprocess.Popen(["sleep", "60"], pass_fds=[lock], stdout=subprocess.DEVNULL)
print(reaper.pid, flush=True)
signal.pause()
"""


def test_a_folder_is_kept_while_the_run_or_its_reaper_lives_and_deleted_when_both_were_killed(tmp_path: Path) -> None:
    folder = tmp_path / "zsn-1"
    driver = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    reaper = int(driver.stdout.readline())
    try:
        (folder / "weights").touch()
        delete_abandoned([folder])
        driver.kill()
        driver.wait()
        delete_abandoned([folder])
        assert (folder / "weights").exists()
    finally:
        driver.kill()
        os.kill(reaper, signal.SIGKILL)
    # Until the kernel has taken the lock back.
    for _ in range(1000):
        delete_abandoned([folder])
        if not folder.exists():
            break
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_held_here_or_were_made_by_others_are_left_alone(tmp_path: Path) -> None:
    names = ("zsn-held", "zsn-job", "zsn-link", "zsn-gone")
    held, of_job, link, gone = (tmp_path / name for name in names)
    lock = hold(held)
    (of_job / "logs").mkdir(parents=True)
    abandoned = tmp_path / "elsewhere"
    os.close(hold(abandoned))
    link.symlink_to(abandoned)
    delete_abandoned([held, of_job, link, gone])
    assert held.is_dir() and (of_job / "logs").is_dir() and abandoned.is_dir()
    assert held.stat().st_mode & 0o077 == 0
    os.close(lock)
    delete_abandoned([held, of_job])
    assert not held.exists() and of_job.is_dir()
