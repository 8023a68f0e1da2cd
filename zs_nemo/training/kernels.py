"""Layer parts for the local spec, each as one autograd function.

Built from single operations, as megatron-core's local spec has them, they take more time on a CPU than the matrix
products, and keep three times the memory for the backward pass. Results do not depend on whether gradients are on.

On a CPU each works in place; for a GPU the compiler makes one kernel of each, which it can only where nothing is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def compiled(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Compile a function of CUDA tensors at its first call, since loading the compiler takes seconds."""

    @functools.cache
    def fused() -> Callable[_Args, _Result]:
        return torch.compile(function)

    @functools.wraps(function)
    def call(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        return fused()(*args, **kwargs)

    return call


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = x.float()
        scale = torch.rsqrt((exact * exact).mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, weight, scale)
        return (exact * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        grad = grads[0]
        normed = x * scale
        product = (grad * normed).flatten(0, -2)
        grad_weight = product.sum(0)
        along = (product @ weight.float()).div_(x.shape[-1]).reshape(scale.shape)
        grad_x = normed.mul_(-along).addcmul_(grad, weight).mul_(scale)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


class RmsNorm(torch.nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_unused: object) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Each rank then sees a part of the sequence; with the mark megatron-core adds their gradients up.
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010  (a mark that no type knows)
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last dimension."""
        if x.is_cuda:
            # There PyTorch has it in one kernel.
            return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self._eps)
        return _RmsNorm.apply(x, self.weight, self._eps)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        if x.is_cuda:
            return _compiled_gated(x)
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if x.is_cuda:
            return _compiled_gated_grad(grads[0], x)
        gate, up = x.chunk(2, dim=-1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, dim=-1)
        torch.mul(grads[0], torch.nn.functional.silu(gate), out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return grad_x


def gated(x: Tensor) -> Tensor:
    """silu(gate) * up."""
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def gated_grad(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of ``gated`` with respect to ``x``."""
    gate, up = x.chunk(2, dim=-1)
    share = torch.sigmoid(gate)
    grad_gate = grad * up * share * (1 + gate * (1 - share))
    return torch.cat([grad_gate, grad * gate * share], dim=-1)


_compiled_gated, _compiled_gated_grad = compiled(gated), compiled(gated_grad)


class SwiGlu:
    """silu(gate) * up, of a tensor that holds gate and up side by side. No torch module: it has nothing to save."""

    def __init__(self, config: TransformerConfig) -> None:
        assert config.gated_linear_unit

    def __call__(self, x: Tensor) -> Tensor:
        """Halve the last dimension."""
        return _SwiGlu.apply(x)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if x.is_cuda:
        return _compiled_rotated(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first)
    out_first.addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second)
    out_second.addcmul_(first, sin)
    return out


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of each head, as coordinates, by the angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


_compiled_rotated = compiled(rotated)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head of ``x`` [T, heads, d] by angles whose ``cos``, ``sin`` are [T, 1, d / 2]."""
    return _Rotary.apply(x, cos, sin)
