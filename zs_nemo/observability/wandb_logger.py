"""A run's page on Weights & Biases. Its id is kept in ``loggers/wandb.json``: a resumed run goes on with it."""

import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zs_nemo.config.loggers import WandbLoggerConfig
from zs_nemo.observability.files import read_json, write_json
from zs_nemo.observability.phase import Phase


class WandbLogger:
    """Writes one run. ``wandb`` is the imported package."""

    def __init__(
        self, wandb: Any, kwargs: WandbLoggerConfig, run_dir: Path, *, name: str, settings: Mapping[str, Any]
    ) -> None:
        self._run = wandb.init(
            project=kwargs.project,
            name=name,
            entity=kwargs.entity or None,
            group=kwargs.group or None,
            job_type=kwargs.job_type or None,
            notes=kwargs.notes or None,
            tags=list(kwargs.tags) or None,
            id=kwargs.id or _own_id(run_dir / "loggers" / "wandb.json"),
            resume="allow",
            dir=str(run_dir),
            config=dict(settings),
            # Settings such as trainer.devices may change on resume.
            allow_val_change=True,
            # None leaves the choice to WANDB_MODE.
            mode="offline" if kwargs.offline else None,
            save_code=False,
            # The terminal belongs to the progress panel.
            settings=wandb.Settings(console="off"),
        )
        for phase in Phase:
            # W&B's own count only rises; after a return to a checkpoint a step comes again.
            axis = phase.metric("step")
            self._run.define_metric(axis)
            self._run.define_metric(phase.metric("*"), step_metric=axis)

    def log(self, step: int, metrics: Mapping[str, float], phase: Phase) -> None:
        """Log one row over the steps of its phase."""
        finite = {phase.metric(name): value for name, value in metrics.items() if math.isfinite(value)}
        self._run.log({**finite, phase.metric("step"): step})

    def close(self, *, finished: bool) -> None:
        """Upload the rest and close the run; one that was broken off is marked as failed until it is resumed."""
        self._run.finish(exit_code=0 if finished else 1)


def _own_id(path: Path) -> str:
    known = read_json(path, {}).get("id")
    if known is None:
        known = uuid.uuid4().hex[:12]
        write_json(path, {"id": known})
    return str(known)
