from itertools import chain

import pytest
import torch

from zs_nemo.training.microbatch import num_computed, pack, plan_microbatches, used_tokens
from zs_nemo.types.batch import TrainBatch

CPU = torch.device("cpu")


def make_batch(masks: list[str], ids: list[list[int]] | None = None) -> TrainBatch:
    """One string a sequence, "x" for a masked token; token ids count up from 100 unless they are given."""
    mask = torch.tensor([char == "x" for char in "".join(masks)])
    zeros = torch.zeros(mask.numel())
    return TrainBatch(
        token_ids=torch.arange(100, 100 + mask.numel()) if ids is None else torch.tensor(list(chain(*ids))),
        lengths=torch.tensor([len(text) for text in masks]),
        loss_mask=mask,
        advantages=zeros,
        generation_logprobs=zeros,
    )


def unlike(lengths: list[int]) -> list[list[int]]:
    """Return sequences of these lengths that begin differently."""
    return [[1000 * number + place for place in range(length)] for number, length in enumerate(lengths)]


def plan(sequences, *, num_ranks: int, max_tokens: int, share_prefixes: bool = True):
    return plan_microbatches(sequences, num_ranks=num_ranks, max_tokens=max_tokens, share_prefixes=share_prefixes)


def test_the_input_of_a_sequence_ends_before_its_last_masked_token():
    batch = make_batch([".xx..", ".....", "...x", ".x"])
    assert used_tokens(batch) == [[100, 101], [], [110, 111, 112], [114]]


def test_a_packed_row_predicts_each_masked_token_from_the_token_before_it():
    packed = pack(make_batch([".xx..", "..x.x."]), CPU, share_prefixes=True)
    assert packed.input_ids.tolist() == [100, 101, 105, 106, 107, 108]
    assert packed.position_ids.tolist() == [0, 1, 0, 1, 2, 3]
    assert packed.expansion is None and packed.first_uses is None
    assert packed.cu_seqlens.tolist() == [0, 2, 6]
    assert packed.seqlens == [2, 4]
    assert packed.max_seqlen == 4
    assert packed.targets.tolist() == [101, 102, 107, 109]
    assert (packed.input_ids[packed.output_positions] + 1).tolist() == packed.targets.tolist()


def test_what_sequences_begin_with_is_laid_out_once():
    ids = [[7, 8, 9, 4], [7, 8, 5, 6], [7, 8, 9, 3], [1, 8, 9, 2]]
    batch = make_batch(["..xx", "..xx", "...x", ".x.x"], ids)
    packed = pack(batch, CPU, share_prefixes=True)
    assert packed.input_ids.tolist() == [7, 8, 9, 5, 1, 8, 9]
    assert packed.position_ids.tolist() == [0, 1, 2, 2, 0, 1, 2]
    assert packed.input_ids[packed.expansion].tolist() == [7, 8, 9, 7, 8, 5, 7, 8, 9, 1, 8, 9]
    assert packed.expansion[packed.first_uses].tolist() == list(range(7))
    assert packed.seqlens == [3, 3, 3, 3]
    assert packed.targets.tolist() == [9, 4, 5, 6, 3, 8, 2]
    assert packed.output_positions.tolist() == [1, 2, 1, 3, 2, 4, 6]
    whole = pack(batch, CPU, share_prefixes=False)
    assert whole.expansion is None and whole.input_ids.numel() == 12
    assert torch.equal(whole.input_ids[whole.output_positions], packed.input_ids[packed.output_positions])
    assert torch.equal(whole.targets, packed.targets)


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_what_is_filled_up_is_a_sequence_without_an_output(share_prefixes):
    ids = [[7, 8, 9, 4], [7, 8, 5, 6], [7, 8, 9, 3]]
    batch = make_batch(["..xx", "..xx", "...x"], ids)
    exact = pack(batch, CPU, share_prefixes=share_prefixes)
    filled = pack(batch, CPU, share_prefixes=share_prefixes, multiple_of=8)
    count = exact.input_ids.numel()
    assert filled.input_ids.numel() == filled.position_ids.numel() == (8 if share_prefixes else 16)
    assert torch.equal(filled.input_ids[:count], exact.input_ids)
    assert torch.equal(filled.output_positions, exact.output_positions)
    assert filled.seqlens == [*exact.seqlens, filled.input_ids.numel() - count]
    if share_prefixes:
        assert filled.expansion[filled.first_uses].tolist() == list(range(8))
        assert filled.expansion.numel() == sum(filled.seqlens)
    assert pack(batch, CPU, share_prefixes=share_prefixes, multiple_of=1).seqlens == exact.seqlens


@pytest.mark.parametrize("share_prefixes", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("max_tokens", [1, 50, 100, 10_000])
def test_a_plan_holds_every_sequence_once_within_the_budget(num_ranks, max_tokens, share_prefixes):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, 60, (37,), generator=generator).tolist()
    # Groups of four begin alike.
    sequences = [([number // 4] * 20 + [number] * length)[:length] for number, length in enumerate(lengths)]
    ranks = plan(sequences, num_ranks=num_ranks, max_tokens=max_tokens, share_prefixes=share_prefixes)
    assert len(ranks) == num_ranks
    placed = sorted(index for rank in ranks for members in rank for index in members)
    assert placed == [index for index, length in enumerate(lengths) if length > 0]
    for members in (members for rank in ranks for members in rank):
        computed = num_computed([sequences[i] for i in members], share_prefixes=share_prefixes)
        assert len(members) == 1 or computed <= max_tokens


def test_ranks_get_even_shares_and_a_rank_packs_into_few_even_micro_batches():
    lengths = [100] * 10 + [50] * 4
    ranks = plan(unlike(lengths), num_ranks=2, max_tokens=400)
    sizes = [[sum(lengths[i] for i in members) for members in rank] for rank in ranks]
    assert [sum(rank) for rank in sizes] == [600, 600]
    assert sizes == [[300, 300], [300, 300]]


def test_samples_of_a_prompt_stay_together_and_the_ranks_even():
    prompts = [[100 + number] * 60 for number in range(4)]
    sequences = [prompts[number // 6] + [number] * 40 for number in range(24)]
    ranks = plan(sequences, num_ranks=2, max_tokens=400)
    computed = [
        [num_computed([sequences[i] for i in members], share_prefixes=True) for members in rank] for rank in ranks
    ]
    assert [sum(rank) for rank in computed] == [600, 600]
    apart = plan(sequences, num_ranks=2, max_tokens=400, share_prefixes=False)
    assert [sum(len(members) for members in rank) * 100 for rank in apart] == [1200, 1200]


def test_shares_are_even_and_do_not_depend_on_the_order_of_the_batch():
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(30, 120, (42,), generator=generator).tolist()
    sequences = [[number % 7] * 60 + [100 + number] * length for number, length in enumerate(lengths)]
    grouped = sorted(sequences)
    planned = [
        [[num_computed([each[i] for i in members], share_prefixes=True) for members in rank] for rank in ranks]
        for each in (sequences, grouped)
        for ranks in [plan(each, num_ranks=2, max_tokens=384)]
    ]
    assert planned[0] == planned[1]
    first, second = planned[0]
    assert len(first) == len(second), "one rank would wait for the other's last micro-batch"
    assert abs(sum(first) - sum(second)) < 0.05 * sum(first)
    together = num_computed(sequences, share_prefixes=True)
    assert together == 7 * 60 + sum(lengths)
    assert sum(first) + sum(second) < together + 60 * (len(first) + len(second))


def test_a_rank_may_get_nothing():
    assert plan(unlike([7]), num_ranks=2, max_tokens=100) == [[[0]], []]
    assert plan([[], []], num_ranks=2, max_tokens=100) == [[], []]


def test_a_sequence_above_the_budget_gets_a_micro_batch_of_its_own():
    assert plan(unlike([30, 500, 40]), num_ranks=1, max_tokens=100) == [[[1], [0, 2]]]
