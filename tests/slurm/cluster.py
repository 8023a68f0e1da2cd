"""A real SLURM of two nodes on this machine, each with processes, network and shared memory of its own.

The nodes are Linux namespaces: what Ray and the recipes see is what they would see on two machines, with a file system
that both share. All of it hangs on one process; when that ends, so does everything in it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "setpriv", "unshare", "nsenter")
INSTALL = "apt-get install slurm-wlm munge iproute2 (Debian and Ubuntu)"
NODES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
LOGIN = "10.77.0.254"
_NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
# The shell collects what is left to it by processes that end, as a machine's init does.
_HOLD = ("sh", "-c", "while :; do sleep 3600 & wait; done")
_CONFIGURATION = """
ClusterName=test
SlurmctldHost=login({login})
SlurmUser=root
# Of the jobs' numbers folders under /tmp are named.
FirstJobId={first_job}
AuthType=auth/munge
CryptoType=crypto/munge
# A requeued job waits until the credentials of its last life are void: two minutes, if nothing else is said.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/{process_tracking}
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmdTimeout=20
NodeName=node1 NodeAddr={node1} CPUs=8 RealMemory=4000 State=UNKNOWN
NodeName=node2 NodeAddr={node2} CPUs=8 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=node1,node2 Default=YES MaxTime=INFINITE OverSubscribe=YES State=UP
"""


FREEZER = Path("/sys/fs/cgroup/freezer")
"""Where SLURM's proctrack/cgroup holds the processes of a step with cgroups of the first version."""


def missing() -> str:
    """Return why there can be no such cluster here; nothing if there can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} not installed: {INSTALL}"
    tried = subprocess.run(["unshare", *_NAMESPACES, "--fork", "true"], capture_output=True, text=True)
    return f"needs namespaces of its own: {tried.stderr.strip()}" if tried.returncode else ""


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Return when the condition holds. Raises ``TimeoutError``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.2)


class SlurmCluster:
    """Use with ``with``."""

    def __init__(self, folder: Path, process_tracking: str = "linuxproc") -> None:
        """``folder`` takes configuration, states and logs.

        Of a signal every process of a step hears with ``linuxproc``, its tasks alone with ``cgroup``, SLURM's default.
        """
        self.folder = folder
        self.process_tracking = process_tracking
        self._login: int = 0
        self._nodes: dict[str, int] = {}
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the cluster."""
        if self._holder is not None:
            # The first process of a namespace takes all others with it.
            self._holder.kill()
            self._holder.wait()
            self._holder = None
        if self.process_tracking == "cgroup":
            # The deepest first.
            folders = [path for node in NODES for path in FREEZER.glob(f"slurm_{node}/**/")]
            for path in sorted(folders, reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node, in the project's folder."""
        environment = {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        inside = [*self._inside(self._login), f"--wd={ROOT}", *command]
        return subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=120)

    def output_of(self, *command: str, **variables: str) -> str:
        """Return what a command prints. Raises when it fails."""
        done = self.run(*command, **variables)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}")
        return done.stdout.strip()

    def submit(self, *arguments: str, **variables: str) -> str:
        """Submit a job and return its number."""
        return self.output_of("sbatch", "--parsable", *arguments, **variables)

    def job(self, number: str) -> dict[str, str]:
        """Return what ``scontrol show job`` knows, by name."""
        words = self.output_of("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_end(self, number: str, timeout_s: float) -> dict[str, str]:
        """Return the job when it is over; not when it is only to begin again."""
        last: dict[str, str] = {}

        def is_over() -> bool:
            nonlocal last
            last = self.job(number)
            return last["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "NODE_FAIL")

        wait_for(is_over, timeout_s, f"job {number} ends")
        return last

    def processes_of(self, node: str) -> list[psutil.Process]:
        """Return everything that runs on a node, apart from its daemon and what keeps it alive."""
        inside = psutil.Process(self._nodes[node])
        space = os.readlink(f"/proc/{inside.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/pid") == space and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return [process for process in found if process.name() not in ("sh", "sleep", "slurmd")]

    def cut_power(self, node: str) -> None:
        """End everything on a node at once, its slurmd included."""
        # Without its first process a namespace ends.
        os.kill(self._nodes.pop(node), signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Switch a node on."""
        self._nodes[node] = inner = self._hold(*self._inside(self._login))
        self._in(self._login, "-n", "ip", "link", "add", node, "type", "veth", "peer", "eth0", "netns", str(inner))
        self._in(self._login, "-n", "ip", "link", "set", node, "up", "master", "cluster")
        for words in (f"addr add {NODES[node]}/24 dev eth0", "link set eth0 up", "link set lo up"):
            self._in(inner, "-n", "ip", *words.split())
        self._in(inner, "-u", "hostname", node)
        self._in(inner, "-m", "mount", "-t", "tmpfs", "-o", "size=4g", "tmpfs", "/dev/shm")
        self._daemon(inner, "slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf"))

    def _start(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        addresses = {"login": LOGIN, **NODES}
        (self.folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                folder=self.folder, first_job=os.getpid(), process_tracking=self.process_tracking, **addresses
            )
        )
        # Read with proctrack/cgroup alone.
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={FREEZER.parent}\n")
        names = "".join(f"{address} {name}\n" for name, address in addresses.items())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._login = self._hold()
        for words in ("link add cluster type bridge", f"addr add {LOGIN}/24 dev cluster", "link set cluster up"):
            self._in(self._login, "-n", "ip", *words.split())
        self._in(self._login, "-n", "ip", "link", "set", "lo", "up")
        self._in(self._login, "-u", "hostname", "login")
        self._in(self._login, "-m", "mount", "--bind", str(self.folder / "hosts"), "/etc/hosts")
        files = {"key": key, "socket": "munge.socket", "pid": "munge.pid", "log": "munge.log", "seed": "munge.seed"}
        options = [f"--{name}-file={self.folder / file}" for name, file in files.items() if name != "socket"]
        self._daemon(self._login, "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *options)
        wait_for((self.folder / "munge.socket").exists, 20, "munged starts")
        self._daemon(self._login, "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self.start_node(node)
        wait_for(self.is_idle, 60, "the nodes come up")

    def is_idle(self) -> bool:
        """Return whether all nodes wait for work."""
        return self.run("sinfo", "--noheader", "--format=%T %D").stdout.strip() == f"idle {len(NODES)}"

    def _hold(self, *inside: str) -> int:
        """Make namespaces of their own and return the id of their first process, as this machine counts."""
        # However this process ends, the cluster ends with it.
        command = [
            *inside,
            "setpriv",
            "--pdeathsig=KILL",
            "unshare",
            *_NAMESPACES,
            "--fork",
            "--kill-child",
            "--mount-proc",
            *_HOLD,
        ]
        starter = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        if not inside:
            self._holder = starter
        first: list[psutil.Process] = []

        def is_there() -> bool:
            first[:] = [each for each in psutil.Process(starter.pid).children(recursive=True) if each.name() == "sh"]
            return bool(first)

        wait_for(is_there, 20, "namespaces are made")
        return first[0].pid

    def _inside(self, process: int) -> list[str]:
        return ["nsenter", f"--target={process}", *_NAMESPACES]

    def _in(self, process: int, space: str, *command: str) -> None:
        subprocess.run(["nsenter", f"--target={process}", space, *command], check=True)

    def _daemon(self, process: int, *command: str) -> None:
        name = f"{Path(command[0]).name}-{process}.out"
        with (self.folder / name).open("ab") as output:
            subprocess.Popen([*self._inside(process), *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
