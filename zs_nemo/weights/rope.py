"""Rotary frequencies by a Hugging Face configuration: as they are, or stretched by Llama 3's rule.

megatron-core knows that rule with three of its four numbers fixed, so the frequencies are computed here.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zs_nemo.weights.config_json import ConfigJson

_DEFAULT_THETA = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3's rule for contexts longer than those of the first training (Llama 3 report, arXiv 2407.21783).

    A frequency is judged by how many turns it makes within the original context: below ``low_freq_factor`` turns it
    is divided by ``factor``, above ``high_freq_factor`` it stays, in between both are mixed in proportion.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class Rope:
    """What decides about the rotary angles."""

    theta: float
    scaling: Llama3Scaling | None

    def inverse_frequencies(self, head_dim: int) -> Tensor:
        """Return float32 [head_dim / 2]: the angle per position of each pair of channels."""
        frequencies = 1.0 / self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        if self.scaling is None:
            return frequencies
        rule = self.scaling
        turns = frequencies * (rule.original_max_position_embeddings / (2 * math.pi))
        kept = ((turns - rule.low_freq_factor) / (rule.high_freq_factor - rule.low_freq_factor)).clamp(0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / rule.factor)


def read_rope(config: ConfigJson) -> Rope:
    """Read the settings as transformers 4 (``rope_scaling``) or 5 (``rope_parameters``) writes them.

    Raises ``ValueError`` for rules other than ``default`` and ``llama3``.
    """
    # transformers prefers the old key where a file has both.
    settings: dict[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = settings.get("rope_theta") or config.get("rope_theta", _DEFAULT_THETA)
    kind = settings.get("rope_type") or settings.get("type") or "default"
    share = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor", 1.0)
    if share != 1.0:
        raise config.refusal(f"partial_rotary_factor={share}", "give a model whose heads are rotated as a whole")
    if kind == "default" and not any(isinstance(value, dict) for value in settings.values()):
        return Rope(theta=float(theta), scaling=None)
    if kind != "llama3":
        raise config.refusal(
            f"the rope settings {settings}",
            "give a model with rope_type 'default' or 'llama3', the same for all layers: others are not supported",
        )
    return Rope(theta=float(theta), scaling=_read_llama3(config, settings))


def _read_llama3(config: ConfigJson, settings: dict[str, Any]) -> Llama3Scaling:
    original = config.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    if any(settings.get(key) is None for key in keys):
        raise config.refusal(
            f"the rope settings {settings}", "add factor, low_freq_factor and high_freq_factor, which 'llama3' needs"
        )
    factor, low, high = (float(settings[key]) for key in keys)
    if factor < 1 or not 0 < low < high:
        raise config.refusal(
            f"the rope settings {settings}", "set factor >= 1 and 0 < low_freq_factor < high_freq_factor"
        )
    return Llama3Scaling(
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original or config.required("max_position_embeddings"),
    )
