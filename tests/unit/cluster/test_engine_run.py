from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from zs_nemo.cluster import engine_run
from zs_nemo.cluster.engine_run import EngineRun
from zs_nemo.config.experiment import EvaluationConfig
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.reward import RewardConfig
from zs_nemo.config.rollout import RolloutConfig
from zs_nemo.config.search import Bm25SearchConfig, SimulatedSearchConfig
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir


@pytest.mark.parametrize(
    ("setting", "settings"),
    [
        ("reward.function", {"reward": RewardConfig(function="no.such.thing")}),
        ("rollout.callback", {"rollout": RolloutConfig(callback="no.such.thing")}),
    ],
)
def test_code_of_the_users_own_that_is_not_there_is_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, settings: dict
) -> None:
    for name in ("load_facts_world", "System"):
        monkeypatch.setattr(engine_run, name, None)
    cfg = GrpoRecipeConfig(search=SimulatedSearchConfig(), **settings)
    told = f"{setting}='no.such.thing' cannot be imported"
    with RunDir(tmp_path, cfg) as run_dir, Progress("run") as progress, pytest.raises(ValueError, match=told):
        EngineRun(cfg, run_dir, progress)


@pytest.mark.parametrize(
    ("place", "content", "told"),
    [("search", "# Lima", "line 1: must be a JSON object"), ("evaluation.search", None, "is no file")],
)
def test_a_corpus_of_the_users_own_that_cannot_be_read_is_found_before_anything_starts(
    place: str, content: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load_tokenizer", "resolve_model", "load_questions", "check_prompts_fit"):
        monkeypatch.setattr(engine_run, name, MagicMock())
    monkeypatch.setattr(engine_run, "load_facts_world", lambda data: SimpleNamespace(corpus=tmp_path / "facts"))
    monkeypatch.setattr(engine_run, "System", None)
    own = Bm25SearchConfig(corpus=str(tmp_path / "wiki.jsonl"))
    if content is not None:
        Path(own.corpus).write_text(content)
    if place == "search":
        cfg = GrpoRecipeConfig(search=own)
    else:
        cfg = GrpoRecipeConfig(search=SimulatedSearchConfig(), evaluation=EvaluationConfig(search=own))
    told = rf"^{place}\.corpus.*wiki\.jsonl.* {told}"
    with RunDir(tmp_path / "run", cfg) as run_dir, Progress("run") as progress, pytest.raises(ValueError, match=told):
        EngineRun(cfg, run_dir, progress)
