"""What a fine-tuning goes on from, and when it ends, with a system that computes nothing."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from zs_nemo.cluster import sft_run
from zs_nemo.cluster.sft_run import SftRun
from zs_nemo.config.experiment import ExpManagerConfig, TrainerConfig
from zs_nemo.config.guards import GuardConfig, OnBadUpdate, OnCollapse
from zs_nemo.config.policy import PolicyConfig
from zs_nemo.config.sft_simulator import SftSimulatorRecipeConfig
from zs_nemo.observability.files import read_json, read_json_lines
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.search.tuning_examples import TuningExample

MADE = {"num_skipped_updates": 0.0, "grad_norm": 1.0, "entropy": 0.5}
SKIPPED = {**MADE, "num_skipped_updates": 1.0}


def settings(**guards: Any) -> SftSimulatorRecipeConfig:
    return SftSimulatorRecipeConfig(
        guards=GuardConfig(**guards),
        trainer=TrainerConfig(max_steps=6),
        policy=PolicyConfig(global_batch_size=2),
        exp_manager=ExpManagerConfig(save_every_n_steps=2),
    )


@pytest.fixture(autouse=True)
def policy(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Return what stands for the ranks: every update is made, no checkpoint is damaged."""
    policy = MagicMock()
    policy.train_step.return_value = MADE
    policy.checkpoint_damage.return_value = []
    example = TuningExample(prompt_ids=[1], completion_ids=[2], useful=True)

    def read_examples(run: SftRun) -> None:
        run._train, run._held_out = [example] * 4, []

    system = SimpleNamespace(policy=policy, accounts=lambda **spent: {})
    monkeypatch.setattr(SftRun, "_read_examples", read_examples)
    monkeypatch.setattr(sft_run.System, "start", lambda *_arguments: nullcontext(system))
    return policy


def tune(path: Path, cfg: SftSimulatorRecipeConfig | None = None, *, finishes: bool = False) -> list[dict]:
    """Run or resume, as the recipe does; return the rows of its metrics."""
    cfg = cfg or settings()
    with RunDir(path, cfg) as run_dir, Progress("run") as progress, SftRun(cfg, run_dir, progress) as run:
        run.train()
        if finishes:
            run.finish()
    return read_json_lines(path / "metrics.jsonl")


def test_a_fine_tuning_goes_on_from_the_newest_checkpoint_that_is_as_it_was_written(
    tmp_path: Path, policy: MagicMock, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(tmp_path)
    newest = tmp_path / "checkpoints" / "step_000006"
    policy.checkpoint_damage.side_effect = lambda folder: ["cut short"] if str(newest) in folder else []
    policy.train_step.reset_mock()
    assert [row["step"] for row in tune(tmp_path)] == list(range(6))
    assert policy.train_step.call_count == 2
    assert "passed over the damaged checkpoint" in "".join(capsys.readouterr())


def test_a_fine_tuning_whose_checkpoints_are_all_damaged_does_not_begin_anew_in_silence(
    tmp_path: Path, policy: MagicMock
) -> None:
    tune(tmp_path)
    policy.checkpoint_damage.return_value = ["cut short"]
    policy.train_step.reset_mock()
    with pytest.raises(ValueError, match=r"no checkpoint under .* put back a copy of one, or start a new run with"):
        tune(tmp_path)
    assert not policy.train_step.called
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 6, "what was logged is still there"


def test_a_fine_tuning_whose_updates_are_all_skipped_ends_instead_of_leaving_an_untrained_simulator(
    tmp_path: Path, policy: MagicMock
) -> None:
    policy.train_step.side_effect = [MADE, MADE, *[SKIPPED] * 4]
    with pytest.raises(RuntimeError, match=r"step 4 ended the run: .* 3 updates of the policy in a row were not made"):
        tune(tmp_path)
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row.get("guards/bad_update", 0.0) for row in rows] == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert not (tmp_path / "checkpoints" / "step_000006").exists()


def test_the_guards_of_a_fine_tuning_do_what_is_configured_and_are_on_its_report(
    tmp_path: Path, policy: MagicMock
) -> None:
    policy.train_step.side_effect = [SKIPPED, MADE, MADE, MADE, MADE, {**MADE, "entropy": 0.01}]
    tune(tmp_path / "skips", settings(min_entropy=0.1), finishes=True)
    report = read_json(tmp_path / "skips" / "report.json", {})
    assert report["guards"] == {"skipped_updates": 1, "findings": {"bad_update": [0], "min_entropy": [5]}}
    policy.train_step.side_effect = [MADE, SKIPPED]
    with pytest.raises(RuntimeError, match="step 1 ended the run: 1 updates were not made"):
        tune(tmp_path / "stops", settings(on_bad_update=OnBadUpdate.stop))


@pytest.mark.parametrize("guard", [{"on_bad_update": OnBadUpdate.rollback}, {"on_collapse": OnCollapse.rollback}])
def test_a_fine_tuning_refuses_to_return_to_a_checkpoint_for_other_draws(guard: dict[str, Any]) -> None:
    (setting,) = guard
    with pytest.raises(ValueError, match=rf"guards\.{setting}=rollback .* set guards\.{setting}=(skip|warn) or stop"):
        settings(**guard)
