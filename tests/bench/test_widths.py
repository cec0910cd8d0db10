"""The benchmark of widths at a small size: a row for each width, and the bytes of its slices."""

import jax

from fedjax_fm.experiments.bench.widths import WIDTHS, measure, prefixes_of, start


def test_a_row_for_each_width():
    *rows, nobody = measure(
        16, 1, 1, n_heads=2, vocabulary=11, length=6, batch=2, steps=2, cohort=2
    )
    prefixes = prefixes_of(start(16, 1, 11, 6), 2)
    assert [row["name"] for row in rows] == ["width-1", "width-0.5", "width-0.25"]
    for row, width in zip(rows, WIDTHS, strict=True):
        assert row["uplink_bytes"] == sum(
            4 * s.size for s in jax.tree.leaves(prefixes.shapes(width))
        )
        assert row["seconds"] > 0
    assert rows[0]["ratio"] == 1
    assert nobody["seconds_a_round"] > 0
