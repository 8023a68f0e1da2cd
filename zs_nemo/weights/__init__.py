"""Hugging Face <-> megatron-core parameter maps, one file per model family."""
