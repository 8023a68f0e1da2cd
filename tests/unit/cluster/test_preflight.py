import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from zs_nemo.cluster import preflight
from zs_nemo.cluster.memory_plan import plan_memory
from zs_nemo.cluster.setups import Layout, derive_layout, num_updates
from zs_nemo.config.algorithm import KlPlace
from zs_nemo.config.critic import CriticConfig
from zs_nemo.config.endpoints import RecordingConfig, RecordingMode
from zs_nemo.config.experiment import Accelerator
from zs_nemo.config.policy import Precision, SchedConfig, ScheduleName
from zs_nemo.config.recipe import GrpoRecipeConfig, PpoRecipeConfig
from zs_nemo.config.rollout import RefitTransport, RolloutConfig
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.weights.families import read_architecture

GIB = 2**30
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "vocab_size": 1024,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


@pytest.fixture(autouse=True)
def plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else runs on the machine must not decide about these tests."""
    monkeypatch.setattr(preflight, "available_memory", lambda: 64 * GIB)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    shapes = read_architecture(folder).hf_shapes()
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture
def cfg(model: Path) -> GrpoRecipeConfig:
    cfg = GrpoRecipeConfig(search=SimulatedSearchConfig(model=str(model)))
    cfg.policy.model = str(model)
    cfg.trainer.accelerator = Accelerator.cpu
    return cfg


def test_the_quickstart_s_layout_has_two_ranks_a_policy_engine_and_a_simulator(cfg: GrpoRecipeConfig) -> None:
    layout = derive_layout(cfg)
    assert layout.num_ranks == 2
    assert [setup.name for setup in layout.engines] == ["policy-engine-0", "simulator-engine-0"]
    assert layout.policy_engines[0].max_model_len == cfg.rollout.max_sequence_tokens
    preflight.check(cfg, layout)


@pytest.mark.parametrize("group", ["rollout", "search"])
@pytest.mark.parametrize(
    ("rope", "refused"),
    [
        ({}, True),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, True),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, False),
    ],
)
def test_a_sequence_longer_than_the_model_s_context_is_refused_before_anything_starts(
    cfg: GrpoRecipeConfig, model: Path, tmp_path: Path, group: str, rope: dict[str, Any], refused: bool
) -> None:
    folder = tmp_path / group
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**MODEL, **rope}))
    if group == "rollout":
        cfg.policy.model, cfg.rollout.max_sequence_tokens = str(folder), 2049
    else:
        cfg.search = SimulatedSearchConfig(model=str(folder), max_sequence_tokens=2049)
    told = rf"^{group}\.max_sequence_tokens=2049 is more than the 2048 tokens that the model takes .*; set it to"
    with pytest.raises(ValueError, match=told) if refused else nullcontext():
        preflight.check_context_lengths(derive_layout(cfg))
    if refused:
        with pytest.raises(ValueError, match=told):
            preflight.check_cuts(cfg, derive_layout(cfg))


@pytest.mark.parametrize(
    ("precision", "dtype", "expected"),
    [(Precision.bf16, "auto", "bfloat16"), (Precision.fp32, "auto", "float32"), (Precision.bf16, "float32", "float32")],
)
def test_the_engine_s_dtype_follows_the_policy_s_precision(
    cfg: GrpoRecipeConfig, precision: Precision, dtype: str, expected: str
) -> None:
    cfg.policy.precision, cfg.generation.dtype = precision, dtype
    assert derive_layout(cfg).policy_engines[0].dtype == expected


def test_without_a_kl_term_no_reference_is_kept(cfg: GrpoRecipeConfig) -> None:
    assert derive_layout(cfg).has_reference
    cfg.algorithm.kl.where = KlPlace.off
    assert not derive_layout(cfg).has_reference


def test_the_schedule_counts_updates_and_not_steps(cfg: GrpoRecipeConfig) -> None:
    cfg.trainer.max_steps, cfg.policy.global_batch_size = 10, 20
    cfg.rollout.num_prompts_per_step, cfg.rollout.num_generations_per_prompt = 8, 4
    assert num_updates(cfg) == 20


def test_a_schedule_that_the_run_is_too_short_for_is_refused_before_anything_starts(cfg: GrpoRecipeConfig) -> None:
    cfg.trainer.max_steps, cfg.policy.global_batch_size = 10, 20
    cfg.rollout.num_prompts_per_step, cfg.rollout.num_generations_per_prompt = 8, 4
    cfg.policy.optim.sched = SchedConfig(name=ScheduleName.CosineAnnealing, warmup_ratio=0.5, constant_steps=10)
    with pytest.raises(ValueError, match=r"^policy\.optim\.sched\.constant_steps=10 .* 10 .* the run's 20 updates"):
        preflight.check(cfg, derive_layout(cfg))
    cfg.policy.optim.sched.constant_steps = 9
    preflight.check(cfg, derive_layout(cfg))


def test_a_missing_model_folder_names_its_setting(cfg: GrpoRecipeConfig) -> None:
    assert isinstance(cfg.search, SimulatedSearchConfig)
    cfg.search.model = "/nowhere"
    with pytest.raises(ValueError, match=r"search\.model.*'/nowhere'"):
        derive_layout(cfg)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_without_one_names_the_setting(cfg: GrpoRecipeConfig) -> None:
    cfg.trainer.accelerator = Accelerator.gpu
    with pytest.raises(ValueError, match=r"trainer\.accelerator=gpu.*trainer\.accelerator=cpu"):
        derive_layout(cfg)


@pytest.mark.parametrize("group", ["policy", "generation", "search"])
def test_a_tensor_parallel_size_that_does_not_divide_the_heads_names_its_setting(
    cfg: GrpoRecipeConfig, group: str
) -> None:
    getattr(cfg, group).tensor_model_parallel_size = 2
    with pytest.raises(ValueError, match=rf"{group}\.tensor_model_parallel_size=2 must divide the model's 9 attention"):
        preflight.check(cfg, derive_layout(cfg))


def test_layers_that_the_stages_cannot_share_are_refused_with_the_settings_that_share_them(
    cfg: GrpoRecipeConfig,
) -> None:
    cfg.trainer.devices = cfg.policy.pipeline_model_parallel_size = 3
    with pytest.raises(ValueError, match=r"num_layers_in_first_pipeline_stage=1 and .*last_pipeline_stage=1, or"):
        preflight.check(cfg, derive_layout(cfg))
    cfg.policy.num_layers_in_first_pipeline_stage = cfg.policy.num_layers_in_last_pipeline_stage = 1
    preflight.check(cfg, derive_layout(cfg))


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ("tensor", r"^critic\.tensor_model_parallel_size=2 must divide the model's 9"),
        ("pipeline", r"^critic\.pipeline_model_parallel_size=2 .*; set critic\.pipeline_model_parallel_size to one of"),
    ],
)
def test_the_layout_of_a_critic_of_its_own_is_refused_under_its_own_settings(
    cfg: GrpoRecipeConfig, model: Path, size: str, told: str
) -> None:
    changed = json.dumps(MODEL | {"num_hidden_layers": 3})
    (model / "config.json").write_text(changed)
    shapes = read_architecture(model).hf_shapes()
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, model / "model.safetensors")
    critic = CriticConfig(num_ranks=2, **{f"{size}_model_parallel_size": 2})
    ppo = PpoRecipeConfig(search=cfg.search, policy=cfg.policy, trainer=cfg.trainer, critic=critic)
    with pytest.raises(ValueError, match=told):
        preflight.check(ppo, derive_layout(ppo))


def test_a_folder_with_tensors_that_its_configuration_does_not_call_for_is_refused(
    cfg: GrpoRecipeConfig, model: Path
) -> None:
    save_file({"model.layers.0.self_attn.q_proj.bias": torch.zeros(288)}, model / "more.safetensors")
    with pytest.raises(ValueError, match=r"has besides model\.layers\.0\.self_attn\.q_proj\.bias"):
        preflight.check(cfg, derive_layout(cfg))


def test_too_little_memory_is_refused_with_the_parts_of_the_estimate(cfg: GrpoRecipeConfig) -> None:
    layout = derive_layout(cfg)
    with pytest.raises(ValueError, match=r"needs about .* GiB .*2 training ranks.*but 1\.0 GiB are available"):
        preflight.check_memory(cfg, layout, GIB)
    preflight.check_memory(cfg, layout, 64 * GIB)


def test_the_memory_plan_grows_with_what_costs_memory(cfg: GrpoRecipeConfig) -> None:
    def needed(layout: Layout) -> int:
        return plan_memory(cfg, layout).total

    layout = derive_layout(cfg)
    base = needed(layout)
    bigger_cache = replace(layout, policy_engines=(replace(layout.policy_engines[0], kv_cache_gib=8.0),))
    assert needed(bigger_cache) - base == pytest.approx((8 - cfg.generation.kv_cache_gib) * GIB, rel=1e-6)
    assert needed(replace(layout, num_ranks=4)) > base
    cfg.policy.train_mb_tokens *= 4
    assert needed(layout) > base


def test_shared_memory_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="/dev/shm has 100 MiB free"):
        preflight.check_shared_memory(refit_bytes=270 * 2**20, free=100 * 2**20)
    preflight.check_shared_memory(refit_bytes=270 * 2**20, free=GIB)


def test_handles_of_cuda_memory_need_a_gpu(cfg: GrpoRecipeConfig) -> None:
    cfg.generation.refit_transport = RefitTransport.cuda_ipc
    with pytest.raises(ValueError, match=r"generation\.refit_transport=cuda_ipc needs GPUs.*=shared_memory"):
        preflight.check(cfg, derive_layout(cfg))


@pytest.mark.parametrize("group", ["generation", "search"])
def test_engines_that_sleep_need_a_gpu_to_give_up(cfg: GrpoRecipeConfig, group: str) -> None:
    getattr(cfg, group).sleep_while_training = True
    with pytest.raises(ValueError, match=rf"{group}\.sleep_while_training=true needs GPUs.*set {group}\."):
        preflight.check(cfg, derive_layout(cfg))


class Models(BaseHTTPRequestHandler):
    """Serves the list of models and nothing else."""

    def do_GET(self) -> None:
        self._send({"data": [{"id": "llama"}]}, 200 if self.path == "/v1/models" else 404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send({"choices": [{"text": " Lima is", "finish_reason": "length"}]}, 200)

    def _send(self, answer: dict[str, Any], status: int) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def served() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Models) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_with_endpoints_no_simulator_engine_is_started_and_its_model_is_not_looked_for(
    cfg: GrpoRecipeConfig, served: str
) -> None:
    cfg.search = SimulatedSearchConfig(model="/nowhere", endpoints=[served], served_model="llama")
    layout = derive_layout(cfg)
    assert [setup.name for setup in layout.engines] == ["policy-engine-0"]
    preflight.check(cfg, layout)
    assert plan_memory(cfg, layout).total > 0


def test_endpoints_that_cannot_be_used_are_refused_with_each_of_their_errors(
    cfg: GrpoRecipeConfig, served: str, caplog: pytest.LogCaptureFixture
) -> None:
    dead = "http://127.0.0.1:9"
    cfg.search = SimulatedSearchConfig(endpoints=[dead, served], served_model="qwen")
    told = r"search\.endpoints: none of 2 .*127\.0\.0\.1:9/v1: ClientConn.*it serves llama, and not 'qwen'"
    with pytest.raises(ValueError, match=told):
        preflight.check(cfg, derive_layout(cfg))
    cfg.search = replace(cfg.search, served_model="llama")
    preflight.check(cfg, derive_layout(cfg))
    assert f"{dead}/v1 cannot be used now" in caplog.text, "one of two is enough to begin with"


@pytest.mark.parametrize(
    ("max_concurrency", "num_documents", "endpoints", "warned"),
    [(320, 1, 1, True), (320, 1, 3, False), (64, 5, 1, True)],
)
def test_many_more_searches_than_the_endpoints_take_at_once_are_warned_of(
    caplog: pytest.LogCaptureFixture, max_concurrency: int, num_documents: int, endpoints: int, warned: bool
) -> None:
    addresses = [f"http://host{number}" for number in range(endpoints)]
    search = SimulatedSearchConfig(endpoints=addresses, served_model="llama", num_documents=num_documents)
    preflight.warn_of_waiting(RolloutConfig(max_concurrency=max_concurrency), search)
    told = f"search.endpoints take {64 * endpoints} ({endpoints} x search.pool.max_concurrency=64)"
    assert (told in caplog.text) is warned is bool(caplog.text)


def test_a_template_that_cannot_be_used_is_refused_before_anything_starts(
    cfg: GrpoRecipeConfig, tmp_path: Path
) -> None:
    template = tmp_path / "mine.j2"
    template.write_text("{{ query }}{{ question }}{{ answers }}")
    assert isinstance(cfg.search, SimulatedSearchConfig)
    cfg.search.template = str(template)
    with pytest.raises(ValueError, match=r"mine\.j2 has no slot noisy"):
        preflight.check(cfg, derive_layout(cfg))


def test_a_recording_that_is_to_be_replayed_must_be_there_and_asks_no_endpoint(
    cfg: GrpoRecipeConfig, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    recording = RecordingConfig(mode=RecordingMode.replay, path=str(path))
    cfg.search = SimulatedSearchConfig(
        endpoints=["http://127.0.0.1:9"], served_model="llama", recording=recording, model="/nowhere"
    )
    with pytest.raises(ValueError, match=r"search\.recording\.path='.*answers\.jsonl' is no file"):
        preflight.check(cfg, derive_layout(cfg))
    path.touch()
    preflight.check(cfg, derive_layout(cfg))


def test_several_nodes_need_a_cluster(cfg: GrpoRecipeConfig) -> None:
    cfg.trainer.num_nodes = 2
    with pytest.raises(ValueError, match=r"trainer\.num_nodes=2, but cluster\.ray_address is empty"):
        preflight.check(cfg, derive_layout(cfg))


def test_more_threads_than_cores_is_a_warning_only(cfg: GrpoRecipeConfig, caplog: pytest.LogCaptureFixture) -> None:
    cfg.cluster.threads_per_process = 1
    preflight.warn_of_too_few_cores(cfg, cores=2)
    assert not caplog.records
    preflight.warn_of_too_few_cores(cfg, cores=1)
    assert "trainer.devices=2" in caplog.text


def test_a_disk_that_the_checkpoints_will_fill_is_a_warning(
    cfg: GrpoRecipeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.exp_manager.exp_dir, cfg.exp_manager.name = str(tmp_path / "not there yet"), "run"
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * GIB))
    preflight.warn_of_little_disk(cfg.exp_manager, 1.0 * GIB)
    assert not caplog.records
    preflight.warn_of_little_disk(cfg.exp_manager, 1.1 * GIB)
    assert f"{tmp_path} has 3.0 GiB free, but exp_manager.save_top_k=2" in caplog.text and "3.3 GiB" in caplog.text
    caplog.clear()
    # The checkpoints of a run that goes on will be replaced.
    old = tmp_path / "not there yet" / "run" / "checkpoints" / "step_000001"
    old.mkdir(parents=True)
    with open(old / "policy", "wb") as file:
        file.truncate(GIB)
    preflight.warn_of_little_disk(cfg.exp_manager, 1.1 * GIB)
    assert not caplog.records


def test_fewer_gpus_than_are_planned_for_are_refused_and_not_shared(
    cfg: GrpoRecipeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 64.0, "GPU": 4.0}}] * 2
    told = (
        r"cluster\.gpus_per_node=8 with trainer\.num_nodes=2 plans for 16 GPUs, but 8 are allocated; ask for all of "
        r"them \(sbatch --gpus-per-node=8\), or choose"
    )
    cfg.trainer.num_nodes, cfg.trainer.devices = 2, 4
    cfg.cluster.gpus_per_node, cfg.cluster.gpu_memory_gib = 8, 79
    cfg.cluster.ray_address = "10.0.0.1:20001"
    layout = derive_layout(cfg, use_gpu=True)
    with pytest.raises(ValueError, match=told):
        preflight.check_allocation(cfg, layout, nodes)
    preflight.check_allocation(cfg, layout, nodes * 2)
    preflight.check_allocation(cfg, derive_layout(cfg, use_gpu=False), nodes)
    cfg.trainer.num_nodes, cfg.cluster.ray_address = 1, ""
    monkeypatch.setattr(preflight, "local_gpus", lambda: (4, 80.0 * GIB))
    with pytest.raises(ValueError, match=r"plans for 8 GPUs, but 4 are allocated"):
        preflight.check(cfg, derive_layout(cfg, use_gpu=True))
    cfg.cluster.gpus_per_node = 4
    preflight.check(cfg, derive_layout(cfg, use_gpu=True))


def test_more_than_what_is_allocated_is_refused_before_ray_waits_for_it(cfg: GrpoRecipeConfig) -> None:
    def nodes(*cores: int) -> list[dict[str, Any]]:
        return [{"Alive": count > 0, "Resources": {"CPU": float(count)}} for count in cores]

    cfg.cluster.ray_address, cfg.trainer.num_nodes, cfg.trainer.devices = "10.0.0.1:20001", 2, 1
    layout = derive_layout(cfg, use_gpu=False)
    preflight.check_allocation(cfg, layout, nodes(2, 2))
    with pytest.raises(
        ValueError, match=r"trainer\.num_nodes=2, but the Ray cluster at 10\.0\.0\.1:20001 has 1; allocate"
    ):
        preflight.check_allocation(cfg, layout, nodes(8, 0))
    with pytest.raises(
        ValueError, match=r"4 processes .* need a core each, but 3 are allocated on 2 nodes; allocate more"
    ):
        preflight.check_allocation(cfg, layout, nodes(2, 1))
