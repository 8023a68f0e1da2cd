"""What sets a family of models apart; each has a file of its own beside this one."""

from collections.abc import Mapping
from dataclasses import dataclass

from zs_nemo.weights.parameter_map import LayerRule


@dataclass(frozen=True, kw_only=True)
class Family:
    """The tensors of a decoder layer, and what of ``config.json`` is the family's own."""

    model_type: str
    """Its name in ``config.json``."""
    layer_shapes: Mapping[str, tuple[str, ...]]
    """Hugging Face name of a layer's tensor -> its shape, as names of sizes of the ``Architecture``."""
    layer_rules: Mapping[str, LayerRule]
    """Megatron name of a layer's parameter -> what it is made of."""
    must_be_false: tuple[str, ...] = ()
    """Options that the map has no parameters for."""
    default_head_dim: int | None = None
    """None: the hidden size divided by the heads."""

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return "self_attention.linear_qkv.bias" in self.layer_rules

    @property
    def has_qk_norm(self) -> bool:
        """Whether each head of the queries and keys is normed before it is rotated."""
        return "self_attention.q_layernorm.weight" in self.layer_rules
