"""What a recipe's command does around its work: messages instead of stack traces, and exit codes."""

import contextlib
import itertools
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from zs_nemo.cluster.recovery import record_death
from zs_nemo.cluster.roles import RanksLost, RoleError
from zs_nemo.cluster.settled_config import settled
from zs_nemo.cluster.stop_causes import cause_of, describe
from zs_nemo.cluster.stop_request import PROCESS_STOP, StoppedBySignal
from zs_nemo.config.registry import Config, to_dataclass
from zs_nemo.observability.faults import FaultKind
from zs_nemo.observability.files import write_text
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import LockedByFormerLifeError, RunDir

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75
"""Stopped as SIGTERM or SIGUSR1 asked, with a checkpoint: ``EX_TEMPFAIL``, try again. launch/slurm requeues on it."""
EXIT_INTERRUPTED = 130

REPORT_FILES = ("report.html", "report.json")
"""Collections and fine-tunings of earlier versions have the second alone."""

Train = Callable[[Config, RunDir, Progress], Path]


def run_in_terminal(composed: DictConfig | Callable[[], DictConfig], kind: type[Config], train: Train[Config]) -> int:
    """Run ``train`` with a configuration of its kind, or what makes one; return the exit code.

    0 is done, 1 failed on the way, 2 refused input, 75 stopped by SIGTERM or SIGUSR1, or kept out by a lock of what the
    job was before, 130 interrupted by Ctrl-C. When training ranks die, ``train`` is called again and resumes,
    ``faults.max_group_restarts`` times.
    """
    PROCESS_STOP.listen()
    try:
        cfg = settled(to_dataclass(composed() if callable(composed) else composed, kind))
        path = Path(cfg.exp_manager.exp_dir) / cfg.exp_manager.name
        try:
            return _run(cfg, path, train)
        except OSError as error:
            # Of the run directory itself, when it is opened or closed.
            return _failed(error, path)
    except LockedByFormerLifeError as error:
        # Refused too, but not for long.
        sys.stderr.write(f"error: {error}\n")
        return EXIT_STOPPED
    except ValueError as error:
        # Every check of ours raises it with the setting, the rule and the remedy; a stack trace would bury them.
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as interrupt:
        stopped = isinstance(interrupt, StoppedBySignal)
        how, command = "stopped by a signal" if stopped else "interrupted", shlex.join(["python", *sys.argv])
        sys.stdout.write(f"\n{how}; all processes are ended. Go on from the last checkpoint with:\n  {command}\n")
        return EXIT_STOPPED if stopped else EXIT_INTERRUPTED


def _run(cfg: Config, path: Path, train: Train[Config]) -> int:
    """Train in this process until it is done or has failed for good; every attempt is a session of the run."""
    for returns in itertools.count():
        with RunDir(path, cfg) as run_dir:
            if run_dir.finished:
                report = next(filter(Path.exists, (run_dir.path / name for name in REPORT_FILES)), run_dir.path)
                sys.stdout.write(
                    f"this run is already done: {report}\nfor another one give it a name: exp_manager.name=NAME\n"
                )
                return 0
            run_dir.begin()
            try:
                return _train(cfg, run_dir, train)
            except RanksLost as error:
                record_death(FaultKind.ranks_lost, error, cfg.faults, run_dir.faults)
                run_dir.save_state()
                if PROCESS_STOP.requested:
                    # Somebody wants the run to end: it has its last checkpoint.
                    raise StoppedBySignal from error
                limit = cfg.faults.max_group_restarts
                if returns >= limit:
                    spent = f"no return to a checkpoint is left: faults.max_group_restarts={limit}"
                    return _failed(RanksLost.saying(f"{error}\n{spent}", error), path)
            except (RuntimeError, OSError) as error:
                if PROCESS_STOP.requested and isinstance(error, RoleError) and error.died:
                    # The signal went to all processes of the job, and an engine was the first to be missed.
                    raise StoppedBySignal from error
                return _failed(error, path)
        sys.stdout.write(f"all processes are started again, from the last checkpoint ({returns + 1} of {limit})\n")
        sys.stdout.flush()
    raise AssertionError("the loop ends by itself")


def _train(cfg: Config, run_dir: RunDir, train: Train[Config]) -> int:
    try:
        with Progress(cfg.exp_manager.name) as progress:
            report = train(cfg, run_dir, progress)
    except ValueError:
        write_text(run_dir.path / "logs" / "driver_error.log", traceback.format_exc())
        raise
    sys.stdout.write(f"done. The report: {report}\n")
    return 0


def _failed(error: Exception, path: Path) -> int:
    """Say what has failed: the message names what and where, and the stack is for the log."""
    log = path / "logs" / "driver_error.log"
    with contextlib.suppress(OSError):
        write_text(log, "".join(traceback.format_exception(error)))
    cause = cause_of(error, path)
    told = describe(cause, error, path) if cause is not None else str(error)
    sys.stderr.write(f"error: {told}\nstack trace: {log}\nThe same command goes on from the last checkpoint.\n")
    return EXIT_FAILED


def run_command(composed: DictConfig, kind: type[Any], work: Callable[[Any], None]) -> int:
    """Run a command that has no run directory, with settings of its ``kind``; return the exit code.

    0 is done, 1 failed on the way, 2 refused input, 130 interrupted, also by SIGTERM.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        work(to_dataclass(composed, kind))
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_INPUT
    except (RuntimeError, TimeoutError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
