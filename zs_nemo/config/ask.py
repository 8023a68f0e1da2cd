"""Settings of the recipe that asks a policy one question at the terminal."""

from dataclasses import dataclass

from zs_nemo.config.answering import AnsweringConfig


@dataclass(kw_only=True)
class AskRecipeConfig(AnsweringConfig):
    """Everything that an answer depends on. ``search`` is what may be searched; ``search=none`` for nothing."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    log_dir: str = "runs/ask"
    """Folder for the logs of engines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature={self.temperature} must not be negative (0 is greedy), and top_p={self.top_p} must lie "
                "in (0, 1]"
            )
