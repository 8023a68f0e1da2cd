"""The sizes of a model, the tensors that follow from them, and the layouts that it can be cut into."""

import re
from dataclasses import dataclass

import torch

from zs_nemo.weights.family import Family
from zs_nemo.weights.hf_folder import HfTensors, is_rotary_buffer
from zs_nemo.weights.parameter_map import Cut, ParameterRule
from zs_nemo.weights.rope import Rope

_LAYER_NAME = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_NAMES_IN_A_MESSAGE, _SHAPES_IN_A_MESSAGE = 10, 3


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the map and the model need of a ``config.json``."""

    family: Family
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    """Whether the output projection is the embedding matrix."""
    norm_eps: float
    rope: Rope
    max_position_embeddings: int

    @property
    def query_size(self) -> int:
        """Channels of all queries; with an explicit ``head_dim`` not always the hidden size."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Channels of all keys, and of all values."""
        return self.num_kv_heads * self.head_dim

    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every tensor of the Hugging Face folder."""
        sizes = {name: tuple(getattr(self, dim) for dim in dims) for name, dims in self.family.layer_shapes.items()}
        shapes: dict[str, tuple[int, ...]] = {_EMBEDDING: (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in sizes.items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tied:
            shapes[_OUTPUT] = (self.vocab_size, self.hidden_size)
        return shapes

    def rule_for(self, name: str) -> ParameterRule:
        """Return the rule of a megatron parameter; ``name`` carries the layer's index in the whole model."""
        match = _LAYER_NAME.fullmatch(name)
        if match:
            suffixes, cut = self.family.layer_rules[match[2]]
            hf_names = tuple(f"model.layers.{match[1]}.{suffix}" for suffix in suffixes)
        elif name == "decoder.final_layernorm.weight":
            hf_names, cut = ("model.norm.weight",), Cut.whole
        elif name == "embedding.word_embeddings.weight" or (name == "output_layer.weight" and self.tied):
            hf_names, cut = (_EMBEDDING,), Cut.vocabulary
        else:
            assert name == "output_layer.weight", f"a parameter that the map does not know: {name}"
            hf_names, cut = (_OUTPUT,), Cut.vocabulary
        return ParameterRule(
            hf_names=hf_names,
            cut=cut,
            num_kv_heads=self.num_kv_heads,
            num_heads=self.num_heads,
            vocab_size=self.vocab_size,
        )

    def check_tensors(self, tensors: HfTensors) -> None:
        """Raise ``ValueError`` unless the folder holds the tensors of this architecture, and no others.

        Two kinds of others are let pass, since they say nothing that the rest does not: the rotary frequencies, which
        transformers once saved, and in a tied model an output projection that repeats the embedding,
        which tools write that do not know of the tie.
        """
        expected, given = self.hf_shapes(), tensors.shapes()
        extra = {name for name in given.keys() - expected.keys() if not is_rotary_buffer(name)}
        if self.tied and _OUTPUT in extra:
            extra.remove(_OUTPUT)
            _check_repeats(tensors, given)
        missing = expected.keys() - given.keys()
        misshapen = {name for name in expected.keys() & given.keys() if expected[name] != given[name]}
        problems = []
        if missing:
            problems.append(f"lacks {_listed(missing)}")
        if extra:
            problems.append(f"has besides {_listed(extra)}")
        for name in sorted(misshapen)[:_SHAPES_IN_A_MESSAGE]:
            problems.append(f"has {name} with shape {given[name]} in place of {expected[name]}")
        if problems:
            raise ValueError(
                f"model folder {tensors.folder} does not fit its config.json (model_type {self.family.model_type!r}): "
                f"it {', '.join(problems)}; give a folder whose weights and configuration belong together"
            )

    def check_layout(
        self,
        *,
        tensor_parallel: int,
        pipeline_parallel: int,
        layers_in_first_stage: int | None = None,
        layers_in_last_stage: int | None = None,
        group: str = "policy",
    ) -> None:
        """Raise ``ValueError`` when the model cannot be cut that way. Needs no worker.

        ``group`` is where the settings stand; in ``policy`` alone stages may differ in their layers.
        """
        self._check_tensor_parallel(tensor_parallel, group)
        given = [number for number in (layers_in_first_stage, layers_in_last_stage) if number is not None]
        rest, stages = self.num_layers - sum(given), pipeline_parallel - len(given)
        fits = rest == 0 if stages == 0 else rest >= stages and rest % stages == 0
        if fits:
            return
        if given:
            raise ValueError(
                f"policy.num_layers_in_first_pipeline_stage={layers_in_first_stage} and "
                f"policy.num_layers_in_last_pipeline_stage={layers_in_last_stage} leave {rest} of the model's "
                f"{self.num_layers} layers to the {stages} other stages, which must all get the same number, at least "
                f"1; {_fitting_stages(self.num_layers, pipeline_parallel)}"
            )
        raise ValueError(
            f"{group}.pipeline_model_parallel_size={pipeline_parallel} must divide the model's {self.num_layers} "
            f"layers; {_fitting_stages(self.num_layers, pipeline_parallel, group)}"
        )

    def _check_tensor_parallel(self, size: int, group: str) -> None:
        counts = (self.num_heads, self.num_kv_heads, self.intermediate_size)
        if any(count % size for count in counts):
            fitting = [n for n in range(1, self.num_kv_heads + 1) if all(count % n == 0 for count in counts)]
            raise ValueError(
                f"{group}.tensor_model_parallel_size={size} must divide the model's {self.num_heads} attention heads, "
                f"{self.num_kv_heads} key/value heads and {self.intermediate_size} feed-forward columns; set it to "
                f"one of {fitting}"
            )


def _fitting_stages(layers: int, stages: int, group: str = "policy") -> str:
    """Return the remedy: how ``stages`` stages can share the layers, or how many stages there can be."""
    if layers % stages == 0:
        return "leave both unset, since the stages can share the layers evenly"
    divisors = [number for number in range(1, layers + 1) if layers % number == 0]
    even = f"set {group}.pipeline_model_parallel_size to one of {divisors}"
    if layers < stages or group != "policy":
        return even
    # The first and the last stage also have the vocabulary: they are the ones to get fewer layers, where they can.
    each = -(-layers // stages)
    if layers - (stages - 2) * each < 2:
        each = layers // stages
    ends = layers - (stages - 2) * each
    return (
        f"set policy.num_layers_in_first_pipeline_stage={ends - ends // 2} and "
        f"policy.num_layers_in_last_pipeline_stage={ends // 2}, or {even}"
    )


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:_NAMES_IN_A_MESSAGE]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _check_repeats(tensors: HfTensors, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise unless a tied model's output projection is its embedding."""
    if _EMBEDDING in shapes and not torch.equal(tensors.read(_OUTPUT), tensors.read(_EMBEDDING)):
        raise ValueError(
            f"model folder {tensors.folder} has tie_word_embeddings=true, but its {_OUTPUT} differs from its "
            f"{_EMBEDDING}; set tie_word_embeddings=false in its config.json if both are meant, or remove {_OUTPUT}"
        )
