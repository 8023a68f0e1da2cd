"""Who else is told how a run goes: Weights & Biases and MLflow, where they are asked for.

A logger works in a thread of its own: a server that answers slowly, or not at all, costs the run neither time nor its
life. What a logger missed is in ``metrics.jsonl``.
"""

import importlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from zs_nemo.config.experiment import ExpManagerConfig
from zs_nemo.observability.config_file import REDACTED, names_credential, redact
from zs_nemo.observability.mlflow_logger import MlflowLogger
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.wandb_logger import WandbLogger

_LOGGER = logging.getLogger(__name__)
_CAPACITY = 1000
_CLOSE_TIMEOUT_S = 15.0
_LONGEST_MESSAGE = 300


class MetricsLogger(Protocol):
    """Is told the metrics of every step."""

    def log(self, step: int, metrics: Mapping[str, float], phase: Phase) -> None:
        """Take the metrics of one step of a phase."""

    def close(self, *, finished: bool) -> None:
        """Send what is left; ``finished`` says whether the run came to its end or may be resumed."""


class BackgroundLogger:
    """Gives rows to a logger from a thread, and warns once of its first failure. It never raises and never waits."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], MetricsLogger],
        *,
        capacity: int = _CAPACITY,
        close_timeout_s: float = _CLOSE_TIMEOUT_S,
    ) -> None:
        """Connect at once, in the thread; a connection that fails is tried again with every row."""
        self._name = name
        self._connect = connect
        self._capacity = capacity
        self._close_timeout_s = close_timeout_s
        self._logger: MetricsLogger | None = None
        self._has_warned = False
        # None is the end.
        self._rows: queue.SimpleQueue[tuple[int, dict[str, float], Phase] | None] = queue.SimpleQueue()
        self._finished = False
        self._thread = threading.Thread(target=self._work, name=f"{name}-logger", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float], phase: Phase) -> None:
        """Hand over one row; it is dropped while too many others wait."""
        if self._rows.qsize() < self._capacity:
            self._rows.put((step, dict(metrics), phase))
        else:
            self._warn(f"it does not keep up; step {step} is left out")

    def close(self, *, finished: bool) -> None:
        """Let the thread send what waits, for a limited time."""
        self._finished = finished
        self._rows.put(None)
        self._thread.join(self._close_timeout_s)
        if self._thread.is_alive():
            self._warn(f"it has not taken everything within {self._close_timeout_s:g} s")

    def _work(self) -> None:
        self._attempt(self._connected)
        while (row := self._rows.get()) is not None:
            self._attempt(lambda row=row: self._connected().log(*row))  # type: ignore[misc]
        if self._logger is not None:
            logger = self._logger
            self._attempt(lambda: logger.close(finished=self._finished))

    def _connected(self) -> MetricsLogger:
        if self._logger is None:
            self._logger = self._connect()
        return self._logger

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  (the border to a package of others: the run must go on)
            self._warn(_described(error))

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _LOGGER.warning(
                "the %s logger failed (%s); the run goes on, and metrics.jsonl has what it missed", self._name, what
            )


def start_loggers(cfg: ExpManagerConfig, run_dir: Path, config_yaml: str) -> list[BackgroundLogger]:
    """Start the loggers that the settings ask for; ``config_yaml`` is what they show as the run's settings.

    Raises ``ValueError`` for a package that is not installed and a key that is not in the environment.
    """
    settings: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(config_yaml))  # type: ignore[assignment]
    starts: list[tuple[str, Callable[[], MetricsLogger]]] = []
    if cfg.create_wandb_logger:
        starts.append(("wandb", _wandb(cfg, run_dir, settings)))
    if cfg.create_mlflow_logger:
        starts.append(("mlflow", _mlflow(cfg, run_dir, settings)))
    return [BackgroundLogger(name, connect) for name, connect in starts]


def _wandb(cfg: ExpManagerConfig, run_dir: Path, settings: Mapping[str, Any]) -> Callable[[], MetricsLogger]:
    wandb = _package("wandb", "exp_manager.create_wandb_logger")
    kwargs = cfg.wandb_logger_kwargs
    is_online = not kwargs.offline and os.environ.get("WANDB_MODE", "online") not in ("offline", "disabled", "dryrun")
    if is_online and not os.environ.get("WANDB_API_KEY"):
        raise ValueError(
            "exp_manager.create_wandb_logger=true, but WANDB_API_KEY is not set in the environment; export the key "
            "that W&B shows under your user settings, or set exp_manager.wandb_logger_kwargs.offline=true"
        )
    return lambda: WandbLogger(wandb, kwargs, run_dir, name=kwargs.name or cfg.name, settings=settings)


def _mlflow(cfg: ExpManagerConfig, run_dir: Path, settings: Mapping[str, Any]) -> Callable[[], MetricsLogger]:
    mlflow = _package("mlflow", "exp_manager.create_mlflow_logger")
    kwargs = cfg.mlflow_logger_kwargs
    return lambda: MlflowLogger(mlflow, kwargs, run_dir, name=kwargs.run_name or cfg.name, settings=settings)


def _package(name: str, setting: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{setting}=true needs the Python package {name}, which cannot be imported ({_described(error)}); install "
            f"it beside zs-nemo (.venv/bin/python -m pip install {name}), or set {setting}=false"
        ) from error


def _described(error: Exception) -> str:
    """Return type and first line of an error without a credential in it."""
    first, *_ = str(error).splitlines() or [""]
    secrets = [value for name, value in os.environ.items() if names_credential(name) and len(value) > 3]
    for secret in sorted(secrets, key=len, reverse=True):
        first = first.replace(secret, REDACTED)
    return redact(f"{type(error).__name__}: {first[:_LONGEST_MESSAGE]}")
