"""Settings of the recipes that only ask a policy: who it is, and how it is spoken to."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from zs_nemo.config.endpoints import (
    EndpointPoolConfig,
    check_endpoints,
    check_extra_body,
    check_variable_name,
)
from zs_nemo.config.recipe import RecipeConfig


@dataclass(kw_only=True)
class PolicyEndpointConfig:
    """``endpoint``: a policy that OpenAI-compatible servers serve (vLLM, SGLang, NIM), in place of ``policy.model``."""

    addresses: list[str] = field(default_factory=list)
    """As ``search.endpoints``; all serve the same model. Empty for the folder ``policy.model``."""
    served_model: str = ""
    """Name under which they serve it."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """As ``search.extra_body``."""
    api_key_variable: str = ""
    """Name of the environment variable that holds the bearer key; empty for none."""
    pool: EndpointPoolConfig = field(
        default_factory=lambda: EndpointPoolConfig(deadline_s=600.0, request_timeout_s=300.0)
    )

    def __post_init__(self) -> None:
        check_endpoints(self.addresses, "endpoint.addresses")
        self.pool.check("endpoint.pool")
        check_extra_body(self.extra_body, "endpoint.extra_body", endpoints=self.addresses, where="endpoint.addresses")
        if self.api_key_variable:
            check_variable_name("endpoint.api_key_variable", self.api_key_variable)
        if bool(self.addresses) != bool(self.served_model):
            raise ValueError(
                f"endpoint.addresses={self.addresses} and endpoint.served_model={self.served_model!r} belong together; "
                "set both (GET /v1/models lists the names), or neither for the folder policy.model"
            )


@dataclass(kw_only=True)
class AnsweringConfig(RecipeConfig):
    """What the recipes have in common that ask a policy and train nothing."""

    has_ranks: ClassVar[bool] = False
    can_do_without_search: ClassVar[bool] = True

    endpoint: PolicyEndpointConfig = field(default_factory=PolicyEndpointConfig)
