"""Matrix products of vLLM on CPU that run on the threads that are set when they are called."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Product = Callable[[Any, Tensor, Tensor | None], Tensor]
"""(handler of a weight [K, N], x [..., K], bias) -> [..., N], as ``vllm._custom_ops.onednn_mm``."""

_CACHE_LINE = 16
"""In float32 numbers."""


def follow_threads() -> None:
    """Have vLLM's products in this process follow ``set_num_threads`` from now on; once is enough.

    vLLM 0.32 keeps oneDNN's plans of products by the shape of their input and the stride of its rows. A plan is for a
    number of threads, which is not in that key: a product planned for one thread goes on with one, whatever is set
    later, and one planned for two takes a second core from whom it was given back to.
    """
    from vllm import _custom_ops

    if not hasattr(_custom_ops.onednn_mm, "usual_threads"):
        _custom_ops.onednn_mm = planned_by_threads(_custom_ops.onednn_mm, torch.get_num_threads())


def planned_by_threads(product: Product, usual_threads: int) -> Product:
    """Return the product with rows of another stride for every number of threads but the usual one."""

    def following(handler: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        threads = torch.get_num_threads()
        if threads == usual_threads:
            return product(handler, x, bias)
        rows = x.reshape(-1, x.shape[-1])
        num_rows, width = rows.shape
        # Of a single row the stride is forgotten on the way: it goes there twice. The copy is little beside a product.
        apart = rows.new_empty(max(2, num_rows), width + threads * _CACHE_LINE)[:, :width].copy_(rows)
        out = product(handler, apart, bias)[:num_rows]
        return out.reshape(*x.shape[:-1], out.shape[-1])

    following.usual_threads = usual_threads  # type: ignore[attr-defined]
    return following
