import pytest
import torch

from zs_nemo.training import vocab_parallel
from zs_nemo.training.vocab_parallel import logprobs_and_entropy


class OneRank:
    """The part of a process group that one rank alone needs."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


def ours(logits, targets, temperature, vocab_size=40):
    return logprobs_and_entropy(
        logits,
        targets,
        temperature=temperature,
        vocab_size=vocab_size,
        group=OneRank(),  # type: ignore[arg-type]
    )


def oracle(logits, targets, temperature, vocab_size=40):
    log_p = (logits[:, :vocab_size].double() / temperature).log_softmax(-1)
    return torch.stack([log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(1)])


@pytest.fixture(params=[1, 7, 10_000, None], ids=lambda rows: f"{rows} rows a chunk" if rows else "as on a GPU")
def chunks(request, monkeypatch):
    if request.param is None:
        monkeypatch.setattr(vocab_parallel, "_row_sums_in_chunks", vocab_parallel.row_sums)
        monkeypatch.setattr(vocab_parallel, "_logit_grad_in_chunks", vocab_parallel.logit_grad)
        return
    monkeypatch.setattr(vocab_parallel, "_ELEMENTS_PER_CHUNK", 40 * request.param)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("entropy_weight", [0.0, 1.0])
def test_values_and_gradients_equal_those_of_log_softmax(chunks, temperature, entropy_weight):
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(17, 40, generator=generator) * 3, torch.randint(0, 40, (17,), generator=generator)
    weights = torch.randn(2, 17, generator=generator) * torch.tensor([[1.0], [entropy_weight]])
    results = []
    for function, leaf in ((ours, logits.clone()), (oracle, logits.double())):
        leaf.requires_grad_()
        values = function(leaf, targets, temperature)
        (values * weights).sum().backward()
        results.append((values.double(), leaf.grad.double()))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_logits_are_not_changed(chunks):
    logits = torch.randn(5, 40)
    before = logits.clone()
    ours(logits.requires_grad_(), torch.arange(5), 0.5).sum().backward()
    assert torch.equal(logits, before)


def test_padding_columns_get_neither_probability_nor_gradient():
    logits = torch.randn(5, 40)
    logits[:, 33:] = 1e4
    leaf = logits.clone().requires_grad_()
    values = ours(leaf, torch.arange(5), 1.0, vocab_size=33)
    torch.testing.assert_close(values.double(), oracle(logits, torch.arange(5), 1.0, vocab_size=33), atol=1e-5, rtol=0)
    values.sum().backward()
    assert not leaf.grad[:, 33:].any()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4] + [0.0] * 38, [-3e4] * 40], requires_grad=True)
    values = ours(logits, torch.tensor([1, 0]), 1.0)
    values.sum().backward()
    assert values.isfinite().all()
    assert logits.grad.isfinite().all()
    assert values[0].tolist() == pytest.approx([-2e4, -3.6888795], abs=2e-3)
