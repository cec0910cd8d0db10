"""What a run would cost: its parts by hand."""

import pytest

from fedjax_fm import systems

COUNTS = systems.Counts(
    rounds=5,
    clients=40,
    examples=4000,
    tokens=128_000,
    steps=500.0,
    flop=1.29e15,
    flop_lost=0.0,
    bytes_down=400_000_000,
    bytes_up=40_000_000,
    trained=10**6,
    model_bytes=10**9,
)
WHERE = systems.scenario(device="jetson-agx-orin", link="home", grid="DEU")


def test_the_parts_by_hand():
    cost = systems.cost_of(COUNTS, WHERE)
    assert cost.compute_seconds == pytest.approx(100.0)  # 1.29e15 / (43e12 * 0.3)
    transfer = 4e8 / 12.5e6 + 4e7 / 3.75e6 + 2 * 40 * 0.02
    assert cost.transfer_seconds == pytest.approx(transfer)
    assert cost.granularity == pytest.approx(100 / transfer)
    assert cost.compute_share == pytest.approx(100 / (100 + transfer))
    assert cost.seconds == pytest.approx(5 * (100 + transfer) / 40)
    assert cost.energy.compute == pytest.approx(50 * 100)
    assert cost.energy.server == pytest.approx(200 * cost.seconds * 1.1)
    assert cost.per_joule == pytest.approx(128_000 / 5000)
    assert cost.unit == "tokens"
    assert cost.memory == 10**9 + 16 * 10**6
    assert cost.fits
    low, high = cost.energy.total
    assert cost.grams == pytest.approx([low / 3.6e6 * 381, high / 3.6e6 * 381])
    assert cost.wasted_share == 0
    assert cost.dollars is None


def test_who_drops_out_is_paid_for():
    lost = COUNTS._replace(
        clients_lost=10, examples_lost=1000, flop_lost=1.29e15 / 4, bytes_down=5 * 10**8
    )
    plain, found = (systems.cost_of(one, WHERE) for one in (COUNTS, lost))
    assert found.energy.compute == pytest.approx(plain.energy.compute)
    assert found.compute_seconds == pytest.approx(1.25 * plain.compute_seconds)
    # 25 s of 50 W, and 1e8 B at 12.5e6 B/s of 1.5 W
    assert found.energy.wasted == pytest.approx(25 * 50 + 8 * 1.5)
    clients = found.energy.compute + found.energy.radio + found.energy.wasted
    assert found.wasted_share == pytest.approx(found.energy.wasted / clients)
    assert found.grams[0] > plain.grams[0]


def test_a_step_that_memory_bounds():
    slow = COUNTS._replace(steps=50_000.0)
    cost = systems.cost_of(slow, WHERE)
    assert cost.compute_seconds == pytest.approx(2 * 50_000 * 1e9 / 204.8e9)


def test_rented_machines():
    where = systems.scenario(
        device="t4", link="data-centre", grid="USA", cloud="gc-t4-spot"
    )
    cost = systems.cost_of(COUNTS, where)
    hours = (cost.compute_seconds + cost.transfer_seconds) / 3600
    assert cost.dollars == pytest.approx(hours * 0.18 + 0.44 * 0.08)
    assert cost.dollars_per_million == pytest.approx(cost.dollars / 4000 * 1e6)


def test_it_is_linear_in_the_run():
    """Twice the rounds cost twice as much; another order of stages costs the same."""
    twice = systems.together(COUNTS, COUNTS)
    one, two = (systems.cost_of(counts, WHERE) for counts in (COUNTS, twice))
    assert two.seconds == pytest.approx(2 * one.seconds)
    assert two.grams == pytest.approx([2 * x for x in one.grams])
    assert two.per_joule == pytest.approx(one.per_joule)


def test_what_cannot_be_costed_says_so():
    with pytest.raises(ValueError, match="operations of this run were not counted"):
        systems.cost_of(COUNTS._replace(flop=None), WHERE)
    with pytest.raises(ValueError, match="no client took part"):
        systems.cost_of(systems.Counts(), WHERE)
    with pytest.raises(ValueError, match="unknown link 'hom'; did you mean 'home'"):
        systems.scenario(device="phone", link="hom")


def test_what_was_prepared_is_paid_for_once():
    """2.58e15 FLOP at 12.9e12 a second beside the rounds; passes read weights once."""
    frozen = systems.Preparation(flop=2.58e15, passes=1000.0, model_bytes=3 * 10**9)
    counts = systems.with_preparation(COUNTS, frozen)
    plain, found = (systems.cost_of(one, WHERE) for one in (COUNTS, counts))
    assert found.compute_seconds == pytest.approx(plain.compute_seconds + 200.0)
    assert found.energy.compute == pytest.approx(plain.energy.compute + 200 * 50)
    assert found.seconds == pytest.approx(plain.seconds + 5 * 200 / 40)
    assert found.memory == 3 * 10**9  # more than training takes
    slow = frozen._replace(flop=0.0, passes=20_000.0)
    found = systems.cost_of(systems.with_preparation(COUNTS, slow), WHERE)
    reading = 20_000 * 3e9 / 204.8e9
    assert found.compute_seconds == pytest.approx(plain.compute_seconds + reading)
    twice = systems.together(counts, counts)
    assert twice.prepared_flop == 2 * frozen.flop
    assert twice.prepared_bytes == frozen.model_bytes
    half = frozen.part(2, of=4)
    assert (half.flop, half.passes, half.model_bytes) == (1.29e15, 500.0, 3 * 10**9)


def test_too_large_a_model_is_said_not_to_fit():
    cost = systems.cost_of(COUNTS._replace(trained=10**10), WHERE)
    assert not cost.fits
