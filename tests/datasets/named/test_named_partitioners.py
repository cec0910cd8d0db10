"""Users of Poisson size and fixed label shares, against loops and counts."""

import numpy as np
import pytest

from fedjax_fm.datasets.named.partitioners import LabelShares, PoissonUsers


def test_poisson_users_cover_the_rows_as_they_stand():
    table = {"text": np.arange(5000)}
    users = PoissonUsers(mean=16.0, seed=3).partition(table)
    np.testing.assert_array_equal(np.concatenate(users), np.arange(5000))
    sizes = np.array([len(rows) for rows in users[:-1]])
    assert sizes.min() >= 1
    # mean and variance of a Poisson distribution, four standard errors
    assert abs(sizes.mean() - 16) < 4 * 4 / len(sizes) ** 0.5
    assert abs(sizes.var() / 16 - 1) < 4 * (2 / len(sizes)) ** 0.5


def test_poisson_users_are_those_of_a_plain_loop():
    rng, sizes, left = np.random.default_rng(5), [], 40
    while left:
        size = min(rng.poisson(2.0), left)
        sizes += [size] if size else []
        left -= size
    users = PoissonUsers(mean=2.0, seed=5).partition({"text": np.arange(40)})
    assert [len(rows) for rows in users] == sizes


def test_label_shares_give_equal_clients_with_these_shares():
    rng = np.random.default_rng(0)
    table = {"label": (rng.random(2000) < 0.4).astype(int)}
    shares = ((0.15, 0.85), (0.85, 0.15), (0.5, 0.5))
    clients = LabelShares(shares, "label", seed=1).partition(table)
    n = int(
        np.bincount(table["label"]).min() / 1.5
    )  # the scarcer label, 1.5 clients of it
    for rows, share in zip(clients, shares, strict=True):
        found = np.bincount(table["label"][rows], minlength=2)
        np.testing.assert_allclose(found, n * np.array(share), atol=1)
    everybody = np.concatenate(clients)
    assert len(np.unique(everybody)) == len(everybody)


def test_label_shares_repeat_and_depend_on_the_seed():
    table = {"label": np.array([0, 1] * 100)}
    shares = ((0.5, 0.5), (0.5, 0.5))
    first, again, other = (
        LabelShares(shares, "label", seed=seed).partition(table) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        (((0.5, 0.6),), "sum to 1"),
        (((1.5, -0.5),), "sum to 1"),
        (((1.0,), (0.5, 0.5)), "as many shares"),
    ],
)
def test_shares_that_are_none_are_refused(shares, words):
    with pytest.raises(ValueError, match=words):
        LabelShares(shares, "label")


def test_another_number_of_labels_is_refused():
    rule = LabelShares(((0.5, 0.5),), "label")
    with pytest.raises(ValueError, match=r"expected 2 labels in 'label'.*got 3"):
        rule.partition({"label": np.array([0, 1, 2])})


def test_a_mean_of_zero_is_refused():
    with pytest.raises(ValueError, match="mean > 0"):
        PoissonUsers(mean=0.0)
