"""What a fine-tuning tells at its end, without its ranks."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from zs_nemo.cluster.sft_run import SftRun
from zs_nemo.config.cost import CostConfig
from zs_nemo.config.experiment import ExpManagerConfig
from zs_nemo.config.sft_simulator import SftSimulatorRecipeConfig
from zs_nemo.observability.files import read_json
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.observability.timer import StageTimer


def test_the_report_says_what_the_fine_tuning_took_and_cost_over_all_sessions(tmp_path: Path) -> None:
    cfg = SftSimulatorRecipeConfig(exp_manager=ExpManagerConfig(create_tensorboard_logger=False))

    def session(*, ends: bool) -> Path:
        run = SftRun.__new__(SftRun)
        with RunDir(tmp_path, cfg) as run_dir:
            run._cfg, run._run_dir, run.timer = cfg, run_dir, StageTimer()
            run._losses, run._train, run._held_out = {}, [], []
            run._memory = SimpleNamespace(peak_gib=1.0)  # type: ignore[assignment]
            run.system = SimpleNamespace(  # type: ignore[assignment]
                policy=SimpleNamespace(export_hf=lambda target: None),
                accounts=lambda **spent: {"training": {"held_core_s": 3600.0, "busy_core_s": 1800.0}},
            )
            run._save_progress()
            return run.finish() if ends else tmp_path

    session(ends=False)
    page = session(ends=True)
    assert page == tmp_path / "report.html" and "Examples" in page.read_text()
    report = read_json(tmp_path / "report.json", {})
    assert report["cost"]["roles"]["training"]["busy_share"] == 0.5
    assert report["cost"]["run_usd"] == pytest.approx(2 * CostConfig().usd_per_core_hour)
    sessions = read_json(tmp_path / "state.json", {})["sessions"]
    assert len(sessions) == 2 and report["wall_s"] == pytest.approx(sum(each["wall_s"] for each in sessions))
