"""A configuration of the ladder, played; and a measured run, predicted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from zs_nemo.cluster.simulation.gpu_model import GpuClusterBuilder
from zs_nemo.cluster.simulation.planned_cluster import PlannedCluster, on_nodes
from zs_nemo.cluster.simulation.quantities import Source, Sources
from zs_nemo.cluster.simulation.result_page import advice, check_table, document, picture, sources_table, table
from zs_nemo.cluster.simulation.workload import draw_episodes
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.registry import register, to_dataclass
from zs_nemo.weights.families import read_architecture

ROOT = Path(__file__).parents[4]
SHAPES = ROOT / "tests" / "data" / "models"


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "Qwen2.5-7B").symlink_to(SHAPES / "Qwen2.5-7B")
    (folder / "Qwen2.5-14B-Instruct").symlink_to(SHAPES / "Qwen2.5-14B")
    monkeypatch.setenv("ZS_NEMO_MODELS", str(folder))


def load(*overrides: str, recipe: str = "reinforce_pp") -> RecipeConfig:
    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return to_dataclass(compose(recipe, overrides=list(overrides)), RecipeConfig)


def rung(*overrides: str) -> RecipeConfig:
    small = ("rollout.num_prompts_per_step=8", "simulation.num_steps=4")
    return load("experiment=zerosearch_reinforce_pp_7b", *small, *overrides)


def test_every_number_of_a_rung_says_where_it_comes_from():
    planned = PlannedCluster(rung())
    base = planned.as_configured()
    numbers = planned.sources.quantities
    assert numbers["peak"].value == 312 and numbers["peak"].source is Source.data_sheet
    assert numbers["training_efficiency"].source is Source.assumed
    assert numbers["generation: parameters"].value == pytest.approx(7.6156, abs=1e-3)
    assert base.num_gpus == 16
    assert set(base.steps.stage_s) == {"refit", "rollout", "reference", "train"}


def test_a_step_trains_eight_flop_a_parameter_and_token_with_recomputation():
    planned = PlannedCluster(rung("simulation.network_bytes_per_s=1e30", "policy.train_mb_tokens=1"))
    tokens = 40 * planned.workload.sequence_tokens
    # Of 7.616 billion parameters 0.545 are the embedding, which is looked up.
    seconds = 8 * 7.0706e9 * tokens / (8 * 312e12 * 0.35)
    assert planned.as_configured().steps.stage_s["train"] == pytest.approx(seconds, rel=0.01)


def test_a_decode_step_reads_weights_while_it_multiplies_and_keys_besides():
    planned = PlannedCluster(rung())
    speed = GpuClusterBuilder(rung(), planned.layout, planned.workload, Sources()).engine_speed(
        read_architecture(SHAPES / "Qwen2.5-7B"), ranks=1, kv_bytes=1e8, room=256
    )
    keys_s, read_s, multiplied_s = (
        1e8 / (0.7 * 2039e9),
        2 * 7.0706e9 / (0.7 * 2039e9),
        256 * 2 * 7.0706e9 / (0.5 * 312e12),
    )
    assert speed.step_s(1) == pytest.approx(0.002 + read_s + keys_s, rel=1e-3)
    assert speed.step_s(256) == pytest.approx(0.002 + multiplied_s + 256 * keys_s, rel=1e-3)
    assert multiplied_s > read_s


def test_a_simulator_writes_no_more_than_its_limit():
    planned = PlannedCluster(rung("simulation.spread_of_tokens=2.0", "search.max_tokens=300"))
    episodes = draw_episodes(planned.workload, np.random.default_rng(0))
    written = [
        request.new_tokens for turns in episodes for turn in turns if turn.search for request in turn.search.requests
    ]
    assert max(written) == 300 and min(written) < 100


def test_more_gpus_than_micro_batches_do_not_make_training_faster():
    small, large = (
        PlannedCluster(on_nodes(rung("simulation.network_bytes_per_s=1e30"), nodes)).as_configured().steps.stage_s
        for nodes in (32, 64)
    )
    assert small["train"] == pytest.approx(large["train"])


def test_one_more_of_a_role_costs_its_gpus_and_the_advice_names_one():
    planned = PlannedCluster(rung())
    base, grown = planned.as_configured(), planned.with_more()
    assert [each.num_gpus - base.num_gpus for each in grown] == [1, 1, 4]
    assert "grow first" in advice(base, grown) or "no single role" in advice(base, grown)


def test_overlap_pays_on_gpus_of_their_own():
    alone, beside = PlannedCluster(rung()).overlapped()
    assert beside.steps.step_s < alone.steps.step_s


def test_a_faster_gpu_makes_a_faster_step():
    a100, h100 = (
        PlannedCluster(rung(f"simulation.gpu={gpu}")).as_configured().steps.step_s for gpu in ("a100", "h100")
    )
    assert h100 < a100


def test_nodes_bring_engines_in_proportion():
    cfg = on_nodes(rung("simulation.grow_batch=true"), 4)
    assert (cfg.trainer.num_nodes, cfg.generation.num_engines, cfg.search.num_engines) == (4, 8, 8)
    assert cfg.rollout.num_prompts_per_step == 16


def test_without_gpus_and_without_a_measured_run_there_is_nothing_to_begin_from():
    with pytest.raises(ValueError, match=r"simulation\.calibrate_on"):
        PlannedCluster(load("policy.model=" + str(SHAPES / "Qwen2.5-3B"), "search=bm25"))


def row(step: int, **changed: float) -> dict[str, float | str]:
    """Return the metrics of a step."""
    return {
        "phase": "rl",
        "step": step,
        "rollout/episodes": 12.0,
        "rollout/turns_per_episode": 2.0,
        "rollout/searches_per_episode": 1.0,
        "rollout/response_tokens": 60.0,
        "rollout/document_tokens": 40.0,
        "rollout/prompt_tokens": 50.0,
        "rollout/episode_s": 4.0,
        "search/calls": 12.0,
        "search/failures": 0.0,
        "search/latency_s": 1.0,
        "search/simulator_tokens": 0.0,
        "tokens/trained": 720.0,
        "time/rollout": 8.0,
        "time/reference": 3.0,
        "time/train": 10.0,
        "time/refit": 0.5,
        "time/checkpoint": 99.0,
    } | changed


def calibrated(
    folder: Path, rows: list[dict[str, float | str]], *overrides: str, recipe: str = "reinforce_pp"
) -> RecipeConfig:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    model = f"policy.model={SHAPES / 'Qwen2.5-3B'}"
    common = (model, "search=bm25", f"simulation.calibrate_on={folder}", "simulation.num_steps=4")
    return load(*common, *overrides, recipe=recipe)


def test_a_run_predicts_its_later_steps(tmp_path):
    longer = row(2, **{"tokens/trained": 1440.0, "rollout/episodes": 24.0, "time/train": 20.0, "time/reference": 6.0})
    planned = PlannedCluster(calibrated(tmp_path / "run", [row(0), row(1), longer], "simulation.calibration_steps=2"))
    checked = planned.check()
    assert [each.step for each in checked] == [2]
    predicted = checked[0].predicted
    assert predicted["train"] == pytest.approx(20) and predicted["reference"] == pytest.approx(6)
    assert predicted["rollout"] > 8, "more episodes take longer"
    assert "mean error" in check_table(checked)


def test_a_stage_that_only_some_of_the_steps_have_is_calibrated_on_those(tmp_path):
    without = row(0)
    del without["time/train"]
    cfg = calibrated(tmp_path / "run", [without, row(1), row(2)], "simulation.calibration_steps=2")
    assert PlannedCluster(cfg).check()[0].predicted["train"] == pytest.approx(10)
    cfg = calibrated(tmp_path / "first", [without, row(1)], "simulation.calibration_steps=1")
    assert PlannedCluster(cfg).check()[0].predicted["train"] == 0


def test_what_is_played_may_have_more_ranks_and_engines_than_what_was_measured(tmp_path):
    overrides = ("trainer.devices=4", "generation.num_engines=2", "policy.global_batch_size=64")
    cfg = calibrated(tmp_path / "run", [row(0), row(1), row(2)], *overrides)
    (tmp_path / "run" / "config.yaml").write_text("trainer: {devices: 2}\ngeneration: {num_engines: 1}\n")
    planned = PlannedCluster(cfg)
    checked = planned.check()[0].predicted
    assert checked["train"] == pytest.approx(10) and checked["rollout"] == pytest.approx(8, rel=0.05)
    episodes = cfg.rollout.num_prompts_per_step * cfg.rollout.num_generations_per_prompt
    played = planned.as_configured().steps.stage_s["train"]
    assert played == pytest.approx(10 * episodes / 12 / 2), "twice the ranks"


@pytest.mark.parametrize(("measured", "faster"), [(1, 3), (0, 1.5)], ids=["of its own", "on the policy's ranks"])
def test_a_critic_is_as_fast_as_its_own_ranks_make_it(measured: int, faster: float, tmp_path: Path) -> None:
    rows = [row(step, **{"time/values": 2.0, "time/train_critic": 8.0}) for step in range(2)]
    overrides = ("trainer.devices=4", "critic.num_ranks=3", "simulation.calibration_steps=1")
    cfg = calibrated(tmp_path / "run", rows, *overrides, recipe="ppo")
    (tmp_path / "run" / "config.yaml").write_text(f"trainer: {{devices: 2}}\ncritic: {{num_ranks: {measured}}}\n")
    more = cfg.rollout.num_prompts_per_step * cfg.rollout.num_generations_per_prompt / 12
    played = PlannedCluster(cfg).as_configured().steps.stage_s
    assert (played["train"], played["reference"]) == pytest.approx((10 * more / 2, 3 * more / 2))
    assert (played["values"], played["train_critic"]) == pytest.approx((2 * more / faster, 8 * more / faster))


def test_a_run_that_collected_while_it_trained_is_no_measure_of_speeds(tmp_path):
    cfg = calibrated(tmp_path / "run", [row(0), row(1)])
    (tmp_path / "run" / "config.yaml").write_text("rollout: {max_staleness: 1}\n")
    with pytest.raises(ValueError, match="give a run that collected and trained in turn"):
        PlannedCluster(cfg)


def test_what_was_calibrated_on_is_reproduced(tmp_path):
    cfg = calibrated(tmp_path / "run", [row(0), row(1)], "simulation.calibration_steps=1")
    checked = PlannedCluster(cfg).check()
    assert checked[0].predicted["rollout"] == pytest.approx(8, rel=0.02)


def test_a_run_of_one_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has 1 steps"):
        PlannedCluster(calibrated(tmp_path / "run", [row(0)]))


def test_the_table_the_picture_and_the_document_hold_every_cluster():
    planned = PlannedCluster(replace(rung(), simulation=replace(rung().simulation, nodes=[1], num_steps=2)))
    sections = {"configured": [planned.as_configured()], "nodes": planned.on_nodes()}
    numbers = list(planned.sources.quantities.values())
    assert "as configured" in table(sections) and "1 nodes" in table(sections)
    svg = picture(sections)
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "train" in svg
    told = json.loads(json.dumps(document(sections, numbers, [])))
    assert told["clusters"]["configured"][0]["num_gpus"] == 16
    assert "NVIDIA A100" in sources_table(numbers)


def test_engines_that_sleep_while_ranks_train_are_played_without_overlap_which_they_cannot_have():
    sleeping = PlannedCluster(rung("generation.sleep_while_training=true", "search.sleep_while_training=true"))
    assert sleeping.overlapped() == [] and not sleeping.shares_gpus
    base = sleeping.as_configured()
    shown = table({"configured": [base], "grown": sleeping.with_more(), "overlap": [], "nodes": []})
    assert "max_staleness" not in shown and base.steps.step_s > 0


def test_where_roles_share_gpus_no_role_grows_that_would_need_more_of_them():
    crowded = PlannedCluster(rung("trainer.devices=8"))
    assert crowded.shares_gpus
    assert [each.name for each in crowded.with_more()] == ["one more policy engine", "one more simulator"]
    apart = PlannedCluster(rung())
    assert not apart.shares_gpus and apart.with_more()[-1].name == "one more copy of the policy"
