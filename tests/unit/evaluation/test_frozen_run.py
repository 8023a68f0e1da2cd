"""What a manifest repeats, and what it refuses by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import DictConfig

from tests.composed import composed
from zs_nemo.config.evaluate import EvaluateRecipeConfig, Method
from zs_nemo.config.registry import to_dataclass
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.evaluation.frozen_run import FrozenRun, with_manifest
from zs_nemo.evaluation.manifest import EvaluationManifest, SetContent, engine_settings, model_sha256

CONFIGS = str(Path(__file__).parents[3] / "configs")
NAME = "agent_simulator_greedy"
MANIFEST = EvaluationManifest(
    sets={"nq/test": SetContent(num_questions=2, sha256="abc")},
    policy="folder",
    policy_sha256="p1",
    engine="simulator",
    num_documents=1,
    max_turns=3,
    max_turn_tokens=48,
    max_document_tokens=160,
    max_sequence_tokens=768,
    temperature=0.0,
    seed=1,
    prompt_sha256="xyz",
    versions={"vllm": "1"},
    method="agent",
    engine_settings={"temperature": 0.4},
)


def evaluation(*overrides: str) -> DictConfig:
    return composed("evaluate", *overrides)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    cfg = to_dataclass(
        evaluation(
            "search=simulated",
            "search.template=open",
            "search.temperature=0.3",
            "data.test=[pyserini/nq:test]",
            "evaluate.limit=2",
            "evaluate.methods=[agent,direct]",
            "exp_manager.name=mine",
        ),
        EvaluateRecipeConfig,
    )
    path = tmp_path / "manifest.json"
    FrozenRun.of(cfg, {NAME: MANIFEST}).write(path)
    return path


def test_a_manifest_brings_its_settings_back_under_another_name(kept: Path) -> None:
    overrides = [f"manifest={kept}", "rollout.max_concurrency=7"]
    cfg = to_dataclass(with_manifest(evaluation(*overrides), overrides), EvaluateRecipeConfig)
    assert isinstance(cfg.search, SimulatedSearchConfig) and cfg.search.temperature == 0.3
    assert cfg.data.test == ["pyserini/nq:test"] and cfg.evaluate.limit == 2
    assert cfg.evaluate.methods == [Method.agent, Method.direct]
    assert (cfg.exp_manager.name, cfg.rollout.max_concurrency, cfg.rollout.max_turns) == ("mine_repeated", 7, 3)
    named = [*overrides, "exp_manager.name=again"]
    assert with_manifest(evaluation(*named), named).exp_manager.name == "again"


def test_a_manifest_is_repeated_on_the_cluster_that_is_chosen(kept: Path) -> None:
    overrides = [f"manifest={kept}", "cluster=a100_2x8", "generation.num_engines=16"]
    cfg = to_dataclass(with_manifest(evaluation(*overrides), overrides), EvaluateRecipeConfig)
    assert (cfg.trainer.num_nodes, cfg.cluster.gpus_per_node, cfg.generation.num_engines) == (2, 8, 16)
    assert cfg.search.temperature == 0.3


def test_a_manifest_says_in_lines_of_their_own_that_engines_of_the_run_simulate(kept: Path) -> None:
    lines = kept.read_text().splitlines()
    # launch/slurm/evaluate.sbatch, which cannot count on a Python, looks for them.
    assert '  "search": "simulated",' in lines and '      "endpoints": [],' in lines


def test_without_a_manifest_the_settings_are_as_composed() -> None:
    settings = evaluation()
    assert with_manifest(settings, []) is settings


@pytest.mark.parametrize(
    ("override", "why"),
    [("search=bm25", r"'search=bm25' chooses a group"), ("+search.corpus=x", r"corpus.*leave the override out")],
)
def test_an_override_that_cannot_be_taken_is_named(kept: Path, override: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        with_manifest(evaluation(f"manifest={kept}"), [f"manifest={kept}", override])


@pytest.mark.parametrize("content", [None, "{", "[]", '{"recipe": "grpo", "format": 1}'])
def test_another_file_is_no_manifest(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="manifest="):
        with_manifest(evaluation(f"manifest={path}"), [f"manifest={path}"])


def test_what_would_make_it_another_evaluation_is_refused_by_name(kept: Path) -> None:
    frozen = FrozenRun.read(kept)
    assert frozen.evaluations == {NAME: MANIFEST}
    now = replace(MANIFEST, engine_settings=engine_settings(SimulatedSearchConfig(temperature=0.4)))
    moved = replace(now, policy="elsewhere/folder", versions={"vllm": "2"})
    assert frozen.check_repeated_by({NAME: moved}) == ["versions.vllm: 1 -> 2"]
    hotter = engine_settings(SimulatedSearchConfig(temperature=0.9))
    for changed, told in (
        (replace(now, policy_sha256="p2"), "policy_sha256: p1 -> p2"),
        (replace(now, policy="other", policy_sha256=""), "policy: folder -> other"),
        (replace(now, engine_settings=hotter), r"manifest: engine_settings\.temperature: 0\.4 -> 0\.9; set"),
    ):
        with pytest.raises(ValueError, match=told):
            frozen.check_repeated_by({NAME: changed})
    with pytest.raises(ValueError, match="no evaluation direct_closed_book_greedy, it has agent_simulator_greedy"):
        frozen.check_repeated_by({"direct_closed_book_greedy": MANIFEST})


def test_a_setting_that_came_later_hinders_no_repetition_at_its_default_and_is_named_otherwise(kept: Path) -> None:
    frozen = FrozenRun.read(kept)
    # The kept manifest knows the temperature alone, as if every other setting had come after it.
    assert MANIFEST.engine_settings == {"temperature": 0.4}
    as_before = replace(MANIFEST, engine_settings=engine_settings(SimulatedSearchConfig(temperature=0.4)))
    assert frozen.check_repeated_by({NAME: as_before}) == []
    other = replace(MANIFEST, engine_settings=engine_settings(SimulatedSearchConfig(temperature=0.4, max_tokens=33)))
    with pytest.raises(ValueError, match=r"manifest: engine_settings\.max_tokens: \d+ -> 33; set"):
        frozen.check_repeated_by({NAME: other})


def test_a_model_is_known_by_what_decides_its_text_alone(tmp_path: Path) -> None:
    def folder(name: str, version: str, weights: bytes) -> Path:
        made = tmp_path / name
        made.mkdir()
        (made / "config.json").write_text(json.dumps({"hidden_size": 8, "transformers_version": version}))
        (made / "model.safetensors").write_bytes(weights)
        (made / "README.md").write_text(name)
        return made

    first = model_sha256(folder("a", "5.1", b"weights"))
    assert first == model_sha256(folder("b", "5.2", b"weights")) != model_sha256(folder("c", "5.1", b"others"))
