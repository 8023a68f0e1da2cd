"""Every number that a simulation stands on, with where it comes from."""

from dataclasses import dataclass, field
from enum import Enum


class Source(Enum):
    """Where a number comes from."""

    measured = "measured in the run that was calibrated on"
    data_sheet = "the GPU's data sheet"
    model = "follows from the model's shape or from the configuration"
    assumed = "assumed: a setting of simulation"


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number."""

    name: str
    value: float
    unit: str
    source: Source
    told: str = ""
    """The setting, the file, or the title of the data sheet."""


@dataclass(kw_only=True)
class Sources:
    """Collects the numbers that were used, each once."""

    quantities: dict[str, Quantity] = field(default_factory=dict)

    def note(self, name: str, value: float, unit: str, source: Source, told: str) -> float:
        """Keep a number and return its value."""
        self.quantities[name] = Quantity(name=name, value=value, unit=unit, source=source, told=told)
        return value
