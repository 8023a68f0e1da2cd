import pytest
import torch

from zs_nemo.training.shared_prefixes import expand, take_first_uses

# Two sequences that begin with the same two tokens.
EXPANSION, FIRST_USES, LATER_USES = torch.tensor([0, 1, 2, 0, 1, 3]), torch.tensor([0, 1, 2, 5]), torch.tensor([3, 4])


@pytest.mark.parametrize(
    ("ours", "oracle", "size"),
    [
        (lambda x: expand(x, EXPANSION, FIRST_USES, LATER_USES), lambda x: x[EXPANSION], 4),
        (lambda x: take_first_uses(x, FIRST_USES), lambda x: x[FIRST_USES], 6),
    ],
    ids=["expanding", "taking"],
)
def test_values_and_gradients_are_those_of_indexing(ours, oracle, size):
    results = []
    for function in (ours, oracle):
        x = torch.arange(3.0 * size).reshape(size, 3).requires_grad_()
        out = function(x)
        out.backward(torch.linspace(-1, 2, out.numel()).reshape(out.shape))
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(*results)


def test_the_gradient_of_many_uses_is_not_rounded_as_it_is_added_up():
    uses = 1000
    x = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    expand(x, torch.zeros(uses, dtype=torch.int64), torch.tensor([0]), torch.arange(1, uses)).sum().backward()
    assert x.grad.item() == uses
