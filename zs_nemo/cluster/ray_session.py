"""Starts Ray for one run, on loopback and out of sight, or joins a cluster that is already there."""

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from zs_nemo.cluster.held_folders import delete_abandoned, hold
from zs_nemo.cluster.reaper import MARKER, Reaper, end_processes

_LOGGER = logging.getLogger(__name__)
_SHM = Path("/dev/shm")
# shutil names every file that it could not copy.
_LONGEST_REASON = 300
_OBJECT_STORE_BYTES = 512 * 2**20
# Ray puts sockets under its folder, with about 60 characters of its own; a socket's path may have 107.
_LONGEST_TEMPORARY_ROOT = 30
_DAEMON = "raylet"
_PAUSE_S = 0.2
_ATTEMPTS = 3

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "0",
    # Process titles (ray::..., VLLM::...) would otherwise be written over the environment, where the marker is.
    "SPT_NOENV": "1",
    # Ray lowers the priority of its workers by 15, so that anything else on the machine starves them.
    "RAY_worker_niceness": "0",
}
# Without clusters of several machines, Ray 2.60 binds its ports to 127.0.0.1 instead of all interfaces. The name of the
# variable speaks of the systems on which this is the default.
_CLUSTER_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class RaySession:
    """Ray for the time of one run, with the reaper that ends whatever is left of it."""

    num_machines: int = 1
    """Machines of the cluster."""

    def __init__(
        self, address: str, num_processes: int, num_gpus: int, logs: Path, *, startup_timeout_s: float
    ) -> None:
        """Start Ray on this machine with room for ``num_processes`` actors, or join the cluster at ``address``.

        Raises ``TimeoutError`` if its daemon has not started after ``startup_timeout_s``, and ``ChildProcessError``
        when that has ended several times over.
        """
        self.token = uuid.uuid4().hex
        root = _temporary_root()
        delete_abandoned([*root.glob("zsn-*"), *_SHM.glob("zs_nemo-*")])
        self._ray_folder = root / f"zsn-{self.token[:8]}"
        self.shm_folder = _SHM / f"zs_nemo-{self.token[:8]}"
        self._logs, self._joined = logs, bool(address)
        folders = [self._ray_folder, self.shm_folder]
        self._locks = [hold(folder) for folder in folders]
        with sigusr1_held_back():
            self._reaper = Reaper(self.token, folders, self._locks)
        try:
            with sigusr1_held_back():
                self._start(address, num_processes, num_gpus, startup_timeout_s)
        except BaseException:
            self.close(failed=True)
            raise

    def _start(self, address: str, num_processes: int, num_gpus: int, startup_timeout_s: float) -> None:
        os.environ[MARKER] = self.token
        os.environ.update(_ENVIRONMENT)
        os.environ[_CLUSTER_VARIABLE] = "1" if address else "0"
        import ray
        from ray._private import ray_constants

        # The variable is for Ray's processes; here it was read at the first import of ray, maybe before this.
        ray_constants.ENABLE_RAY_CLUSTER = bool(address)
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        if address:
            ray.init(address=address, **quiet)
            self.num_machines = sum(bool(node["Alive"]) for node in ray.nodes())
        else:
            # Which shells on a cluster of Ray have set: this process and those of the run would go there.
            os.environ.pop("RAY_ADDRESS", None)
            self._start_daemon(
                startup_timeout_s,
                num_cpus=num_processes,
                num_gpus=num_gpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=str(self._ray_folder),
                **quiet,
            )
        # Ray puts a handler of its own in place, which ends the process at once, with a stack trace.
        if on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)

    def _start_daemon(self, timeout_s: float, **settings: Any) -> None:
        """Start Ray, anew where its daemon ends: it gives helpers of its own 15 s (Ray's issue 65983)."""
        import ray

        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                with patience_with_daemon(timeout_s):
                    ray.init(**settings)
                return
            except ChildProcessError:
                if not attempts_left:
                    raise
                # Nothing else of the run has been started yet.
                end_processes(self.token)

    def close(self, *, failed: bool = False) -> None:
        """End Ray and every process of the run; after a failure Ray's own logs are kept beside the roles' logs."""
        import ray

        try:
            ray.shutdown()
            if failed:
                self._keep_logs()
        finally:
            self._reaper.finish()
            while self._locks:
                os.close(self._locks.pop())
            if os.environ.get(MARKER) == self.token:
                del os.environ[MARKER]

    def _keep_logs(self) -> None:
        kept = self._logs / "ray"
        # Of a cluster that was there already, this machine's: launch/slurm starts one for a job alone, and says where.
        of_job = Path(os.environ["RAY_TMPDIR"], "ray") if self._joined and os.environ.get("RAY_TMPDIR") else None
        try:
            for source in (of_job or self._ray_folder).glob("session_2*/logs"):
                shutil.copytree(source, kept, dirs_exist_ok=True)
        except OSError as error:
            # What the run has failed of is what a person must read: a full disk fails here once more.
            _LOGGER.warning("Ray's own logs could not be kept in %s: %s", kept, str(error)[:_LONGEST_REASON])


@contextlib.contextmanager
def patience_with_daemon(timeout_s: float) -> Iterator[None]:
    """While open, ``ray.init`` waits for the daemon that it starts for as long as that lives, ``timeout_s`` at most.

    By itself it gives up after 30 s, which a busy machine may need, and waits as long for a daemon that has ended.
    """
    from ray._private import services

    registered, deadline = services.get_node, time.monotonic() + timeout_s

    def wait_until_registered(*arguments: Any) -> Any:
        while True:
            try:
                return registered(*arguments)
            except RuntimeError as error:
                if not _has_daemon():
                    raise ChildProcessError(
                        "Ray's daemon ended while it started; what it wrote is in logs/ray of the run directory"
                    ) from error
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"Ray's daemon did not start within cluster.startup_timeout_s={timeout_s:g}; end what else "
                        "keeps the machine busy, or raise it"
                    ) from error
                time.sleep(_PAUSE_S)

    services.get_node = wait_until_registered
    try:
        yield
    finally:
        services.get_node = registered


def _has_daemon() -> bool:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == _DAEMON and child.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


@contextlib.contextmanager
def sigusr1_held_back() -> Iterator[None]:
    """While open, processes that are started never hear SIGUSR1, nor do those that they start.

    A scheduler may send it to every process of a job: it asks the driver to stop, and would end all others. The driver
    hears it when this is closed.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _temporary_root() -> Path:
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) <= _LONGEST_TEMPORARY_ROOT else Path("/tmp")
