"""Stand-ins for the packages of W&B and MLflow that record what they are told."""

from types import SimpleNamespace
from typing import Any


class Wandb:
    """The part of ``wandb`` that is used. Set ``broken`` for a server that fails at every call from then on."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.axes: dict[str, str | None] = {}
        self.exit_codes: list[int] = []
        self.broken: Exception | None = None
        self.Settings = SimpleNamespace

    def init(self, **arguments: Any) -> "Wandb":
        self.check()
        self.inits.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, row: dict[str, Any]) -> None:
        self.check()
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)

    def check(self) -> None:
        if self.broken is not None:
            raise self.broken


class Mlflow:
    """The part of ``mlflow`` that is used; also its own client."""

    def __init__(self) -> None:
        self.uris: list[str | None] = []
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: (key, value, step), Param=lambda key, value: (key, value)
        )

    def MlflowClient(self, tracking_uri: str | None) -> "Mlflow":
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        self.experiments[name] = f"experiment-{len(self.experiments)}"
        return self.experiments[name]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        run_id = f"run-{len(self.runs)}"
        self.runs[run_id] = {
            "experiment": experiment,
            "tags": tags,
            "name": run_name,
            "status": ["RUNNING"],
            "metrics": [],
            "params": {},
        }
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"].append(status)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"].append(status)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        self.runs[run_id]["metrics"] += metrics
        self.runs[run_id]["params"] |= dict(params)
