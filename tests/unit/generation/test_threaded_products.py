from collections.abc import Iterator

import pytest
import torch

from zs_nemo.generation.threaded_products import planned_by_threads


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class PlannedProduct:
    """Plans a product for a number of threads, and finds the plan again by shape and stride, as vLLM does."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.plans: dict[tuple[int, int], int] = {}
        self.threads: list[int] = []

    def __call__(self, handler: object, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        self.threads.append(self.plans.setdefault((rows.shape[0], rows.stride(0)), torch.get_num_threads()))
        out = rows @ self.weight
        return (out if bias is None else out + bias).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("shape", [(5, 12), (1, 12), (2, 3, 12)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_runs_on_the_threads_that_are_set_whatever_it_was_planned_for(
    shape: tuple[int, ...], with_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(shape, generator=generator), torch.randn(12, 7, generator=generator)
    bias = torch.randn(7, generator=generator) if with_bias else None
    planned = PlannedProduct(weight)
    product = planned_by_threads(planned, usual_threads=1)
    expected = x @ weight if bias is None else x @ weight + bias
    order = [1, 2, 1, 3, 2, 3]
    for threads in order:
        torch.set_num_threads(threads)
        torch.testing.assert_close(product(None, x, bias), expected)
    assert planned.threads == order


def test_with_the_usual_threads_nothing_is_copied() -> None:
    torch.set_num_threads(2)
    seen: list[torch.Tensor] = []
    x = torch.zeros(3, 4)

    def product(handler: object, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(rows)
        return rows

    planned_by_threads(product, usual_threads=2)(None, x, None)
    assert seen[0] is x
