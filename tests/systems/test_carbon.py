"""The carbon account: joules to grams by hand, and what adds up."""

import random

import numpy as np
import pytest

from fedjax_fm.systems import (
    Energy,
    added,
    asynchronous,
    client_seconds,
    energy_of,
    energy_of_server,
    find,
    grams,
    log_normal_profile,
)

HOME, DEU, NOR = find("link", "home"), find("grid", "DEU"), find("grid", "NOR")
SERVER = find("server", "hyperscale")


def client(seconds, down, up, **how):
    given = {"watts": 5.0, "compute_seconds": seconds, "bytes_down": down}
    return energy_of(HOME, **given, bytes_up=up, **how)


def test_a_kilowatt_hour():
    assert grams(3.6e6, DEU) == 381
    assert grams(1.8e6, NOR) == 15
    assert grams(3.6e6, DEU._replace(intensity=0.0)) == 0


def test_the_phases_of_one_client_by_hand():
    found = client(100.0, 12.5e6, 3.75e6)  # a second down, a second up
    assert found.compute == 500
    assert found.radio == pytest.approx(1.5 * 2)
    assert found.network_low == pytest.approx(16.25e6 * 0.01 * 3.6e6 / 1e9)
    assert found.network_high == pytest.approx(10 * found.network_low)
    assert found.wasted == found.server == 0
    low, high = found.grams(DEU)
    assert low == pytest.approx((503 + found.network_low) / 3.6e6 * 381)
    assert high > low


def test_the_server_pays_its_data_centre_and_its_own_grid():
    found = energy_of_server(SERVER, 3600)
    assert found.server == pytest.approx(200 * 3600 * 1.1)
    assert found.grams(DEU) == pytest.approx([0.2 * 1.1 * 381] * 2)
    assert found.grams(DEU, NOR) == pytest.approx([0.2 * 1.1 * 30] * 2)


def test_it_is_linear_in_the_intensity_and_the_order_of_clients_does_not_matter():
    each = [client(10.0 * k, 1e6 * k, 2e5 * k, arrives=k % 3 > 0) for k in range(9)]
    total = added(each)
    shuffled = list(each)
    random.Random(0).shuffle(shuffled)
    assert added(shuffled) == pytest.approx(total)
    halves = added([added(each[:4]), added(each[4:])])
    assert halves == pytest.approx(total)
    once = np.array(total.grams(DEU))
    thrice = np.array(total.grams(DEU._replace(intensity=3 * DEU.intensity)))
    np.testing.assert_allclose(thrice, 3 * once)
    np.testing.assert_allclose(sum(np.array(one.grams(DEU)) for one in each), once)
    assert added([]) == Energy()


def test_who_drops_out_costs_as_much_and_brings_nothing():
    kept, lost = client(60.0, 1e6, 0), client(60.0, 1e6, 0, arrives=False)
    assert kept.total == pytest.approx(lost.total)
    assert lost.compute == lost.radio == 0
    assert lost.wasted == kept.compute + kept.radio
    assert kept.network_low == lost.network_low


def test_an_asynchronous_run_emits_at_least_what_its_used_updates_do():
    """Clients that are at work when the run ends have used energy for nothing."""
    profile = log_normal_profile(40, seed=0, spread=1.0)
    seconds = client_seconds(profile, np.full(40, 10), 10**6, 10**5)
    log = asynchronous(
        profile, seconds, rounds=20, buffer_size=2, concurrency=12, seed=1
    )
    end = log.seconds[-1]
    used = added(client(seconds[k], 1e6, 1e5) for k in log.ids.reshape(-1))
    # those that started after an arrival and have not arrived: all that were at work
    busy = 12 * end  # client-seconds
    arrived = (log.arrived - log.started).sum()
    assert busy >= arrived - 1e-6
    wasted = client(busy - arrived, 12e6, 0, arrives=False)
    everything = added([used, wasted])
    assert everything.grams(DEU)[0] >= used.grams(DEU)[0]
    assert everything.wasted > 0
