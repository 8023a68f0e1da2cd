"""Tiny random models of every family, with the ``config.json`` of a published model: sizes shrunk, the rest kept."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
QWEN2_5_0_5B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# Odd, so that two tensor-parallel ranks pad it.
VOCAB = 331
SHRUNK = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Other numbers than those that megatron-core has built in, and every band of Llama 3's rule within a hundred tokens.
OTHER_LLAMA3 = {
    "factor": 5.0,
    "high_freq_factor": 6.0,
    "low_freq_factor": 1.5,
    "original_max_position_embeddings": 96,
    "rope_type": "llama3",
}
CONFIGS = {
    "llama 3.2, tied": {**LLAMA_3_2_1B, **SHRUNK, "num_hidden_layers": 3, "head_dim": 16},
    "llama 3, untied, other scaling": {
        **LLAMA_3_2_1B,
        **SHRUNK,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "tie_word_embeddings": False,
        "rope_scaling": OTHER_LLAMA3,
    },
    "qwen2.5, tied": {**QWEN2_5_0_5B, **SHRUNK, "num_hidden_layers": 2},
    "qwen2.5, untied": {**QWEN2_5_0_5B, **SHRUNK, "num_hidden_layers": 3, "tie_word_embeddings": False},
    # An explicit head size: the queries together are twice as wide as the hidden states.
    "qwen3, tied": {**QWEN3_0_6B, **SHRUNK, "num_hidden_layers": 3, "head_dim": 32},
    "qwen3, untied": {**QWEN3_0_6B, **SHRUNK, "num_hidden_layers": 2, "head_dim": 32, "tie_word_embeddings": False},
}


def build_family_model(folder: Path, config: dict, *, seed: int = 0) -> Path:
    """Write a float32 model whose every tensor is random, with ``config`` as it is given; return ``folder``."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        # Norms start at 1 and biases at 0, which would hide one that is forgotten.
        tensors[name] = 1 + 0.3 * noise if "norm" in name else 0.15 * noise
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
