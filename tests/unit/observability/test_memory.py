import subprocess
import sys
import time

from zs_nemo.observability.memory import MemoryWatch, memory_bytes

CHILD = "block = bytearray(b'x') * (200 * 2**20); print('ready', flush=True); input()"


def test_the_memory_of_a_child_process_counts() -> None:
    before = memory_bytes()
    with MemoryWatch(interval_s=0.02) as watch:
        child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        during = memory_bytes()
        deadline = time.monotonic() + 5
        while watch.peak_gib * 2**30 < before + 190 * 2**20 and time.monotonic() < deadline:
            time.sleep(0.01)
        child.communicate(b"\n")
    assert during - before > 190 * 2**20
    assert watch.peak_gib * 2**30 >= before + 190 * 2**20
