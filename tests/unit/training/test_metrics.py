from zs_nemo.training.metrics import merge


def test_sums_add_up_maxima_do_not_and_a_rank_without_tokens_changes_nothing():
    total: dict[str, float] = {}
    for values in ({"nll": 1.0, "ratio_max": 2.0}, {}, {"nll": 2.0, "ratio_max": 1.5}):
        merge(total, values)
    assert total == {"nll": 3.0, "ratio_max": 2.0}
