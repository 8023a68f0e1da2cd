import pytest

from zs_nemo.cluster.placement import check_sender_is_alone, place_on_gpus


def test_with_enough_gpus_nobody_shares() -> None:
    placement = place_on_gpus(8, num_ranks=4, engine_sizes=[2, 1])
    assert placement.ranks == ((0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0))
    assert placement.engines == ((4, 2.0), (5, 1.0))
    assert sum(bundle["GPU"] for bundle in placement.bundles) == 7


def test_with_fewer_gpus_engines_share_with_ranks_but_ranks_never_with_each_other() -> None:
    placement = place_on_gpus(2, num_ranks=2, engine_sizes=[1, 1, 1])
    assert [bundle for bundle, _ in placement.ranks] == [0, 1]
    assert [bundle for bundle, _ in placement.engines] == [0, 1, 0]
    for index in range(2):
        shares = [share for bundle, share in placement.ranks + placement.engines if bundle == index]
        assert sum(shares) == pytest.approx(1.0)


def test_engines_go_to_gpus_without_a_rank_first() -> None:
    placement = place_on_gpus(3, num_ranks=2, engine_sizes=[1, 1])
    assert placement.engines == ((2, 1.0), (0, 0.5))


@pytest.mark.parametrize(("num_gpus", "ranks", "sizes"), [(1, 2, [1]), (3, 2, [2])])
def test_what_cannot_be_placed_is_refused(num_gpus: int, ranks: int, sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"trainer\.devices"):
        place_on_gpus(num_gpus, ranks, sizes)


def test_a_broadcast_needs_a_sender_with_a_gpu_of_its_own_and_only_the_policy_s_engines_count() -> None:
    policy_engine_apart = place_on_gpus(3, num_ranks=2, engine_sizes=[1, 1])
    check_sender_is_alone(policy_engine_apart, num_receivers=1)
    with pytest.raises(ValueError, match=r"refit_transport=nccl.*shares a GPU.*set .*=shared_memory"):
        check_sender_is_alone(policy_engine_apart, num_receivers=2)


def test_where_nothing_trains_nobody_sends_weights() -> None:
    check_sender_is_alone(place_on_gpus(8, num_ranks=0, engine_sizes=[1] * 8), num_receivers=8)
