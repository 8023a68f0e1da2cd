"""Who sits where, as text."""

import re
from pathlib import Path

import pytest

from recipes.plan import plan
from tests.unit.cluster.test_memory_plan import QWEN_7B, SMALL, folder
from zs_nemo.cluster.placement import Placement, place_run
from zs_nemo.cluster.placement_drawing import coordinates, draw_placement
from zs_nemo.cluster.seating import planned_seating, seating_by_ray
from zs_nemo.cluster.setups import Layout, derive_layout
from zs_nemo.config.critic import CriticConfig
from zs_nemo.config.experiment import ClusterConfig, TrainerConfig
from zs_nemo.config.policy import PolicyConfig
from zs_nemo.config.recipe import GrpoRecipeConfig, PpoRecipeConfig, RecipeConfig
from zs_nemo.config.rollout import GenerationConfig, RefitTransport
from zs_nemo.config.search import Bm25SearchConfig, SimulatedSearchConfig


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder(tmp_path / "model", SMALL)


def placed(layout: Layout, num_gpus: int) -> Placement:
    return place_run(layout, num_gpus, RefitTransport.shared_memory)


def drawn(cfg: RecipeConfig, num_gpus: int, num_machines: int = 1) -> str:
    layout = derive_layout(cfg, use_gpu=bool(num_gpus))
    if not num_gpus:
        return draw_placement(cfg, layout)
    seating = planned_seating(
        placed(layout, num_gpus), num_machines=num_machines, gpus_per_machine=num_gpus // num_machines
    )
    return draw_placement(cfg, layout, seating)


def machines_of(drawing: str) -> dict[str, dict[str, list[str]]]:
    """Return {machine: {GPU: its lines}} as the drawing shows them."""
    machines: dict[str, dict[str, list[str]]] = {}
    for part in drawing.split("\n\n")[1:]:
        title, *lines = part.splitlines()
        gpus: dict[str, list[str]] = {}
        columns: list[str] = []
        for line in lines:
            if not line.startswith("│"):
                columns = []
                continue
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            if not columns:
                columns = cells
                gpus |= {cell: [] for cell in cells if cell}
            else:
                for gpu, cell in zip(columns, cells, strict=True):
                    gpus[gpu] += [cell] if cell else []
        machines[title] = gpus
    return machines


def assert_is_straight(drawing: str) -> None:
    for box in re.findall(r"(?:^[┌│├└].*\n)+", drawing, re.MULTILINE):
        assert len({len(line) for line in box.splitlines()}) == 1


def test_ranks_are_numbered_with_the_tensor_parallel_ones_together_and_the_stages_farthest_apart() -> None:
    settings = PolicyConfig(tensor_model_parallel_size=2, context_parallel_size=2, pipeline_model_parallel_size=2)
    places = [{way: place for way, (place, _) in coordinates(rank, settings, 16).items()} for rank in range(16)]
    assert list(places[0]) == ["tp", "cp", "dp", "pp"]
    for rank, place in enumerate(places):
        assert rank == place["tp"] + 2 * (place["cp"] + 2 * (place["dp"] + 2 * place["pp"]))


def test_a_run_on_cpus_shows_its_processes_with_their_threads(model: Path) -> None:
    cfg = GrpoRecipeConfig(search=SimulatedSearchConfig(model=str(model)))
    cfg.policy.model, cfg.cluster = str(model), ClusterConfig(threads_per_process=1, threads_of_lone_engine=2)
    drawing = drawn(cfg, 0)
    assert_is_straight(drawing)
    assert "policy     2 ranks: data 2 (dp)" in drawing and "reference  on the policy's ranks" in drawing
    assert re.search(r"this machine: \d+ cores? for all of them, no GPU", drawing)
    rows = [line.strip("│ ").split() for line in drawing.splitlines() if line.startswith("│")]
    assert rows == [
        ["policy-rank-0", "dp", "0", "1", "thread"],
        ["policy-rank-1", "dp", "1", "1", "thread"],
        ["policy-engine-0", "1", "thread,", "2", "while", "alone"],
        ["simulator-engine-0", "1", "thread"],
        ["driver", "recipe,", "episodes,", "search"],
    ]
    cfg.cluster.ray_address = "head:6379"
    assert "this machine" not in drawn(cfg, 0)


def test_on_one_gpu_everybody_shares_it_with_its_part(model: Path) -> None:
    search = SimulatedSearchConfig(model=str(model), gpu_memory_utilization=0.25, sleep_while_training=True)
    cfg = GrpoRecipeConfig(search=search)
    cfg.policy.model, cfg.trainer = str(model), TrainerConfig(devices=1)
    drawing = drawn(cfg, 1)
    assert_is_straight(drawing)
    assert machines_of(drawing) == {
        "machine 1: 1 GPU": {
            "GPU 0, shared": [
                "policy-rank-0 (1/3)",
                "policy-engine-0 (1/3)",
                "40% of memory",
                "simulator-engine-0 (1/3)",
                "25% of memory, asleep while ranks train",
            ]
        }
    }


def test_on_eight_gpus_a_policy_cut_over_two_and_a_critic_of_its_own_have_their_places(model: Path) -> None:
    critic = CriticConfig(num_ranks=2, tensor_model_parallel_size=2)
    cfg = PpoRecipeConfig(search=SimulatedSearchConfig(model=str(model)), critic=critic)
    cfg.policy = PolicyConfig(model=str(model), tensor_model_parallel_size=2)
    cfg.trainer = TrainerConfig(devices=4)
    drawing = drawn(cfg, 8)
    assert_is_straight(drawing)
    assert "policy     4 ranks: tensor 2 (tp) x data 2 (dp)\n" in drawing
    assert "critic     2 ranks: tensor 2 (tp), apart from the policy's\n" in drawing
    assert machines_of(drawing)["machine 1: 8 GPUs"] == {
        "GPU 0": ["policy-rank-0", "tp 0 dp 0"],
        "GPU 1": ["policy-rank-1", "tp 1 dp 0"],
        "GPU 2": ["policy-rank-2", "tp 0 dp 1"],
        "GPU 3": ["policy-rank-3", "tp 1 dp 1"],
        "GPU 4": ["critic-rank-0", "tp 0"],
        "GPU 5": ["critic-rank-1", "tp 1"],
        "GPU 6": ["policy-engine-0", "40% of memory"],
        "GPU 7": ["simulator-engine-0", "40% of memory"],
    }
    assert "on the policy's ranks" in drawn(PpoRecipeConfig(search=cfg.search, policy=cfg.policy), 8)


def test_an_engine_over_two_gpus_never_lies_across_machines_and_what_is_free_is_shown(model: Path) -> None:
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy.model, cfg.trainer = str(model), TrainerConfig(devices=3)
    cfg.generation = GenerationConfig(tensor_model_parallel_size=2)
    machines = machines_of(drawn(cfg, 8, num_machines=2))
    assert machines["machine 1: 4 GPUs"]["GPU 3"] == ["nobody"]
    second = machines["machine 2: 4 GPUs"]
    assert second["GPU 0"] == ["policy-engine-0", "tp 0 of 2, 40% of memory"]
    assert second["GPU 1"] == ["policy-engine-0", "tp 1 of 2, 40% of memory"]
    assert second["GPU 2"] == ["nobody"]


def test_an_engine_larger_than_every_machine_is_refused(model: Path) -> None:
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy.model, cfg.generation = str(model), GenerationConfig(tensor_model_parallel_size=4)
    with pytest.raises(ValueError, match=r"4 GPUs of one machine .* 3 machines with 2 GPUs"):
        drawn(cfg, 6, num_machines=3)


def test_what_ray_decided_is_drawn_with_the_names_of_its_machines(model: Path) -> None:
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy.model, cfg.trainer = str(model), TrainerConfig(devices=2)
    layout = derive_layout(cfg, use_gpu=True)
    nodes = [
        {"NodeID": "aa", "NodeManagerHostname": "node-a", "Resources": {"GPU": 2.0, "CPU": 8.0}},
        {"NodeID": "bb", "NodeManagerHostname": "node-b", "Resources": {"GPU": 1.0}},
        {"NodeID": "cc", "NodeManagerHostname": "node-c", "Resources": {"CPU": 8.0}},
    ]
    seating = seating_by_ray(placed(layout, 3), nodes, {0: "bb", 1: "aa", 2: "aa"})
    assert machines_of(draw_placement(cfg, layout, seating)) == {
        "node-b: 1 GPU": {"GPU 0": ["policy-rank-0", "dp 0"]},
        "node-a: 2 GPUs": {
            "GPU 0": ["policy-rank-1", "dp 1"],
            "GPU 1": ["policy-engine-0", "40% of memory"],
        },
    }
    # A node that Ray no longer lists must not end a run for its drawing.
    assert "dddddddd: 3 GPUs" in draw_placement(
        cfg, layout, seating_by_ray(placed(layout, 3), nodes, dict.fromkeys(range(3), "dddddddddd"))
    )


def test_many_gpus_are_drawn_in_even_rows_of_a_readable_width(model: Path) -> None:
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy.model, cfg.trainer = str(model), TrainerConfig(devices=8, num_nodes=4)
    cfg.generation = GenerationConfig(num_engines=2)
    drawing = drawn(cfg, 40, num_machines=5)
    assert_is_straight(drawing)
    assert max(map(len, drawing.splitlines())) <= 110
    assert drawing.count("policy-rank-") == 32 and len(machines_of(drawing)) == 5


@pytest.mark.parametrize("gpus", [0, 8])
def test_the_plan_prints_the_drawing(tmp_path: Path, capsys: pytest.CaptureFixture[str], gpus: int) -> None:
    cfg = GrpoRecipeConfig(search=Bm25SearchConfig())
    cfg.policy.model = str(folder(tmp_path / "big", QWEN_7B if gpus else SMALL))
    cfg.cluster = ClusterConfig(gpus_per_node=gpus, gpu_memory_gib=80 if gpus else 0)
    assert plan(cfg) in (0, 2)
    shown = capsys.readouterr().out
    assert ("machine 1: 8 GPUs" if gpus else "this machine:") in shown and "policy-rank-1" in shown
