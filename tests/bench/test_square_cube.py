"""The square-cube law in the operations of real blocks."""

import pytest

from fedjax_fm.experiments.bench.square_cube import Setup, measured


def test_the_ratio_doubles_with_the_width():
    """Of 4 h^2 + 8 h^2 products a layer and 2 T h of attention, forward and back."""
    setup = Setup(layers=1, tokens=4, rows=1, bits=8, rate=200.0)
    first, second, third = measured([64, 128, 256], setup)
    for row in (first, second, third):
        h, tokens = row["width"], setup.tokens
        products = 12 * h * h + 2 * tokens * h
        assert row["flop"] >= 3 * 2 * tokens * products
        assert row["flop"] <= 4.1 * 2 * tokens * products  # some are made again
        assert row["bytes"] == 2 * tokens * h
        assert row["granularity"] == pytest.approx(
            row["seconds"] / row["transfer_seconds"]
        )
    assert 1.9 < second["ratio_grew"] <= 2.0
    assert second["ratio_grew"] < third["ratio_grew"] <= 2.0


def test_long_texts_hide_it():
    setup = Setup(layers=1, tokens=512, rows=1, bits=8, rate=200.0)
    _, second = measured([64, 128], setup)
    assert second["ratio_grew"] < 1.7
