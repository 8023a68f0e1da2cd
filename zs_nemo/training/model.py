"""Builds megatron-core's GPT model from a Hugging Face configuration, with outputs at masked positions only."""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt.gpt_layer_specs import (
    HAVE_TE,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from zs_nemo.config.policy import PolicyConfig, Precision, Recompute
from zs_nemo.training.attention import PackedRow, SegmentAttention
from zs_nemo.training.context_parallel import RowSlice, gather_outputs, slice_row
from zs_nemo.training.kernels import RmsNorm, SwiGlu
from zs_nemo.training.microbatch import PackedTokens
from zs_nemo.training.vocab_parallel import logprobs_and_entropy
from zs_nemo.weights.architecture import Architecture
from zs_nemo.weights.hf_folder import HfTensors
from zs_nemo.weights.parameter_map import Cut, ParameterRule


class PackedGptModel(GPTModel):
    """A GPT model over packed sequences that projects onto the vocabulary only where a masked token is predicted."""

    real_vocab_size: int
    """Without the padding that makes the vocabulary divisible by the tensor-parallel ranks."""

    def forward(self, packed: PackedTokens, temperature: float, *, as_logits: bool = False) -> Tensor:
        """Return float32 [2, N], logprobs and entropies of the targets; before the last stage, hidden states.

        ``as_logits`` returns this rank's columns of the logits [N, V / ranks] instead, for comparisons.
        """
        row_slice: RowSlice | None = None
        if self.config.context_parallel_size > 1:
            packed, row_slice = slice_row(packed, parallel_state.get_context_parallel_group())
        row = PackedRow(
            row_slice=row_slice,
            qkv_format="thd",
            cu_seqlens_q=packed.cu_seqlens,
            cu_seqlens_kv=packed.cu_seqlens,
            max_seqlen_q=packed.max_seqlen,
            max_seqlen_kv=packed.max_seqlen,
        )
        decoder_input, angles = self._preprocess(
            input_ids=packed.input_ids.unsqueeze(0), position_ids=None, packed_seq_params=row
        )[:2]
        self._prepare_attention(row, packed, angles)
        hidden = self.decoder(hidden_states=decoder_input, attention_mask=None, packed_seq_params=row)
        if not self.post_process:
            return hidden
        if self.config.sequence_parallel:
            # All ranks go on with all tokens and do the same with them: each keeps its part of the gradient.
            hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        hidden = hidden.squeeze(1).index_select(0, packed.output_positions)
        outputs = self._outputs(hidden, packed, temperature, as_logits)
        return outputs if row_slice is None else gather_outputs(outputs, row_slice)

    def _outputs(self, hidden: Tensor, packed: PackedTokens, temperature: float, as_logits: bool) -> Tensor:
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits = self.output_layer(hidden, weight=weight)[0]
        if as_logits:
            return logits
        return logprobs_and_entropy(
            logits,
            packed.targets,
            temperature=temperature,
            vocab_size=self.real_vocab_size,
            group=parallel_state.get_tensor_model_parallel_group(),
        )

    def _prepare_attention(self, row: PackedRow, packed: PackedTokens, angles: Tensor) -> None:
        """Leave the rotation to ``SegmentAttention``, with the cosines of all layers computed once."""
        row.seqlens, row.expansion = packed.seqlens, packed.expansion
        row.first_uses, row.later_uses = packed.first_uses, packed.later_uses
        of_tokens = angles[:, 0, :, : angles.shape[-1] // 2].index_select(0, packed.position_ids)
        row.cos, row.sin = of_tokens.cos().to(self.config.params_dtype), of_tokens.sin().to(self.config.params_dtype)


class ValueHead(torch.nn.Module):
    """One number per token from its hidden state. Every tensor-parallel rank holds all of it, and computes the same."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        # Zero: a critic that knows nothing expects nothing, and its first advantages are the rewards themselves.
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=config.params_dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return float32 [N] of ``hidden`` [N, H]."""
        return (hidden.float() @ self.weight.float().T).squeeze(1)


class PackedCriticModel(PackedGptModel):
    """The same model with a scalar head for output layer, so that layouts and checkpoints hold for it as they are."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.post_process:
            self.output_layer = ValueHead(self.config)

    def _outputs(self, hidden: Tensor, packed: PackedTokens, temperature: float, as_logits: bool) -> Tensor:
        """Return float32 [1, N]: what is expected before each masked token is written."""
        assert not as_logits, "a critic has no logits"
        return self.output_layer(hidden)[None]


def transformer_config(architecture: Architecture, policy: PolicyConfig, *, fused: bool) -> TransformerConfig:
    """Translate to megatron-core's configuration. ``fused`` switches on kernels that need a GPU."""
    dtype = torch.bfloat16 if policy.precision is Precision.bf16 else torch.float32
    return TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.intermediate_size,
        num_attention_heads=architecture.num_heads,
        num_query_groups=architecture.num_kv_heads,
        kv_channels=architecture.head_dim,
        layernorm_epsilon=architecture.norm_eps,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        add_qkv_bias=architecture.family.has_qkv_bias,
        # Beside the norms this makes megatron-core add up their gradients over the tensor-parallel ranks, of which each
        # sees its own heads only.
        qk_layernorm=architecture.family.has_qk_norm,
        tensor_model_parallel_size=policy.tensor_model_parallel_size,
        context_parallel_size=policy.context_parallel_size,
        pipeline_model_parallel_size=policy.pipeline_model_parallel_size,
        sequence_parallel=policy.sequence_parallel,
        num_layers_in_first_pipeline_stage=policy.num_layers_in_first_pipeline_stage,
        num_layers_in_last_pipeline_stage=policy.num_layers_in_last_pipeline_stage,
        **_recomputation(policy),
        # Packed rows differ in length, and the schedules exchange shapes only if told so; the dispatcher is never
        # used (there are no experts) but the combination with the default one is refused.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        # Gradients are sums over micro-batches and ranks; the loss is already divided by the whole batch's normalizer.
        calculate_per_token_loss=True,
        use_cpu_initialization=not fused,
        perform_initialization=False,
        bias_activation_fusion=fused,
        # The name is megatron-core's; on the local spec it means that the activation is a module of the spec.
        use_te_activation_func=not fused,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
    )


def _recomputation(policy: PolicyConfig) -> dict[str, Any]:
    granularity = policy.activations_checkpoint_granularity
    if granularity is not Recompute.full:
        return {"recompute_granularity": granularity.value if granularity else None}
    return {
        "recompute_granularity": granularity.value,
        "recompute_method": policy.activations_checkpoint_method.value,
        "recompute_num_layers": policy.activations_checkpoint_num_layers,
    }


def _layer_spec(config: TransformerConfig, *, use_transformer_engine: bool) -> ModuleSpec | TransformerBlockSubmodules:
    """Describe the layers of this pipeline stage."""
    if use_transformer_engine:
        fused = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
        # Transformer Engine's own attention knows no shared prefixes, and under context parallelism would have every
        # sequence filled up to a multiple of the ranks.
        fused.submodules.self_attention.submodules.core_attention = SegmentAttention
        return fused
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    layer = spec.submodules
    attention = layer.self_attention.submodules
    attention.core_attention = SegmentAttention
    if config.qk_layernorm:
        # megatron-core applies them before the core attention, which rotates: in the order that Qwen3 has.
        attention.q_layernorm = attention.k_layernorm = RmsNorm
    layer.input_layernorm = layer.pre_mlp_layernorm = RmsNorm
    layer.mlp.submodules.activation_func = SwiGlu
    return TransformerBlockSubmodules(layer_specs=[spec] * get_num_layers_to_build(config), layer_norm=RmsNorm)


def shares_prefixes(policy: PolicyConfig) -> bool:
    """Whether the model computes tokens with the same prefix once: unless the row is cut over ranks."""
    return policy.context_parallel_size == 1


def token_multiple(policy: PolicyConfig) -> int:
    """Return what the number of tokens of a micro-batch must be a multiple of, to be cut over ranks evenly."""
    pieces = 1 if policy.context_parallel_size == 1 else 2 * policy.context_parallel_size
    return pieces * (policy.tensor_model_parallel_size if policy.sequence_parallel else 1)


def _uses_transformer_engine(device: torch.device) -> bool:
    return bool(HAVE_TE) and device.type == "cuda"


def build_model(
    architecture: Architecture, policy: PolicyConfig, device: torch.device, *, is_critic: bool = False
) -> torch.nn.Module:
    """Build this rank's part of a policy or a critic, with weights still to be loaded, a critic's head apart.

    In bf16 the result is megatron-core's half-precision wrapper, whose ``module`` is the ``PackedGptModel``.
    """
    use_te = _uses_transformer_engine(device)
    config = transformer_config(architecture, policy, fused=use_te)
    ranks = policy.tensor_model_parallel_size
    model = (PackedCriticModel if is_critic else PackedGptModel)(
        config=config,
        transformer_layer_spec=_layer_spec(config, use_transformer_engine=use_te),
        vocab_size=architecture.vocab_size + -architecture.vocab_size % ranks,
        max_sequence_length=architecture.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=architecture.tied and not is_critic,
        position_embedding_type="rope",
    ).to(device)
    model.rotary_pos_emb.inv_freq = architecture.rope.inverse_frequencies(architecture.head_dim).to(device)
    model.real_vocab_size = architecture.vocab_size
    if config.sequence_parallel and model.post_process and not is_critic:
        # Its input is brought together before, to pick the tokens that are projected.
        model.output_layer.sequence_parallel, model.output_layer.allreduce_dgrad = False, True
    _mark_cut_weights(model, architecture)
    return Float16Module(config, model) if config.bf16 else model


def _mark_cut_weights(model: torch.nn.Module, architecture: Architecture) -> None:
    """Say which weights are cut over tensor-parallel ranks.

    megatron-core does so only as it initialises weights, which are loaded here. Without the mark the gradient norm
    takes what the other ranks hold for copies, and leaves it out.
    """
    for name, parameter in named_weights(model):
        cut = architecture.rule_for(name).cut
        if cut is not Cut.whole and not hasattr(parameter, "tensor_model_parallel"):
            dim, stride = int(cut is Cut.columns), 2 if cut is Cut.gate_up else 1
            tensor_parallel.set_tensor_model_parallel_attributes(parameter, True, dim, stride)


def unwrap(model: torch.nn.Module) -> PackedGptModel:
    """Return the model inside megatron-core's wrappers."""
    inner: Any = model
    while not isinstance(inner, PackedGptModel):
        inner = inner.module
    return inner


def named_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the weights of this pipeline stage under their names in the whole model; a critic's head is left out."""
    inner = unwrap(model)
    first_layer = inner.decoder.layers[0].layer_number - 1
    for name, parameter in inner.named_parameters():
        if isinstance(inner, PackedCriticModel) and name == "output_layer.weight":
            continue
        if name.startswith("decoder.layers."):
            local, rest = name.removeprefix("decoder.layers.").split(".", 1)
            name = f"decoder.layers.{int(local) + first_layer}.{rest}"
        yield name, parameter


@torch.no_grad()
def load_hf(model: torch.nn.Module, architecture: Architecture, tensors: HfTensors) -> None:
    """Fill every weight of this rank from a Hugging Face folder, tensor by tensor.

    Raises ``ValueError`` when the folder's tensors are not those of the architecture, before any is read.
    """
    architecture.check_tensors(tensors)
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in named_weights(model):
        rule = architecture.rule_for(name)
        # Without a name for what is read, it is gone before the next parameter's tensors are.
        parameter.copy_(rule.to_megatron([tensors.read(hf_name) for hf_name in rule.hf_names], rank, size))


@torch.no_grad()
def iterate_hf(
    model: torch.nn.Module, architecture: Architecture, *, in_every_replica: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Yield the whole model's tensors under their Hugging Face names, on every rank of the first replica.

    Collective over that replica (data-parallel rank 0), where every rank must exhaust the iterator; yields nothing
    elsewhere, unless ``in_every_replica``. The tensors of one parameter are held at a time.
    """
    if parallel_state.get_data_parallel_rank(with_context_parallel=True) != 0 and not in_every_replica:
        return
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    mine = dict(named_weights(model))
    names: list[list[str]] = [list(mine)]
    if stages > 1:
        names = [[] for _ in range(stages)]
        torch.distributed.all_gather_object(names, list(mine), group=parallel_state.get_pipeline_model_parallel_group())
    for stage, stage_names in enumerate(names):
        for name in stage_names:
            rule = architecture.rule_for(name)
            if name == "output_layer.weight" and architecture.tied:
                continue
            yield from zip(rule.hf_names, _whole_tensors(model, architecture, rule, mine.get(name), stage), strict=True)


def _whole_tensors(
    model: torch.nn.Module, architecture: Architecture, rule: ParameterRule, parameter: Tensor | None, stage: int
) -> list[Tensor]:
    """Return the Hugging Face tensors of one of the parameters of ``stage``; None is given on the other stages."""
    tensors = None if parameter is None else _gather_tensor_parallel(rule, parameter)
    return _from_stage(tensors, stage, rule.hf_names, architecture, model)


def _gather_tensor_parallel(rule: ParameterRule, parameter: Tensor) -> list[Tensor]:
    size = parallel_state.get_tensor_model_parallel_world_size()
    if size == 1:
        return rule.to_hf([parameter.detach()])
    shards = [torch.empty_like(parameter) for _ in range(size)]
    torch.distributed.all_gather(
        shards, parameter.detach().contiguous(), group=parallel_state.get_tensor_model_parallel_group()
    )
    return rule.to_hf(shards)


def _from_stage(
    tensors: list[Tensor] | None, stage: int, names: tuple[str, ...], architecture: Architecture, model: torch.nn.Module
) -> list[Tensor]:
    """Hand one stage's tensors to all stages."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        assert tensors is not None
        return tensors
    group = parallel_state.get_pipeline_model_parallel_group()
    if parallel_state.get_pipeline_model_parallel_rank() != stage:
        like = next(unwrap(model).parameters())
        shapes = architecture.hf_shapes()
        tensors = [torch.empty(shapes[name], dtype=like.dtype, device=like.device) for name in names]
    assert tensors is not None
    tensors = [tensor.contiguous() for tensor in tensors]
    for tensor in tensors:
        torch.distributed.broadcast(tensor, group=group, group_src=stage)
    return tensors
