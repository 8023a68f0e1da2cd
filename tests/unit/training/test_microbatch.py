import pytest
import torch

from zs_nemo.training.microbatch import pack, plan_microbatches, used_lengths
from zs_nemo.types.batch import TrainBatch


def make_batch(masks: list[str]) -> TrainBatch:
    """One string a sequence, "x" for a masked token; token ids count up from 100."""
    mask = torch.tensor([char == "x" for char in "".join(masks)])
    zeros = torch.zeros(mask.numel())
    return TrainBatch(
        token_ids=torch.arange(100, 100 + mask.numel()),
        lengths=torch.tensor([len(text) for text in masks]),
        loss_mask=mask,
        advantages=zeros,
        generation_logprobs=zeros,
    )


def test_the_input_of_a_sequence_ends_before_its_last_masked_token():
    assert used_lengths(make_batch([".xx..", ".....", "...x", ".x"])) == [2, 0, 3, 1]


def test_a_packed_row_predicts_each_masked_token_from_the_token_before_it():
    packed = pack(make_batch([".xx..", "..x.x."]), torch.device("cpu"))
    assert packed.input_ids.tolist() == [100, 101, 105, 106, 107, 108]
    assert packed.cu_seqlens.tolist() == [0, 2, 6]
    assert packed.seqlens == [2, 4]
    assert packed.max_seqlen == 4
    assert packed.targets.tolist() == [101, 102, 107, 109]
    assert (packed.input_ids[packed.output_positions] + 1).tolist() == packed.targets.tolist()


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("max_tokens", [1, 50, 100, 10_000])
def test_a_plan_holds_every_sequence_once_within_the_budget(num_ranks, max_tokens):
    lengths = torch.randint(0, 60, (37,), generator=torch.Generator().manual_seed(3)).tolist()
    plan = plan_microbatches(lengths, num_ranks=num_ranks, max_tokens=max_tokens)
    assert len(plan) == num_ranks
    placed = sorted(index for rank in plan for members in rank for index in members)
    assert placed == [index for index, length in enumerate(lengths) if length > 0]
    for members in (members for rank in plan for members in rank):
        assert len(members) == 1 or sum(lengths[i] for i in members) <= max_tokens


def test_ranks_get_even_shares_and_a_rank_packs_into_few_even_micro_batches():
    plan = plan_microbatches([100] * 10 + [50] * 4, num_ranks=2, max_tokens=400)
    sizes = [[sum(([100] * 10 + [50] * 4)[i] for i in members) for members in rank] for rank in plan]
    assert [sum(rank) for rank in sizes] == [600, 600]
    assert sizes == [[300, 300], [300, 300]]


def test_a_rank_may_get_nothing():
    assert plan_microbatches([7], num_ranks=2, max_tokens=100) == [[[0]], []]
    assert plan_microbatches([0, 0], num_ranks=2, max_tokens=100) == [[], []]


def test_a_sequence_above_the_budget_gets_a_micro_batch_of_its_own():
    assert plan_microbatches([30, 500, 40], num_ranks=1, max_tokens=100) == [[[1], [0, 2]]]
