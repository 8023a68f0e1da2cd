"""Settings of the recipe that fine-tunes a simulator."""

from dataclasses import dataclass, field
from typing import ClassVar

from zs_nemo.config.guards import OnBadUpdate, OnCollapse
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.search import SearchConfig, SimulatedSearchConfig


@dataclass(kw_only=True)
class SftConfig:
    """``sft``: what is learned from."""

    examples: str = "runs/interactions"
    """Run directory of ``recipes/collect_interactions.py``, or a folder with its two files of examples, JSON lines or
    Parquet."""
    val_check_interval: int = 10
    """Steps between two measurements of the loss on held-out examples; one is made before the first and after the
    last in any case."""
    num_held_out: int = 256
    """Held-out examples that it is measured on; 0 for all."""

    def __post_init__(self) -> None:
        if self.val_check_interval < 1:
            raise ValueError(f"sft.val_check_interval={self.val_check_interval} must be at least 1")
        if self.num_held_out < 0:
            raise ValueError(f"sft.num_held_out={self.num_held_out} must be 0 (all) or positive")


@dataclass(kw_only=True)
class SftSimulatorRecipeConfig(RecipeConfig):
    """Everything that a fine-tuning depends on.

    ``policy`` is the model that is trained, ``search`` how it will be asked afterwards: its template is trained with.
    """

    has_engines: ClassVar[bool] = False

    search: SearchConfig = field(default_factory=SimulatedSearchConfig)
    sft: SftConfig = field(default_factory=SftConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.search, SimulatedSearchConfig):
            raise ValueError(
                "search is a real engine, but its settings say how the simulator will be asked; choose search=simulated"
            )
        if self.trainer.max_steps < 1:
            raise ValueError(f"trainer.max_steps={self.trainer.max_steps} must be at least 1: nothing would be learned")
        for name, kind, mildest in (("on_bad_update", OnBadUpdate, "skip"), ("on_collapse", OnCollapse, "warn")):
            if getattr(self.guards, name) is kind.rollback:
                raise ValueError(
                    f"guards.{name}=rollback goes on with other draws, and a fine-tuning learns from examples that are "
                    f"given; set guards.{name}={mildest} or stop"
                )
