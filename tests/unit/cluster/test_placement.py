import pytest

from tests.unit.cluster.test_role_accounts import layout
from zs_nemo.cluster.placement import (
    check_sender_is_alone,
    check_tensor_parallel_within_machines,
    in_machine_order,
    place_on_gpus,
    place_run,
)
from zs_nemo.config.rollout import RefitTransport


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


@pytest.mark.parametrize(("num_gpus", "ranks", "sizes"), [(1, 2, [1]), (3, 2, [2]), (0, 0, [1])])
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


@pytest.mark.parametrize(
    ("num_gpus", "simulator", "rank", "engines"),
    [
        (1, (1,), (0, 1 / 3), ((0, 1 / 3), (0, 1 / 3))),
        (2, (1,), (0, 0.5), ((0, 0.5), (1, 1.0))),
        (8, (2, 1), (0, 0.5), ((0, 0.5), (1, 2.0), (2, 1.0))),
    ],
)
def test_engines_that_read_a_rank_s_memory_sit_on_its_gpu_and_a_simulator_takes_gpus_that_are_left(
    num_gpus: int, simulator: tuple[int, ...], rank: tuple[int, float], engines: tuple[tuple[int, float], ...]
) -> None:
    placement = place_run(layout(ranks=1, simulator=simulator), num_gpus, RefitTransport.cuda_ipc)
    assert (placement.ranks, placement.engines) == ((rank,), engines)


def test_engines_that_read_a_rank_s_memory_are_spread_over_the_policy_s_ranks_and_keep_off_the_critic_s() -> None:
    of = layout(ranks=2, critics=2, policy=(1, 1, 1), simulator=(1,))
    placement = place_run(of, 4, RefitTransport.cuda_ipc)
    assert [bundle for bundle, _ in placement.ranks] == [0, 1, 2, 3]
    assert [bundle for bundle, _ in placement.engines] == [0, 1, 0, 2]


def test_an_engine_that_spans_gpus_is_refused_where_it_would_have_to_read_a_rank_s_memory() -> None:
    with pytest.raises(ValueError, match=r"cuda_ipc with generation\.tensor_model_parallel_size=2.*=nccl or shared"):
        place_run(layout(policy=(2,)), 8, RefitTransport.cuda_ipc)
    assert place_run(layout(ranks=0, policy=(2,)), 8, RefitTransport.cuda_ipc).engines == ((0, 2.0), (1, 1.0))


def test_a_run_whose_weights_cannot_be_broadcast_is_refused_where_it_is_placed() -> None:
    with pytest.raises(ValueError, match=r"refit_transport=nccl.*shares a GPU"):
        place_run(layout(ranks=2, simulator=()), 2, RefitTransport.nccl)
    assert place_run(layout(ranks=2, simulator=()), 2, RefitTransport.shared_memory).engines == ((0, 0.5),)


AS_RAY_SORTS_32 = [16, *range(31, 16, -1), 0, *range(15, 0, -1)]
"""The order in which Ray takes 32 equal bundles: std::sort of libstdc++, seen on numbers that all compare equal."""


def test_ranks_that_follow_each_other_sit_on_one_machine_however_ray_orders_equal_bundles() -> None:
    placement = place_on_gpus(32, num_ranks=16, engine_sizes=[1] * 16)
    machines = [""] * 32
    for place, bundle in enumerate(AS_RAY_SORTS_32):
        machines[bundle] = f"node{place // 8}"
    with pytest.raises(
        ValueError, match=r"policy-rank-0 to policy-rank-7 would sit on several machines \(node2, node3"
    ):
        check_tensor_parallel_within_machines("policy", 8, [machines[bundle] for bundle, _ in placement.ranks])
    seated = in_machine_order(placement, machines)
    check_tensor_parallel_within_machines("policy", 8, [machines[bundle] for bundle, _ in seated.ranks])
    everybody = [*seated.ranks, *seated.engines]
    assert sorted(bundle for bundle, _ in everybody) == list(range(32)) and {share for _, share in everybody} == {1.0}


def test_ranks_take_whole_machines_first_and_what_engines_leave_of_others_last() -> None:
    placement = place_on_gpus(16, num_ranks=8, engine_sizes=[2, 2, 2, 1, 1])
    # Ray takes the large bundles first, and fills up their machine with the first of the ranks.
    machines = ["a" if bundle in (0, 1, 8, 9, 10) else "b" for bundle in range(len(placement.bundles))]
    seated = in_machine_order(placement, machines)
    assert [machines[bundle] for bundle, _ in seated.ranks] == ["b"] * 8
    assert seated.engines[:3] == placement.engines[:3]
    assert [machines[bundle] for bundle, _ in seated.engines[3:]] == ["a", "a"]


def test_who_shares_a_gpu_still_shares_one() -> None:
    placement = place_on_gpus(4, num_ranks=4, engine_sizes=[1, 1])
    seated = in_machine_order(placement, ["b", "a", "a", "b"])
    assert [bundle for bundle, _ in seated.engines] == [seated.ranks[0][0], seated.ranks[1][0]]
    assert in_machine_order(placement, ["a"] * 4) == placement
