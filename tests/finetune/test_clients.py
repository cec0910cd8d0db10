"""Who has which examples, and that nothing that is scored is trained on."""

import numpy as np
import pytest

from fedjax_fm.finetune import clients as federation
from fedjax_fm.finetune.clients import PARTITIONERS, capped, deal, find
from fedjax_fm.finetune.examples import choose, make
from fedjax_fm.finetune.files import Source
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.runs.errors import UsageError

TEXTS = [f"text {k}" for k in range(60)]
LABELS = [k % 3 for k in range(60)]
USERS = [f"user {k % 12}" for k in range(60)]


def federated(settings, **columns):
    table = {"text": TEXTS, "label": LABELS, "user": USERS, **columns}
    source = Source(table=table, name="t", kind="jsonl", sha256="")
    examples = make(source, choose(settings, source))
    return find(settings, source, examples), examples


def of(client="user", **more):
    return Settings(text="text", label="label", client=client, **more)


def test_a_column_makes_a_client_of_each_value():
    found, _ = federated(of())
    assert found.names == sorted(set(USERS))
    assert [len(own) for own in found.places] == [5] * 12
    assert np.sort(np.concatenate(found.places)).tolist() == list(range(60))


ARGUMENTS = {
    "iid": "iid:4",
    "dirichlet": "dirichlet:num_partitions=4,alpha=0.5,min_partition_size=1",
    "pathological": "pathological:num_partitions=4,num_classes_per_partition=2",
    "shard": "shard:num_partitions=4,num_shards_per_partition=2",
    "natural_id": "natural_id:user",
    "grouped_natural_id": "grouped_natural_id:user,group_size=3",
    "linear": "linear:4",
    "square": "square:4",
    "exponential": "exponential:2",
    "size": "size:[20, 30]",
    "inner_dirichlet": "inner_dirichlet:partition_sizes=[30, 30],alpha=0.5",
    "continuous": "continuous:num_partitions=4,strictness=0.5,partition_by=score",
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_partitioners_by_name(name):
    scores = np.linspace(0, 1, 60)
    found, _ = federated(of(ARGUMENTS[name]), score=scores)
    places = np.concatenate(found.places)
    assert len(found.places) >= 2
    assert len(np.unique(places)) == len(places) <= 60


def test_every_partitioner_of_rows_has_two_names():
    short = {name for name in PARTITIONERS if name.islower()}
    assert short - set(ARGUMENTS) == {"distribution"}
    assert {"DirichletPartitioner", "IidPartitioner"} <= set(PARTITIONERS)


@pytest.mark.parametrize(
    ("client", "said"),
    [
        ("usr", "did you mean 'user'"),
        ("dirichlt:num_partitions=3,alpha=1", "did you mean 'dirichlet'"),
        ("dirichlet:num_partitions=3", "alpha"),
        ("iid:100", "iid:100"),
        ("dirichlet:num_partitions=3,alpha=-1", "alpha"),
    ],
)
def test_clients_that_make_no_sense(client, said):
    with pytest.raises(UsageError, match=said):
        federated(of(client))


def test_nobody_says_who_the_clients_are():
    settings = Settings(text="text", label="label")
    with pytest.raises(UsageError, match="--client COLUMN"):
        federated(settings, user=[1] * 60, user_id=[2] * 60)
    found, _ = federated(settings)  # `user` alone is usual
    assert len(found.places) == 12


def test_small_clients_and_rows_of_nobody_are_counted():
    users = ["a"] * 30 + ["b"] * 28 + ["c"] + [None]
    found, _ = federated(of(min_examples=2), user=users)
    assert found.names == ["a", "b"]
    assert found.counts["clients too small"] == 1
    assert found.counts["examples of no client"] == 1
    found, _ = federated(of(), user=users)
    assert found.counts["clients with one example"] == 1


def test_one_client_is_no_federation():
    with pytest.raises(UsageError, match="a federation needs two"):
        federated(of(), user=["a"] * 60)


def test_equal_examples_are_counted_and_dropped_if_asked():
    texts = [f"text {k % 20}" for k in range(60)]
    found, _ = federated(of(), text=texts, label=[k % 2 for k in range(60)])
    assert found.counts["equal examples"] == 40
    assert found.counts["equal examples with several clients"] == 20
    found, _ = federated(
        of(drop_duplicates=True), text=texts, label=[k % 2 for k in range(60)]
    )
    assert sum(map(len, found.places)) == 20
    assert found.counts["equal examples with several clients"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_what_is_scored_is_never_trained_on(seed):
    settings = of(holdout_clients=0.25, holdout_examples=0.2)
    found, examples = federated(settings)
    dealt = deal(found, examples, settings, seed, "final")
    parts = [*dealt.train, *dealt.own, *dealt.unseen]
    assert len(dealt.train) == len(dealt.own) == 9
    assert len(dealt.unseen) == 3
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together) == 60
    assert all(len(own) == 1 for own in dealt.own)


def test_every_client_that_trains_keeps_an_example():
    settings = of(holdout_clients=0.25, holdout_examples=0.95)
    found, examples = federated(settings)
    dealt = deal(found, examples, settings, 0, "final")
    assert all(len(own) == 1 for own in dealt.train)


def test_a_scored_example_that_is_trained_on_elsewhere_is_left_out():
    texts = ["the same" if k % 5 == 0 else f"text {k}" for k in range(60)]
    settings = of(holdout_clients=0.25, holdout_examples=0.4)
    found, examples = federated(settings, text=texts, label=[0] * 30 + [1] * 30)
    dealt = deal(found, examples, settings, 0, "final")

    def said(parts):
        places = [int(place) for own in parts for place in own]
        return {(examples.values[p], int(examples.labels[p])) for p in places}

    assert dealt.leaks > 0
    assert not said(dealt.train) & said([*dealt.own, *dealt.unseen])


def test_clients_that_tune_are_of_no_other_use():
    settings = of(learning_rate=(0.1, 0.2))
    found, examples = federated(settings)

    def used(seed, split):
        dealt = deal(found, examples, settings, seed, split)
        return set(np.concatenate([*dealt.train, *dealt.own, *dealt.unseen]).tolist())

    tuning = used(1000, "tuning")
    assert tuning == used(7, "tuning")
    for seed in range(3):
        assert not tuning & used(seed, "final")
    single = of()
    dealt = deal(found, examples, single, 0, "final")
    assert sum(map(len, [*dealt.train, *dealt.own, *dealt.unseen])) == 60


def test_too_few_clients():
    settings = of("iid:2", learning_rate=(0.1, 0.2))
    found, examples = federated(settings)
    with pytest.raises(UsageError, match="too few to put some aside"):
        deal(found, examples, settings, 0, "final")


def test_scored_examples_are_capped_evenly():
    parts = [np.arange(10), np.arange(3), np.arange(20)]
    assert [len(own) for own in capped(parts, 9, seed=0)] == [3, 3, 3]
    assert [len(own) for own in capped(parts, 100, seed=0)] == [10, 3, 20]
    assert federation.capped([], 5, seed=0) == []
