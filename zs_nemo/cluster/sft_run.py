"""A run that fine-tunes a simulator on judged searches: megatron-core ranks, no engines.

Its run directory has ``simulator/``, the fine-tuned model as a Hugging Face folder, and ``report.json`` and
``report.html`` with the loss on held-out examples before, on the way and after.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from zs_nemo.algorithms.supervised_loss import SupervisedLoss
from zs_nemo.cluster.checkpoints import POLICY, CheckpointFolder
from zs_nemo.cluster.placement_drawing import placement_shown
from zs_nemo.cluster.setups import num_updates
from zs_nemo.cluster.stop_request import PROCESS_STOP, StoppedBySignal
from zs_nemo.cluster.system import System
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.config.sft_simulator import SftSimulatorRecipeConfig
from zs_nemo.observability.files import read_json, read_json_lines, write_json
from zs_nemo.observability.guards import PREFIX, Guards, Verdict, found_in, gravest
from zs_nemo.observability.memory import MemoryWatch
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.preparation_page import write_preparation_page
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.report import RunFiles, account_of
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.observability.timer import StageTimer
from zs_nemo.qa.facts import load_facts_world
from zs_nemo.search.demonstrations import build_demonstrations
from zs_nemo.search.example_files import examples_file, read_examples
from zs_nemo.search.tuning_examples import ExampleWriter, TuningExample
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.interaction import HELD_OUT, TRAIN
from zs_nemo.types.keys import SampleKey
from zs_nemo.weights.pretrained import load_tokenizer, resolve_model

_KINDS = {"useful": True, "useless": False}


class SftRun:
    """Use with ``with``: whatever ends the block, no process is left behind."""

    system: System

    def __init__(self, cfg: SftSimulatorRecipeConfig, run_dir: RunDir, progress: Progress) -> None:
        """Read the examples, start the ranks, and load the newest checkpoint if there is one."""
        self._cfg, self._run_dir, self._progress = cfg, run_dir, progress
        run_dir.faults.listen(progress.say)
        self.timer = StageTimer(on_stage=progress.stage, timeline=run_dir.timeline)
        self._checkpoints = CheckpointFolder(run_dir.path / "checkpoints", keep=cfg.exp_manager.save_top_k)
        self._checkpoints.check()
        self._guards = Guards(cfg.guards)
        self._losses: dict[str, dict[str, float]] = read_json(run_dir.path / "held_out_loss.json", {})
        self._stack = ExitStack()
        try:
            with self.timer("start"):
                self._read_examples()
                self._memory = self._stack.enter_context(MemoryWatch())
                self.system = self._stack.enter_context(
                    System.start(cfg, run_dir.path, placement_shown(run_dir, progress), run_dir.faults)
                )
            self._resume()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _read_examples(self) -> None:
        cfg, search = self._cfg, self._cfg.search
        assert isinstance(search, SimulatedSearchConfig)
        folder = resolve_model(cfg.policy.model, setting="policy.model")
        tokenizer = load_tokenizer(folder)
        demonstrations = build_demonstrations(load_facts_world(cfg.data))
        writer = ExampleWriter(search, tokenizer, tokenizer.eos_token_id, demonstrations)
        files = {split: examples_file(cfg.sft.examples, split) for split in (TRAIN, HELD_OUT)}
        parts = {
            split: writer.write(read_examples(file), seed=cfg.seed, file=str(file)) for split, file in files.items()
        }
        self._train, held_out = parts[TRAIN], parts[HELD_OUT]
        self._held_out = held_out[: cfg.sft.num_held_out or len(held_out)]
        if not self._train:
            raise ValueError(
                f"sft.examples={cfg.sft.examples!r} has no example that fits into search.max_sequence_tokens="
                f"{search.max_sequence_tokens}; collect more questions, or raise it"
            )
        if writer.num_too_long:
            self._progress.say(f"{writer.num_too_long} examples are longer than search.max_sequence_tokens: left out")

    def _resume(self) -> None:
        policy, cfg = self.system.policy, self._cfg
        # The schedule is laid out for the steps of this recipe; a checkpoint then says where in it the run stands.
        policy.reset_optimizer(cfg.policy.optim, max_steps=num_updates(cfg))
        self._next_step = self._saved_step = 0
        if self._checkpoints.whole():
            folder, state = self._checkpoints.newest_undamaged(self._damage, self._progress.say)
            policy.load_checkpoint(str(folder / POLICY))
            self._next_step = self._saved_step = int(state["step"])
            self._progress.say(f"resumed from {folder} at step {self._next_step}")
        self._run_dir.truncate_after(self._next_step - 1, Phase.warm_start)

    def _damage(self, folder: Path, _state: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with the files of a checkpoint."""
        return self.system.policy.checkpoint_damage(str(folder / POLICY))

    def train(self) -> None:
        """Make the updates that are still to be made, with measurements of the held-out loss between them."""
        cfg = self._cfg
        self._progress.begin("fine-tuning", cfg.trainer.max_steps, self._next_step)
        self._measure(self._next_step)
        for step in self._steps():
            with self.timer("train"):
                update = self.system.policy.train_step(pack_examples(self._batch(step)), SupervisedLoss())
            metrics = {f"train/{name}": value for name, value in update.items()}
            self._guard(step, update, metrics)
            finished = self._next_step = step + 1
            if finished % cfg.sft.val_check_interval == 0 or finished == cfg.trainer.max_steps:
                metrics |= {f"held_out/{name}": value for name, value in self._measure(finished).items()}
            self._run_dir.log_step(step, metrics, Phase.warm_start)
            if finished % cfg.exp_manager.save_every_n_steps == 0 or finished == cfg.trainer.max_steps:
                self._save(finished)
            self._save_progress()
            self._progress.advance(metrics)

    def _guard(self, step: int, update: Mapping[str, float], metrics: dict[str, float]) -> None:
        """Say what is wrong with a step and add it to its metrics; end the run if the guards say so."""
        findings = self._guards.findings(metrics, [update])
        metrics |= {PREFIX + finding.name: 1.0 for finding in findings}
        for finding in findings:
            self._progress.say(f"step {step}: {finding.message}")
        if gravest(findings) is Verdict.stop:
            self._run_dir.log_step(step, metrics, Phase.warm_start)
            self._save_progress()
            reasons = "; ".join(finding.message for finding in findings)
            raise RuntimeError(f"step {step} ended the run: {reasons}")

    def _steps(self) -> Iterator[int]:
        while self._next_step < self._cfg.trainer.max_steps:
            with PROCESS_STOP.in_step():
                yield self._next_step
            if PROCESS_STOP.requested:
                with PROCESS_STOP.ending():
                    if self._saved_step != self._next_step:
                        self._save(self._next_step)
                raise StoppedBySignal

    def _batch(self, step: int) -> list[TuningExample]:
        """Return the examples of one step: epochs are permutations of their own, and a resume repeats them."""
        count = self._cfg.policy.global_batch_size
        places = [divmod(place, len(self._train)) for place in range(step * count, (step + 1) * count)]
        orders = {epoch: self._order(epoch) for epoch, _ in places}
        return [self._train[int(orders[epoch][offset])] for epoch, offset in places]

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        seed = SampleKey(run_seed=self._cfg.seed, step=epoch, prompt=0, member=0).seed("example order")
        return np.random.default_rng(seed).permutation(len(self._train))

    def _measure(self, step: int) -> dict[str, float]:
        """Return the mean loss a token on held-out examples, of all and by kind; measured once a step."""
        known = self._losses.get(str(step))
        if known is not None or not self._held_out:
            return known or {}
        with self.timer("held_out"):
            batch = pack_examples(self._held_out)
            logprobs = self.system.policy.logprobs(batch)
        owner = torch.repeat_interleave(torch.arange(batch.num_sequences), batch.lengths)
        useful = torch.tensor([example.useful for example in self._held_out])[owner]
        losses = {"loss": float(-logprobs[batch.loss_mask].mean())}
        for name, kind in _KINDS.items():
            counted = batch.loss_mask & (useful == kind)
            if counted.any():
                losses[f"{name}_loss"] = float(-logprobs[counted].mean())
        self._losses[str(step)] = losses
        write_json(self._run_dir.path / "held_out_loss.json", self._losses)
        return losses

    def _save(self, step: int) -> None:
        with self.timer("checkpoint"):
            folder = self._checkpoints.begin(step)
            self.system.policy.save_checkpoint(str(folder / POLICY), in_background=False)
            self._checkpoints.commit(step, {})
        self._saved_step = step

    def _save_progress(self) -> None:
        self._run_dir.save_progress(
            self.timer,
            peak_memory_gib=self._memory.peak_gib,
            roles=self.system.accounts(wall_s=self.timer.wall_s, stage_s=self.timer.totals),
        )

    def finish(self) -> Path:
        """Export the simulator, mark the run as done, and return the path of its report."""
        target = self._run_dir.path / "simulator"
        with self.timer("export"):
            self.system.policy.export_hf(str(target))
        self._save_progress()
        first, last = min(self._losses, key=int, default=None), max(self._losses, key=int, default=None)
        report = {
            "recipe": "sft_simulator",
            "seed": self._cfg.seed,
            "steps": self._cfg.trainer.max_steps,
            **account_of(RunFiles.read(self._run_dir.path)),
            "simulator": str(target),
            "guards": found_in(read_json_lines(self._run_dir.path / "metrics.jsonl")),
            "examples": {"train": len(self._train), "held_out": len(self._held_out)},
            "held_out_before": self._losses.get(first or ""),
            "held_out_after": self._losses.get(last or ""),
            "held_out_by_step": self._losses,
        }
        write_json(self._run_dir.path / "report.json", report)
        page = write_preparation_page(self._run_dir.path)
        self._run_dir.finish()
        return page


def pack_examples(examples: Sequence[TuningExample]) -> TrainBatch:
    """Return a batch in which the completions alone are under the mask."""
    parts = [part for each in examples for part in ((each.prompt_ids, False), (each.completion_ids, True))]
    ids = [token for tokens, _ in parts for token in tokens]
    mask = [learned for tokens, learned in parts for _ in tokens]
    return TrainBatch(
        token_ids=torch.tensor(ids),
        lengths=torch.tensor([len(example.prompt_ids) + len(example.completion_ids) for example in examples]),
        loss_mask=torch.tensor(mask),
        generation_logprobs=torch.zeros(len(ids)),
    )
