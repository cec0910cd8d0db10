"""The quickstart with a tiny random encoder and made-up sentences."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import channels, models, study, trees
from fedjax_fm.experiments import quickstart
from fedjax_fm.experiments.quickstart import arms, clients
from fedjax_fm.experiments.shared.sentences import Sentences
from fedjax_fm.models.bert import BertConfig

CONFIG = quickstart.Config(
    max_length=8, rank=2, clients=12, held_out_clients=4, most_own=4, most_test=24, cohort=3, rounds=2,
    local_steps=1, head_examples=8, every=1, looked_at=8, tuning_rounds=1,
)  # fmt: skip
N, LENGTH = 480, 8
SHARED: dict = {}


@functools.cache
def made_up(*_) -> Sentences:
    """Four domains, documents of four sentences; which half of the vocabulary a
    sentence is from is its label.
    """
    random = np.random.default_rng(0)
    label = random.integers(0, 2, N).astype(np.int32)
    ids = (2 + 14 * label[:, None] + random.integers(0, 14, (N, LENGTH))).astype(
        np.int32
    )
    document = np.array([f"d{k // 4}" for k in range(N)])
    domain = np.array(["abcd"[k // 4 % 4] for k in range(N)])
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "label": label}
    return Sentences(arrays, domain, document)


def tiny(name, seed=0, **_):
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LENGTH,
    )
    return models.BertForSequenceClassification(config, 2, "mean", nnx.Rngs(seed))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.setattr(clients, "sentences", made_up)
    monkeypatch.setattr(models, "from_pretrained", tiny)


@functools.cache
def data():
    return quickstart.data(CONFIG, 0, "final")


@functools.cache
def found_by(name: str) -> tuple[dict[str, float], study.Run]:
    arm = quickstart.STUDY.arm(name)
    source = quickstart.STUDY.arm(arm.like) if arm.like else arm
    run = study.Run(
        name, CONFIG, 0, "final", source.points(CONFIG)[0], data, shared=SHARED
    )
    return arm.run(run), run


@pytest.mark.parametrize("name", [arm.name for arm in quickstart.STUDY.arms])
def test_an_arm_returns_what_the_table_shows(name):
    found, run = found_by(name)
    asked = {score.name for score in quickstart.STUDY.all_scores}
    assert {"accuracy", "own", "worst", "held_out"} <= found.keys() <= asked
    assert all(math.isfinite(value) for value in found.values())
    assert found["worst"] <= found["own"]
    assert len(run.clients) == CONFIG.clients
    sends = name in ("federated", "uncompressed", "shuffled")
    assert (sum(run.bytes.values()) > 0) == sends


def test_bytes_are_those_that_shapes_say():
    n = trees.size(data().adapted.delta)
    found, run = found_by("federated")
    kept = math.ceil(0.1 * n)

    def buckets(entries):
        return 4 * math.ceil(entries / 512)

    places = min(math.ceil(kept * math.ceil(math.log2(n)) / 8), math.ceil(n / 8))
    up = math.ceil(kept * 4 / 8) + buckets(kept) + places
    down = n + buckets(n)
    times = CONFIG.rounds * CONFIG.cohort
    assert run.bytes == {"uplink_bytes": times * up, "downlink_bytes": times * down}
    assert found["fewer_up"] == pytest.approx(4 * n / up)
    assert found["fewer_both"] == pytest.approx(8 * n / (up + down))
    found, run = found_by("uncompressed")
    assert run.bytes == {"uplink_bytes": times * 4 * n, "downlink_bytes": times * 4 * n}
    assert found["fewer_up"] == found["fewer_both"] == 1


def test_costs_are_of_all_that_clients_compute():
    """The head is billed for the encoder's passes; clients alone for all their steps."""
    _, head = found_by("head")
    rows = sum(min(len(one["label"]), CONFIG.head_examples) for one in data().train)
    d = wide = 16  # of `tiny`, which has two layers
    layer = 2 * LENGTH * (4 * d * d + 2 * d * wide) + 4 * LENGTH * LENGTH * d
    assert head.counts.prepared_flop == pytest.approx(rows * 2 * layer, rel=0.02)
    assert head.counts.prepared_passes == rows / 16
    _, federated = found_by("uncompressed")
    assert federated.counts.prepared_flop == 0
    _, alone = found_by("local")
    flop, examples = federated.counts.flop, federated.counts.examples
    each = alone.counts.flop / alone.counts.examples
    assert each == pytest.approx(flop / examples, rel=0.01)


def rows_of(parts) -> set[bytes]:
    return {row.tobytes() for part in parts for row in part["input_ids"]}


def test_nothing_is_in_two_places(monkeypatch):
    """Every row gets ids of its own here, so that the splits can be compared by content."""
    table = made_up()
    ids = np.arange(N * LENGTH, dtype=np.int32).reshape(N, LENGTH)
    own = table._replace(arrays={**table.arrays, "input_ids": ids})
    monkeypatch.setattr(clients, "sentences", lambda *_: own)
    everything = dataclasses.replace(CONFIG, most_own=10**6, most_test=10**6)
    splits = {}
    for split in ("tuning", "final"):
        dealt = quickstart.data(everything, 1, split)
        parts = [
            rows_of(dealt.train),
            rows_of(dealt.own),
            rows_of(dealt.held_out),
            rows_of([dealt.test]),
        ]
        splits[split] = set.union(*parts)
        assert sum(map(len, parts)) == len(splits[split])
        tested = {row[0] // LENGTH // 4 for row in dealt.test["input_ids"]}
        seen = {
            row[0] // LENGTH // 4
            for client in dealt.train
            for row in client["input_ids"]
        }
        assert not tested & seen  # whole documents
        for client in dealt.train:
            assert (
                len({table.domain[row[0] // LENGTH] for row in client["input_ids"]})
                == 1
            )
    assert not splits["tuning"] & splits["final"]
    assert len(splits["tuning"] | splits["final"]) == N


@pytest.mark.parametrize("how", ["dirichlet", "iid"])
def test_other_partitions_deal_to_as_many_clients(how):
    dealt = quickstart.data(
        dataclasses.replace(CONFIG, partition=how, alpha=30.0), 0, "final"
    )
    assert len(dealt.train) == len(dealt.own) == CONFIG.clients


def test_plain_codes_lose_least_on_the_way_down():
    """At the same bytes; a message of parameters that move a little each round, ten
    messages in a row.
    """
    key = jax.random.key(0)
    start = 0.05 * jax.random.uniform(key, (4096,), minval=-1)
    steps = 0.003 * jax.random.normal(jax.random.key(1), (10, 4096))
    messages = start + jnp.cumsum(steps, axis=0)

    def loss(channel) -> tuple[float, float]:
        state, total = channel.init(jax.ShapeDtypeStruct((4096,), jnp.float32)), 0.0
        for number, message in enumerate(messages):
            payload, state = channel.encode(
                state, message, jax.random.fold_in(key, number)
            )
            total += float(jnp.sum((channel.decode(payload) - message) ** 2))
        return total, float(channel.bits(payload))

    down = arms.wires(CONFIG)["downlink"]
    others = {
        "error feedback": channels.error_feedback(channels.quantize(8)),
        "anchored": channels.anchored(
            channels.quantize(4), channels.quantize(4), every=10
        ),
    }
    lost, bits = loss(down)
    for name, channel in others.items():
        other, other_bits = loss(channel)
        assert other_bits >= bits, name
        assert other > 1.5 * lost, name


def test_full_chooses_every_rate_from_one_grid():
    full = quickstart.Config().full()
    quickstart.STUDY.check_budgets(full)
    tuned = [arm for arm in quickstart.STUDY.arms if arm.grid]
    assert {len(arm.points(full)) for arm in tuned} == {len(quickstart.GRID)}
    assert {len(arm.points(quickstart.Config())) for arm in tuned} == {1}
    assert len(full.seeds) == 3
