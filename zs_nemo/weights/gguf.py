"""Converts a GGUF file to a Hugging Face folder: ``python -m zs_nemo.weights.gguf FILE FOLDER``."""

import shutil
import sys
import tempfile
from pathlib import Path


def convert(gguf_file: Path, target: Path) -> None:
    """Write the Hugging Face folder ``target`` as a whole: into a temporary folder beside it, which is then renamed.

    Raises ``ValueError`` when the file's tensors are not those of its own configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        location = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
        # from_pretrained(gguf_file=...) would do these three lines, but asks for the accelerate package first.
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**location), dtype=torch.bfloat16)
        tensors = load_gguf_checkpoint(str(gguf_file), return_tensors=True, model_to_load=model)["tensors"]
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        if set(missing) - tied or unexpected:
            raise ValueError(
                f"{gguf_file} does not fit its own configuration: missing {sorted(missing)}, "
                f"unexpected {sorted(unexpected)}; install the package again, its file is damaged or of an unknown kind"
            )
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(**location).save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
