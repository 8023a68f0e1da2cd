"""Reads the architecture of a Hugging Face folder: which family it is of, and its sizes."""

from pathlib import Path

from zs_nemo.weights.architecture import Architecture
from zs_nemo.weights.config_json import ConfigJson
from zs_nemo.weights.family import Family
from zs_nemo.weights.llama import LLAMA
from zs_nemo.weights.qwen2 import QWEN2
from zs_nemo.weights.qwen3 import QWEN3
from zs_nemo.weights.rope import read_rope

_FAMILIES = {family.model_type: family for family in (LLAMA, QWEN2, QWEN3)}


def read_architecture(folder: Path) -> Architecture:
    """Read ``config.json``, as transformers 4 or 5 writes it.

    Raises ``ValueError`` for other families and for options that the weight maps or the model do not know.
    """
    config = ConfigJson.read(folder)
    family = _FAMILIES.get(config.get("model_type"))
    if family is None:
        raise config.refusal(
            f"model_type={config.get('model_type')!r}", f"give a model of one of the types {sorted(_FAMILIES)}"
        )
    _refuse_unknown_options(config, family)
    hidden_size, num_heads = config.required("hidden_size"), config.required("num_attention_heads")
    return Architecture(
        family=family,
        num_layers=config.required("num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=config.required("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads", num_heads),
        head_dim=config.get("head_dim", family.default_head_dim or hidden_size // num_heads),
        vocab_size=config.required("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        norm_eps=config.required("rms_norm_eps"),
        rope=read_rope(config),
        max_position_embeddings=config.required("max_position_embeddings"),
    )


def _refuse_unknown_options(config: ConfigJson, family: Family) -> None:
    for key in family.must_be_false:
        if config.get(key):
            raise config.refusal(f"{key}=true", f"give a {family.model_type} model without: it has no place in the map")
    if config.get("hidden_act", "silu") != "silu":
        raise config.refusal(f"hidden_act={config.get('hidden_act')!r}", "give a model with hidden_act='silu'")
    if config.get("quantization_config"):
        raise config.refusal("a quantization_config", "give the model in bfloat16, float16 or float32: it is trained")
    if _has_sliding_window(config):
        raise config.refusal(
            "layers with a sliding window or another kind of attention than full",
            "give a model with use_sliding_window=false and, if it has layer_types, 'full_attention' alone",
        )


def _has_sliding_window(config: ConfigJson) -> bool:
    """Tell whether a layer uses it: Qwen's configurations name its size even where it is switched off."""
    layer_types = config.get("layer_types")
    if layer_types is not None:
        return any(kind != "full_attention" for kind in layer_types)
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return False
    return int(config.get("max_window_layers", 0)) < int(config.required("num_hidden_layers"))
