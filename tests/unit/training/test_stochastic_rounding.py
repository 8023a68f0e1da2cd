"""Rounding that is right on average."""

import torch

from zs_nemo.training.stochastic_rounding import round_stochastically


def rounded(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Round with a fresh generator."""
    return round_stochastically(values, torch.Generator().manual_seed(seed))


def test_every_result_is_a_bfloat16_number_next_to_the_value():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    result = rounded(values)
    assert torch.equal(result.bfloat16().float(), result)
    assert ((result - values).abs() <= values.abs() * 2**-7).all()


def test_numbers_that_bfloat16_holds_stay_as_they_are():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(2)).bfloat16().float()
    assert torch.equal(rounded(torch.cat([values, torch.zeros(1)])), torch.cat([values, torch.zeros(1)]))


def test_an_update_far_below_the_step_of_bfloat16_counts_on_average():
    start = torch.full((200_000,), 0.1).bfloat16().float()
    for sign in (1, -1):
        updated = start + sign * 1e-5
        assert torch.equal(updated.bfloat16().float(), start), "rounding to the nearest loses it"
        moved = (rounded(updated) - start).mean().item()
        assert abs(moved - sign * 1e-5) < 1e-6
        assert abs((-rounded(-updated) - start).mean().item() - sign * 1e-5) < 1e-6


def test_the_same_seed_rounds_alike_and_the_input_is_left_alone():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    kept = values.clone()
    assert torch.equal(rounded(values, 7), rounded(values, 7))
    assert not torch.equal(rounded(values, 7), rounded(values, 8))
    assert torch.equal(values, kept)
