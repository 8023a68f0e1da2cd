"""``config.yaml`` of a run directory: the resolved settings, credentials left out, and what may change on resume."""

import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

REDACTED = "***"

_CREDENTIAL_LAST_WORDS = {
    "apikey",
    "authorization",
    "credential",
    "credentials",
    "key",
    "passphrase",
    "passwd",
    "password",
    "secret",
    "token",
}
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")

# They say where a run computes and at what price, not what: a checkpoint made under one value goes on under another.
_FREE_ON_RESUME = (
    "cluster.",
    "cost.",
    "exp_manager.",
    "trainer.num_nodes",
    "trainer.devices",
    "trainer.accelerator",
    "policy.tensor_model_parallel_size",
    "policy.pipeline_model_parallel_size",
    "policy.context_parallel_size",
    "policy.num_layers_in_",
    "policy.sequence_parallel",
    "policy.tensor_parallel_across_nodes",
    "policy.activations_checkpoint_",
    "policy.optim.optimizer_cpu_offload",
    "policy.train_mb_tokens",
    "critic.optim.optimizer_cpu_offload",
    "critic.num_ranks",
    "critic.tensor_model_parallel_size",
    "critic.pipeline_model_parallel_size",
    "critic.context_parallel_size",
    "guards.",
    "faults.",
    "rollout.trajectory_deadline_s",
    "rollout.max_deadline_share",
    "rollout.search_deadline_s",
    "rollout.search_max_failure_share",
    "rollout.search_max_empty_share",
    "generation.num_engines",
    "generation.tensor_model_parallel_size",
    "generation.kv_cache_gib",
    "generation.gpu_memory_utilization",
    "generation.enforce_eager",
    "generation.sleep_while_training",
    "generation.max_num_seqs",
    *(
        f"{group}.{name}"
        for group in ("search", "evaluation.search")
        for name in (
            "url",
            "token_variable",
            "api_key_variable",
            "timeout_s",
            "max_concurrency",
            "batch_window_s",
            "max_batch_queries",
            "max_searches",
            "price_per_search",  # Of runs that began when it was a setting.
        )
    ),
    "generation.refit_",
    "search.num_engines",
    "search.tensor_model_parallel_size",
    "search.kv_cache_gib",
    "search.gpu_memory_utilization",
    "search.enforce_eager",
    "search.sleep_while_training",
    "search.max_num_seqs",
    "search.endpoints",
    "search.api_key_variable",
    "search.pool.",
    "search.cache_size",
    "search.recording.",  # What is recorded is what would be asked for again.
    "rollout.max_concurrency",
    "collect.num_questions",  # Of the same questions, in the same order.
    "collect.llm.endpoints",
    "collect.llm.api_key_variable",
    "collect.llm.pool.",
    "collect.llm.max_nonsense_share",
    "endpoint.addresses",
    "endpoint.api_key_variable",
    "endpoint.pool.",
    "evaluate.max_failed_share",
    "evaluate.max_empty_share",
    "manifest",
    "simulation.",
)


def to_container(cfg: Any) -> Any:
    """Return the settings of a dataclass as nested dictionaries, credentials redacted."""
    return redact(OmegaConf.to_container(OmegaConf.structured(cfg), resolve=True, enum_to_str=True))


def to_yaml(cfg: Any) -> str:
    """Return the settings of a dataclass as YAML, credentials redacted."""
    return OmegaConf.to_yaml(OmegaConf.create(to_container(cfg)))


def redact(value: Any, key: str = "") -> Any:
    """Replace credentials in nested settings.

    A credential is a text whose key ends in a word such as key, token, secret or password (``api_key``, but not
    ``max_tokens``), or the user part of a URL.
    """
    if isinstance(value, dict):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [redact(item, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if names_credential(key):
        return REDACTED
    return _USER_INFO.sub(f"{REDACTED}@", value)


def names_credential(key: str) -> bool:
    """Return whether a setting or an environment variable of this name holds a credential."""
    return re.split(r"[_\-.]", key.lower())[-1] in _CREDENTIAL_LAST_WORDS


def changed_settings(before_yaml: str, cfg: Any) -> list[str]:
    """Name the settings of a dataclass that would make a resumed run another experiment, as ``key: old -> new``.

    One that there was not yet when the run was begun was what it is by default: the run behaved like that.
    """
    begun = OmegaConf.to_container(OmegaConf.create(before_yaml))
    before, after = flat(_with_later_settings(begun, cfg)), flat(OmegaConf.to_container(OmegaConf.create(to_yaml(cfg))))
    return [
        f"{key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_FREE_ON_RESUME)
    ]


def _with_later_settings(begun: Any, settings: Any) -> dict[str, Any]:
    """Add the defaults of those fields of a dataclass that ``begun`` has no entry of."""
    known = dict(begun)
    for each in fields(settings):
        value = getattr(settings, each.name)
        if each.name not in begun:
            default = each.default if each.default_factory is MISSING else each.default_factory()
            if default is not MISSING:
                container = OmegaConf.to_container(OmegaConf.create({each.name: default}), enum_to_str=True)
                known |= redact(container)
        elif is_dataclass(value) and isinstance(begun[each.name], dict) and _may_be_of(begun[each.name], type(value)):
            known[each.name] = _with_later_settings(begun[each.name], value)
    return known


def _may_be_of(begun: dict[str, Any], kind: type[Any]) -> bool:
    """Whether a group's settings can be of this choice: those of ``search=none`` are part of every other engine's."""
    shared = {each.name for base in kind.__mro__[1:] if is_dataclass(base) for each in fields(base)}
    own = {each.name for each in fields(kind)} - shared
    return not own or not own.isdisjoint(begun)


def settings_that_count(group: str, settings: Any) -> dict[str, Any]:
    """Return those settings of a dataclass, by their keys within ``group``, that may not change when a run goes on."""
    values = flat(OmegaConf.to_container(OmegaConf.structured(settings), resolve=True, enum_to_str=True))
    return {key: value for key, value in values.items() if not f"{group}.{key}".startswith(_FREE_ON_RESUME)}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level, by their full keys such as ``policy.optim.lr``."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        path: leaf
        for name, item in value.items()
        for path, leaf in flat(item, f"{prefix}.{name}" if prefix else str(name)).items()
    }
