"""A run on an MLflow server. Its id is kept in ``loggers/mlflow.json``: a resumed run goes on with it."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zs_nemo.config.loggers import MlflowLoggerConfig
from zs_nemo.observability.config_file import flat
from zs_nemo.observability.files import read_json, write_json
from zs_nemo.observability.phase import Phase

# What one request may hold by MLflow's protocol.
_PARAMS_PER_REQUEST = 100
_LONGEST_PARAM = 500


class MlflowLogger:
    """Writes one run through a client, which works in any thread. ``mlflow`` is the imported package."""

    def __init__(
        self, mlflow: Any, kwargs: MlflowLoggerConfig, run_dir: Path, *, name: str, settings: Mapping[str, Any]
    ) -> None:
        self._mlflow = mlflow
        self._client = mlflow.MlflowClient(tracking_uri=kwargs.tracking_uri or None)
        kept = run_dir / "loggers" / "mlflow.json"
        known = kwargs.run_id or read_json(kept, {}).get("run_id")
        if known:
            self._run_id = str(known)
            self._client.update_run(self._run_id, status="RUNNING")
            return
        experiment = self._experiment(kwargs)
        self._run_id = self._client.create_run(experiment, tags=dict(kwargs.tags), run_name=name).info.run_id
        write_json(kept, {"run_id": self._run_id})
        self._log_settings(settings)

    def log(self, step: int, metrics: Mapping[str, float], phase: Phase) -> None:
        """Send one row in one request."""
        now = round(1000 * time.time())
        entries = [
            self._mlflow.entities.Metric(phase.metric(name), float(value), now, step)
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        self._client.log_batch(self._run_id, metrics=entries)

    def close(self, *, finished: bool) -> None:
        """Mark the run as finished, or as killed until it is resumed."""
        self._client.set_terminated(self._run_id, status="FINISHED" if finished else "KILLED")

    def _experiment(self, kwargs: MlflowLoggerConfig) -> str:
        found = self._client.get_experiment_by_name(kwargs.experiment_name)
        if found is not None:
            return str(found.experiment_id)
        location = kwargs.artifact_location or None
        return str(self._client.create_experiment(kwargs.experiment_name, artifact_location=location))

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        params = [
            self._mlflow.entities.Param(key, str(value)[:_LONGEST_PARAM]) for key, value in flat(settings).items()
        ]
        for start in range(0, len(params), _PARAMS_PER_REQUEST):
            self._client.log_batch(self._run_id, params=params[start : start + _PARAMS_PER_REQUEST])
