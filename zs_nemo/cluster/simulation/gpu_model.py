"""A cluster of GPUs that nothing was measured on: speeds from data sheets, models' shapes and assumed efficiencies."""

import math
from collections.abc import Callable
from pathlib import Path

from zs_nemo.cluster.memory_plan import GIB, engine_memory, kv_bytes_per_token, multiplied_parameters, parameters_of
from zs_nemo.cluster.setups import Layout, critic_settings
from zs_nemo.cluster.simulation.batching_engine import EngineSpeed
from zs_nemo.cluster.simulation.cluster_model import ClusterModel, EngineRole
from zs_nemo.cluster.simulation.hardware import GPUS
from zs_nemo.cluster.simulation.quantities import Source, Sources
from zs_nemo.cluster.simulation.workload import Workload, max_completion_tokens
from zs_nemo.config.algorithm import KlPlace
from zs_nemo.config.policy import PolicyConfig, Recompute
from zs_nemo.config.recipe import PpoRecipeConfig, RecipeConfig
from zs_nemo.generation.engine_setup import EngineSetup
from zs_nemo.weights.architecture import Architecture
from zs_nemo.weights.families import read_architecture

_BYTES_OF_A_GRADIENT = 4


class GpuClusterBuilder:
    """Derives every speed of a cluster, and notes what it stands on."""

    def __init__(self, cfg: RecipeConfig, layout: Layout, workload: Workload, sources: Sources) -> None:
        self._cfg = cfg
        self._layout = layout
        self._workload = workload
        self._sources = sources
        gpu, assumed = GPUS[cfg.simulation.gpu], self._assumed
        self._flops = sources.note("peak", gpu.flops / 1e12, "TFLOP/s", Source.data_sheet, gpu.data_sheet) * 1e12
        bandwidth = sources.note("memory", gpu.bytes_per_s / 1e9, "GB/s", Source.data_sheet, gpu.data_sheet) * 1e9
        self._training_flops = self._flops * assumed("training_efficiency", "of the peak")
        self._prefill_flops = self._flops * assumed("prefill_efficiency", "of the peak")
        self._bandwidth = bandwidth * assumed("bandwidth_efficiency", "of the bandwidth")
        self._network = assumed("network_bytes_per_s", "B/s")
        self._overhead_s = assumed("engine_step_overhead_s", "s")
        self._allreduce_s = assumed("allreduce_s", "s")

    def build(self, *, num_gpus: int) -> ClusterModel:
        """Return the cluster. Engines and ranks are apart if the GPUs suffice for both."""
        cfg, layout = self._cfg, self._layout
        context = self._workload.mean_context
        generation = self._engines("generation", layout.policy_engines, context)
        simulator = None
        if layout.simulator_engines:
            written = self._workload.simulator_completion_tokens
            simulator = self._engines(
                "simulator", layout.simulator_engines, self._workload.simulator_prompt_tokens + written / 2
            )
        weights = 2.0 * parameters_of(read_architecture(layout.policy_folder))
        staleness = cfg.rollout.max_staleness
        concurrency = cfg.rollout.max_concurrency
        engine_gpus = sum(setup.tensor_model_parallel_size for setup in layout.engines)
        return ClusterModel(
            generation=generation,
            simulator=simulator,
            max_concurrency=min(concurrency, staleness * self._workload.num_episodes) if staleness else concurrency,
            max_staleness=staleness,
            refit_s=weights / self._network,
            stage_s=self._stages(),
            num_ranks=layout.num_ranks,
            num_critic_ranks=layout.num_critic_ranks,
            is_apart=num_gpus >= layout.num_ranks + layout.num_critic_ranks + engine_gpus,
            num_gpus=num_gpus,
        )

    def _engines(self, role: str, setups: tuple[EngineSetup, ...], context: float) -> EngineRole:
        setup = setups[0]
        model, ranks = read_architecture(Path(setup.model_path)), setup.tensor_model_parallel_size
        kv = kv_bytes_per_token(model, tensor_parallel=ranks, dtype=setup.dtype)
        free = setup.gpu_memory_utilization * self._cfg.cluster.gpu_memory_gib * GIB - engine_memory(setup).total
        held = max(1, int(free / (kv * context)))
        speed = self.engine_speed(model, ranks=ranks, kv_bytes=kv * context, room=min(setup.max_num_seqs, held))
        room, step_s = speed.room, speed.step_s
        note = self._sources.note
        note(f"{role}: parameters", parameters_of(model) / 1e9, "billion", Source.model, "config.json")
        note(f"{role}: sequences at once", room, "an engine", Source.model, f"{role}'s max_num_seqs and GPU memory")
        note(f"{role}: step with 1 sequence", 1e3 * step_s(1), "ms", Source.model, "weights over bandwidth, overhead")
        note(f"{role}: step with {room}", 1e3 * step_s(room), "ms", Source.model, "2 FLOP a parameter, keys, overhead")
        note(f"{role}: prompts", 1 / speed.prompt_token_s, "tokens/s", Source.model, "2 FLOP a parameter and token")
        return EngineRole(count=len(setups), speed=speed, gpus_per_engine=ranks)

    def engine_speed(self, model: Architecture, *, ranks: int, kv_bytes: float, room: int) -> EngineSpeed:
        """Return how fast an engine on ``ranks`` GPUs is, with ``kv_bytes`` behind every sequence on each of them."""
        return EngineSpeed(
            step_s=self._decode_step(model, ranks, kv_bytes),
            prompt_token_s=2 * multiplied_parameters(model) / (ranks * self._prefill_flops),
            room=room,
        )

    def _decode_step(self, model: Architecture, ranks: int, kv_bytes: float) -> Callable[[int], float]:
        parameters = multiplied_parameters(model)
        fixed_s = self._overhead_s + (2 * model.num_layers * self._allreduce_s if ranks > 1 else 0.0)
        weights_s = 2.0 * parameters / ranks / self._bandwidth
        sequence_s = kv_bytes / self._bandwidth
        compute_s = 2 * parameters / (ranks * self._prefill_flops)
        # Weights are read while they are multiplied with; keys and values by attention, before and after that.
        return lambda batch: fixed_s + max(weights_s, batch * compute_s) + batch * sequence_s

    def _stages(self) -> dict[str, float]:
        cfg, layout = self._cfg, self._layout
        model = read_architecture(layout.policy_folder)
        episodes = self._workload.num_episodes
        updates = math.ceil(episodes / cfg.policy.global_batch_size)
        passes = (cfg.algorithm.kl.where is not KlPlace.off) + (updates > 1 or cfg.algorithm.kl.where is KlPlace.reward)
        stages = {"reference": passes * self._passes_s(model, cfg.policy, layout.num_ranks, 2, 1)}
        critic = critic_settings(cfg)
        if isinstance(cfg, PpoRecipeConfig) and critic is not None:
            ranks = layout.num_critic_ranks or layout.num_ranks
            stages["values"] = self._passes_s(model, critic, ranks, 2, 1)
            critic_updates = math.ceil(episodes / critic.global_batch_size)
            stages["train_critic"] = cfg.critic.num_epochs * self._update_s(model, critic, ranks, critic_updates)
        stages["train"] = self._update_s(model, cfg.policy, layout.num_ranks, updates)
        return stages

    def _update_s(self, model: Architecture, settings: PolicyConfig, ranks: int, updates: int) -> float:
        again = 2 if settings.activations_checkpoint_granularity is Recompute.full else 0
        copies = ranks // settings.model_parallel_size
        sent = (
            _BYTES_OF_A_GRADIENT * parameters_of(model) / settings.model_parallel_size * settings.context_parallel_size
        )
        gradients_s = 2 * (copies - 1) / copies * sent / self._network
        return self._passes_s(model, settings, ranks, 6 + again, updates) + updates * gradients_s

    def _passes_s(
        self, model: Architecture, settings: PolicyConfig, ranks: int, flop_per_parameter: float, parts: int
    ) -> float:
        """Return the time of a pass over all tokens of a step, in as many ``parts`` as there are updates."""
        tokens = self._workload.num_episodes * self._workload.sequence_tokens / parts
        copies = ranks // settings.model_parallel_size
        # A micro-batch is not cut: with more copies of the model than micro-batches some have nothing to do.
        micro_batches = math.ceil(tokens / settings.train_mb_tokens)
        rounds = math.ceil(micro_batches / copies)
        per_micro_batch = tokens / micro_batches if rounds == 1 else tokens / (rounds * copies)
        flops = flop_per_parameter * multiplied_parameters(model) * per_micro_batch
        seconds = flops / (settings.model_parallel_size * self._training_flops)
        return parts * (rounds + settings.pipeline_model_parallel_size - 1) * seconds

    def _assumed(self, name: str, unit: str) -> float:
        value = getattr(self._cfg.simulation, name)
        return self._sources.note(name, value, unit, Source.assumed, f"simulation.{name}")


def assumed_workload(cfg: RecipeConfig, sources: Sources, *, requests_per_search: int) -> Workload:
    """Return the lengths that ``simulation`` assumes."""
    settings, rollout = cfg.simulation, cfg.rollout

    def assumed(name: str, unit: str) -> float:
        return sources.note(name, getattr(settings, name), unit, Source.assumed, f"simulation.{name}")

    num_episodes = rollout.num_prompts_per_step * rollout.num_generations_per_prompt
    sources.note("episodes a step", num_episodes, "", Source.model, "rollout.num_prompts_per_step x group")
    return Workload(
        num_episodes=num_episodes,
        group_size=rollout.num_generations_per_prompt,
        max_turns=rollout.max_turns,
        turns_per_episode=min(assumed("turns_per_episode", "turns"), rollout.max_turns),
        tokens_per_turn=assumed("tokens_per_turn", "tokens"),
        max_turn_tokens=rollout.max_turn_tokens,
        spread_of_tokens=assumed("spread_of_tokens", ""),
        prompt_tokens=assumed("prompt_tokens", "tokens"),
        document_tokens=min(assumed("document_tokens", "tokens"), rollout.max_document_tokens),
        search_latency_s=0.0 if requests_per_search else assumed("search_latency_s", "s"),
        simulator_requests=requests_per_search,
        simulator_prompt_tokens=assumed("simulator_prompt_tokens", "tokens"),
        simulator_completion_tokens=assumed("simulator_completion_tokens", "tokens"),
        simulator_max_tokens=max_completion_tokens(cfg.search),
    )
