import subprocess
import sys
import time
from pathlib import Path

import psutil

from zs_nemo.cluster.processes import ask_for_stacks, end, own_place

SLEEPER = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]); time.sleep(60)"
WRITER = """
import time
from zs_nemo.cluster.processes import answer_with_stacks
def stuck_here():
    print("ready", flush=True)
    time.sleep(60)
answer_with_stacks()
stuck_here()
"""


def test_a_process_is_ended_with_what_it_has_started() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT])
    process = psutil.Process(parent.pid)
    while not process.children():
        time.sleep(0.01)
    (child,) = process.children()
    end([(process.pid, process.create_time())])
    parent.wait(5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_another_process_that_got_the_number_of_an_ended_one_is_left_alone() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", SLEEPER])
    end([(sleeper.pid, psutil.Process(sleeper.pid).create_time() - 100)])
    assert sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()


def test_stacks_are_written_by_those_who_can_and_nobody_dies_of_the_question(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        writer = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, stderr=file, text=True)
    deaf = subprocess.Popen([sys.executable, "-c", SLEEPER])
    assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    processes = [(each.pid, psutil.Process(each.pid).create_time()) for each in (writer, deaf)]
    assert ask_for_stacks(processes) == 1
    deadline = time.monotonic() + 5
    while "stuck_here" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert writer.poll() is None and deaf.poll() is None
    for each in (writer, deaf):
        each.kill()
        each.wait()


def test_a_place_names_the_process_itself_first() -> None:
    place = own_place("node")
    assert place.processes[0][0] == psutil.Process().pid and place.node_id == "node" and place.host
