"""One rank of the doctor's look at an allocation: does it see the run directory, meet the others, and how fast.

Started once per GPU, or per core where there is none, by SLURM or by the doctor itself. Prints a ``RankReport`` as
a line of JSON when it has looked, and fuller ones when the ranks have met. They find rank 0 through a file in the run
directory.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from zs_nemo.cluster.doctor import RankReport

TOKEN, RENDEZVOUS = "token", "rendezvous"
"""Files in the doctor's folder: its own, and the address of rank 0."""
MARK = "zs-nemo-probe "
"""Begins the line of a report: what libraries print besides is not one."""
# NFS may say for a minute that a file is not there.
_MEET_S = 120.0
_REPETITIONS = 5
_BYTES = {"nccl": 256 * 2**20, "gloo": 16 * 2**20}


def main() -> None:
    """Look, and print the reports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("world_size", type=int)
    arguments = parser.parse_args()
    rank = int(os.environ.get("SLURM_PROCID") or os.environ["RANK"])
    local_rank = int(os.environ.get("SLURM_LOCALID") or rank)
    # Two slurmd on one machine share its name, not SLURM's.
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    report = RankReport(rank=rank, node=node, sees_folder=appears(arguments.folder / TOKEN))
    # Whether the folder is there is known also where the ranks wait for each other until they are ended.
    _print(report)
    if report.sees_folder:
        for fuller in meet(report, arguments.folder, arguments.world_size, local_rank):
            _print(fuller)


def _print(report: RankReport) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(dataclasses.asdict(report))}\n")
    sys.stdout.flush()


def meet(report: RankReport, folder: Path, world_size: int, local_rank: int) -> Iterator[RankReport]:
    """Yield the report with what the collective over all ranks showed, and with GPUs that over their CPUs too."""
    import torch
    import torch.distributed as dist

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    store = _store(folder / RENDEZVOUS, report.rank, world_size)
    dist.init_process_group(
        backend, store=store, rank=report.rank, world_size=world_size, timeout=timedelta(seconds=_MEET_S)
    )
    device = "cuda" if backend == "nccl" else "cpu"
    values = torch.ones(_BYTES[backend] // 4, device=device)
    dist.all_reduce(values)
    now = time.time()
    began = time.perf_counter()
    for _ in range(_REPETITIONS):
        dist.all_reduce(values)
    if backend == "nccl":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / _REPETITIONS
    dist.barrier()
    # What every rank sends and receives in a ring, whatever the number of ranks.
    moved = 2 * (world_size - 1) / world_size * _BYTES[backend]
    report = dataclasses.replace(
        report, num_gpus=torch.cuda.device_count(), met=True, time_s=now, bus_gb_per_s=moved / seconds / 1e9
    )
    yield report
    if backend == "nccl":
        # Another network may carry it, and it finds its address in another way.
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=_MEET_S))
        dist.all_reduce(torch.ones(1), group=group)
        yield dataclasses.replace(report, met_by_gloo=True)
    dist.destroy_process_group()


def _store(file: Path, rank: int, world_size: int) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    timeout = timedelta(seconds=_MEET_S)
    if rank == 0:
        address = own_address()
        store = TCPStore(address, 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        partial = file.with_suffix(".partial")
        partial.write_text(f"{address} {store.port}")
        partial.rename(file)
        return store
    if not appears(file):
        raise RuntimeError(f"rank 0 did not say within {_MEET_S:.0f} s where it is")
    address, port = file.read_text().split()
    return TCPStore(address, int(port), world_size, is_master=False, timeout=timeout)


def appears(file: Path, timeout_s: float = _MEET_S) -> bool:
    """Wait for a file of another node: network file systems may show it late."""
    deadline = time.monotonic() + timeout_s
    while not (found := _is_there(file)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _is_there(file: Path) -> bool:
    """Look into the folder first: NFS remembers that a file was not there, but not once its folder was read again."""
    with contextlib.suppress(OSError):
        os.listdir(file.parent)
    return file.is_file()


def own_address() -> str:
    """Return an IPv4 address by which other machines reach this one; the loopback address if it has no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: the kernel only chooses the interface of the route.
            probe.connect(("192.0.2.1", 9))
            address: str = probe.getsockname()[0]
            return address
        except OSError:
            pass
    found = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family is socket.AF_INET and not entry.address.startswith("127.")
    ]
    return found[0] if found else "127.0.0.1"


if __name__ == "__main__":
    main()
