"""Settings of the loggers beside TensorBoard, by NeMo's names. Credentials come from the environment alone."""

import re
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class WandbLoggerConfig:
    """``exp_manager.wandb_logger_kwargs``: the run's page on Weights & Biases; its key is ``WANDB_API_KEY``."""

    project: str = "zs_nemo"
    name: str = ""
    """Empty for ``exp_manager.name``."""
    entity: str = ""
    """User or team; empty for the key's own."""
    group: str = ""
    job_type: str = ""
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    id: str = ""
    """Of the run to write; empty makes one, which a resumed run finds again in its run directory."""
    offline: bool = False
    """Write into the run directory alone, for ``wandb sync`` later; needs no key."""

    def __post_init__(self) -> None:
        if bad := sorted(set(re.findall(r"[/\\#?%:]", self.id))):
            raise ValueError(
                f"exp_manager.wandb_logger_kwargs.id={self.id!r} must not hold {' '.join(bad)}; use letters, digits "
                "and dashes, or leave it empty"
            )
        if not self.project:
            raise ValueError("exp_manager.wandb_logger_kwargs.project is empty; name the project on W&B")


@dataclass(kw_only=True)
class MlflowLoggerConfig:
    """``exp_manager.mlflow_logger_kwargs``: the run on an MLflow server; credentials are ``MLFLOW_TRACKING_*``."""

    experiment_name: str = "zs_nemo"
    run_name: str = ""
    """Empty for ``exp_manager.name``."""
    tracking_uri: str = ""
    """Address of the server; empty takes ``MLFLOW_TRACKING_URI``, and without that MLflow's default, local files."""
    artifact_location: str = ""
    """Of an experiment that does not exist yet; empty for the server's default."""
    tags: dict[str, str] = field(default_factory=dict)
    run_id: str = ""
    """Of the run to write; empty makes one, which a resumed run finds again in its run directory."""

    def __post_init__(self) -> None:
        if re.search(r"://[^/]*@", self.tracking_uri):
            # The address itself is not repeated: it holds a password.
            raise ValueError(
                "exp_manager.mlflow_logger_kwargs.tracking_uri holds a user name or a password; leave them out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        if not self.experiment_name:
            raise ValueError("exp_manager.mlflow_logger_kwargs.experiment_name is empty; name the experiment on MLflow")
