"""The settings of the question sets, as they are typed."""

import pytest

from tests.unit.config.test_schemas import load


def test_sets_weights_and_counts_are_typed_as_lists():
    data = load(
        "search.template=open",
        "data.train=[nq:train,hotpotqa:train]",
        "data.train_weights=[2,1]",
        "data.test=[pyserini/nq:test,data/mine/test.jsonl,hub:Alibaba-NLP/ZeroSearch_dataset:test@main]",
        "data.test_counts=[500,0,0]",
    ).data
    assert data.train == ["nq:train", "hotpotqa:train"] and data.train_weights == [2.0, 1.0]
    assert data.test[2] == "hub:Alibaba-NLP/ZeroSearch_dataset:test@main" and data.test_counts == [500, 0, 0]


def test_the_quickstart_stays_in_the_facts_world():
    data = load().data
    assert (data.train, data.validation, data.test) == (["facts:train"], ["facts:validation"], ["facts:test"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=[]"], r"data\.train is empty; name at least one set, such as data\.train=\[facts:train\]"),
        (["data.test=[nq:test,nq:test]"], r"data\.test names 'nq:test' more than once"),
        (["data.train=[nq:train,nq:train]"], r"more weight with data\.train_weights"),
        (["data.train_weights=[1,2]"], r"data\.train_weights=.* has 2 entries for the 1 sets of data\.train"),
        (["data.test_counts=[1,2]"], r"data\.test_counts=\[1, 2\] has 2 entries for the 1 sets"),
        (["data.train_weights=[0]"], r"data\.train_weights=\[0\.0\] must be positive"),
        (["data.train_weights=[nan]"], r"data\.train_weights=\[nan\] must be positive"),
        (["data.train_counts=[-1]"], r"data\.train_counts=\[-1\] .* no negative"),
        (
            ["data.train=[facts:train,nq:train]"],
            r"search\.template='' with search\.off_target=auto shows .* data\.train names nq:train, .*template=open",
        ),
        (
            ["data.train=[nq:train]", "search.template=open", "search.off_target=withhold"],
            r"search\.template='open' with search\.off_target=withhold",
        ),
        (["data.max_skipped_rows=-1"], r"data\.max_skipped_rows=-1"),
    ],
)
def test_shares_that_do_not_fit_the_sets_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load(*overrides)
