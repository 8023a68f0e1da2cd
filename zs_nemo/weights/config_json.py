"""The ``config.json`` of a Hugging Face folder, with errors that name the folder and the key."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ConfigJson:
    """A configuration as it stands in the file."""

    folder: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "ConfigJson":
        """Read the file of ``folder``. Raises ``ValueError`` when it is not whole."""
        try:
            return cls(folder, dict(json.loads((folder / "config.json").read_text())))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"the config.json of model folder {folder} is cut short or no configuration ({error}); fetch it again"
            ) from error

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value; ``default`` also where the file says null."""
        value = self.values.get(key)
        return default if value is None else value

    def required(self, key: str) -> Any:
        """Return a value. Raises ``ValueError`` when the file does not give it."""
        value = self.values.get(key)
        if value is None:
            raise self.refusal(f"no {key}", "give a folder whose config.json was written by transformers")
        return value

    def refusal(self, has: str, remedy: str) -> ValueError:
        """Return the error for a model that cannot be trained: what its configuration has, and what to do."""
        return ValueError(f"the config.json of model folder {self.folder} has {has}; {remedy}")
