"""TRL's GRPOTrainer on the steps that ``bench_step.py`` has written down; a process of its own, started by it.

    python tests/benchmark/trl_step.py WORK.json            # or several: python -m torch.distributed.run ...

The episodes are those of ``trl_rollout.py``; the loss, its mask (``env_mask``: tokens of the policy alone), the
reference and the optimizer are TRL's. Each process writes ``trl_RANK.jsonl`` with one line a step. How a turn is
generated:

``vllm``          TRL's colocated engine, which takes rows out of the batch as they end and keeps their prefixes. TRL
                  writes new weights straight into its layers, which are packed otherwise on a CPU; here they are loaded
                  as our own engines load them. As in those, nothing is compiled.
``transformers``  ``generate`` with stop strings; a batch lasts as long as its longest row.
``continuous``    ``use_transformers_continuous_batching``; it knows no stop strings, so that every turn is written to
                  its limit and cut afterwards.

vLLM's server, TRL's other way, takes new weights by NCCL alone: on GPUs.
"""

import copy
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from trl.models import unwrap_model_for_generation  # noqa: E402

from tests.benchmark.trl_rollout import SearchRollout  # noqa: E402
from zs_nemo.qa.rewards import token_f1  # noqa: E402
from zs_nemo.qa.tags import STOP_STRINGS  # noqa: E402
from zs_nemo.rollout.episode import EpisodeLimits  # noqa: E402
from zs_nemo.weights.pretrained import load_tokenizer  # noqa: E402


class Turns:
    """Generates a turn of many rows with the trainer's model."""

    def __init__(self, trainer: GRPOTrainer, work: dict[str, Any]) -> None:
        self._trainer = trainer
        self._kind = work["generation"]
        self._tokenizer = trainer.processing_class
        self._half = copy.deepcopy(trainer.model).to(torch.bfloat16) if work["grpo"]["bf16"] else None
        """Under autocast every token would cast all weights anew."""

    def refit(self) -> None:
        """Take the weights as they are now."""
        if self._half is not None:
            with torch.no_grad():
                for copied, weight in zip(self._half.parameters(), self._trainer.model.parameters(), strict=True):
                    copied.copy_(weight)

    def __call__(self, rows: list[list[int]], limits: list[int]) -> list[list[int]]:
        """Return what was sampled for each row, up to its limit."""
        sampled = getattr(self, f"_{self._kind}")(rows, max(limits))
        return [self._cut(ids[:limit]) for ids, limit in zip(sampled, limits, strict=True)]

    def _transformers(self, rows: list[list[int]], limit: int) -> list[list[int]]:
        trainer, pad = self._trainer, self._tokenizer.pad_token_id
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.no_grad(), unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as unwrapped:
            written = (self._half if self._half is not None else unwrapped).generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=limit,
                do_sample=True,
                temperature=trainer.temperature,
                top_p=trainer.top_p,
                top_k=0,
                pad_token_id=pad,
                stop_strings=list(STOP_STRINGS),
                tokenizer=self._tokenizer,
                disable_compile=True,
            )
        return [row[width:] for row in written.tolist()]

    def _continuous(self, rows: list[list[int]], limit: int) -> list[list[int]]:
        return self._trainer._generate_single_turn(rows, None, {}, 1)[0]

    def _vllm(self, rows: list[list[int]], limit: int) -> list[list[int]]:
        written = self._trainer.vllm_generation.generate(prompts=rows, images=None, num_generations=1)
        return [list(ids) for ids in written[1]]

    def _cut(self, ids: list[int]) -> list[int]:
        """Return the ids up to the one that completes a closing tag, or the end of text; the rest is padding."""
        end = self._tokenizer.eos_token_id
        if end in ids:
            ids = ids[: ids.index(end) + 1]
        text = self._tokenizer.decode(ids)
        if not any(tag in text for tag in STOP_STRINGS):
            return ids
        for size in range(1, len(ids)):
            # Tags are short: only the end of what has been read can hold one.
            if any(tag in self._tokenizer.decode(ids[max(0, size - 16) : size]) for tag in STOP_STRINGS):
                return ids[:size]
        return ids


class TimedTrainer(GRPOTrainer):
    """Adds clocks and counters to TRL's trainer, and nothing else."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.row: dict[str, Any] = {}
        super().__init__(*arguments, **settings)

    def _generate(self, prompts: list[Any]) -> Any:
        began = time.perf_counter()
        out = super()._generate(prompts)
        # With several processes it waits for the slowest before it returns.
        self.row["rollout_s"] = time.perf_counter() - began
        return out

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **settings: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*arguments, **settings)
        began = time.perf_counter()
        out = super()._get_per_token_logps_and_entropies(*arguments, **settings)
        self.row["reference_s"] = self.row.get("reference_s", 0.0) + time.perf_counter() - began
        return out

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        out = super()._generate_and_score_completions(inputs)
        completion, prompt = out["completion_mask"], out["prompt_mask"]
        with_advantage = out["advantages"] != 0
        trained = completion * out["tool_mask"]
        self.row |= {
            "rows": len(inputs),
            "with_advantage": int(with_advantage.sum()),
            "trained_tokens": int(trained.sum()),
            "trained_tokens_with_advantage": int(trained[with_advantage].sum()),
            "tokens": int(completion.sum() + prompt.sum()),
            "computed_tokens": completion.numel() + prompt.numel(),
        }
        return out


class StepClock(TrainerCallback):
    """Writes the trainer's row at the end of each step."""

    def __init__(self, trainer: TimedTrainer, path: Path) -> None:
        self._trainer = trainer
        self._file = path.open("w", buffering=1)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._trainer.row.clear()
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Write what the step took."""
        row = self._trainer.row
        row["step_s"] = time.perf_counter() - self._began
        row["train_s"] = row["step_s"] - row["rollout_s"] - row.get("reference_s", 0.0)
        self._file.write(json.dumps(row) + "\n")


def load_by_file(trainer: GRPOTrainer) -> None:
    """Bring the weights into the colocated engine as our own engines take them."""
    from safetensors.torch import save_file

    from zs_nemo.generation.worker_extension import WorkerExtension

    engine = trainer.vllm_generation.llm
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = f"{folder}/weights.safetensors"
        save_file({name: weight.data for name, weight in trainer.model.named_parameters()}, path)
        WorkerExtension.refit_from_file(engine.llm_engine.model_executor.driver_worker, path)
    engine.reset_prefix_cache()


def f1_reward(answer: list[str | None], answers: list[list[str]], search_failed: list[bool], **_: Any) -> list[Any]:
    """Grade the answers; None for a trajectory whose search failed, which TRL leaves out of its group."""
    return [
        None if failed else token_f1(text, gold)
        for text, gold, failed in zip(answer, answers, search_failed, strict=True)
    ]


def generation_settings(work: dict[str, Any]) -> dict[str, Any]:
    """Return what GRPOConfig has to know of the kind of generation."""
    limits = work["limits"]
    if work["generation"] == "continuous":
        return {
            "use_transformers_continuous_batching": True,
            "generation_kwargs": {"max_new_tokens": limits["max_turn_tokens"]},
        }
    if work["generation"] == "vllm":
        stop = {"stop": list(STOP_STRINGS), "include_stop_str_in_output": True, "skip_special_tokens": False}
        return {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_max_model_length": limits["max_sequence_tokens"],
            # It would compute the old logprobs in another pass, which our step does not.
            "vllm_importance_sampling_correction": False,
            "generation_kwargs": stop | {"max_tokens": limits["max_turn_tokens"]},
        }
    return {}


class SearchingPolicy:
    """The ``rollout_func``: plays a step's episodes, and says on the trainer's row what they were."""

    def __init__(self, work: dict[str, Any]) -> None:
        self._noise = [step["noise"] for step in work["steps"]]
        self._answers = {each["prompt"]: each["answers"] for step in work["steps"] for each in step["questions"]}
        told = {
            each["prompt"]: {"questions": each["question"], "answers": each["answers"]}
            for step in work["steps"]
            for each in step["questions"]
        }
        self._rollout = SearchRollout(
            load_tokenizer(Path(work["model"])),
            EpisodeLimits(**work["limits"]),
            work["url"],
            told,
            num_documents=work["num_documents"],
            threads=work["search_threads"],
        )
        self._work = work
        self._turns: Turns | None = None

    def __call__(self, prompts: list[str], trainer: TimedTrainer) -> dict[str, Any]:
        """Return the episodes as TRL wants them; ``env_mask`` is what it multiplies the loss's mask with."""
        self._turns = self._turns or Turns(trainer, self._work)
        self._turns.refit()
        rows = self._rollout.play(prompts, self._turns, noise=self._noise[trainer.state.global_step])
        graded = [token_f1(row.answer, self._answers[row.prompt]) for row in rows if not row.search_failed]
        trainer.row |= {
            "generation_s": self._rollout.generation_s,
            "search_s": self._rollout.search_s,
            "turns": sum(row.num_turns for row in rows),
            "searches": sum(row.num_searches for row in rows),
            "failed": len(rows) - len(graded),
            "policy_tokens": sum(sum(row.is_policy) for row in rows),
            "reward": sum(graded),
        }
        return {
            "prompt_ids": [row.token_ids[: row.prompt_size] for row in rows],
            "completion_ids": [row.token_ids[row.prompt_size :] for row in rows],
            "logprobs": None,
            "env_mask": [row.is_policy for row in rows],
            "answer": [row.answer for row in rows],
            "search_failed": [row.search_failed for row in rows],
        }


def build_trainer(work: dict[str, Any], folder: Path) -> TimedTrainer:
    """Return the trainer; its steps take the questions in the order of the work."""
    args = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        **work["grpo"],
        **generation_settings(work),
    )
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32)
    adam = work["adam"]
    # The schedule multiplies it: its numbers are the rates themselves.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, **adam)
    rates = work["learning_rates"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
    questions = [each for step in work["steps"] for each in step["questions"]]
    trainer = TimedTrainer(
        model=model,
        reward_funcs=f1_reward,
        args=args,
        train_dataset=Dataset.from_list([{name: each[name] for name in ("prompt", "answers")} for each in questions]),
        processing_class=AutoTokenizer.from_pretrained(work["model"], padding_side="left"),
        optimizers=(optimizer, schedule),
        rollout_func=SearchingPolicy(work),
    )
    if work["generation"] == "vllm":
        trainer.vllm_generation.sync_weights = lambda: load_by_file(trainer)
    return trainer


def main() -> None:
    """Train the steps, write their rows, and save the policy."""
    work = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[1]).parent
    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(work["threads"])
    trainer = build_trainer(work, folder)
    trainer.add_callback(StepClock(trainer, folder / f"trl_{rank}.jsonl"))
    trainer.train()
    trainer.save_model(work["policy_to"])


if __name__ == "__main__":
    main()
