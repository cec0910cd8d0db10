"""Products of many adapters in two ways."""

import jax
import numpy as np

from fedjax_fm.experiments.bench.grouped import (
    WAYS,
    Size,
    gradients,
    operands,
    rows,
)

SMALL = Size(clients=3, rows=5, width=8, rank=2)


def test_both_ways_give_numpys_products_and_the_same_gradients():
    x, a, b = operands(SMALL)
    expected = x @ a @ b
    found = {name: gradients(way, x, a, b) for name, way in WAYS.items()}
    for name, way in WAYS.items():
        np.testing.assert_allclose(way(x, a, b), expected, rtol=1e-5, err_msg=name)
    of_a = x.swapaxes(1, 2) @ expected @ b.swapaxes(1, 2)
    np.testing.assert_allclose(found["batched"][1], of_a, rtol=1e-4, atol=1e-6)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        found["batched"],
        found["grouped"],
    )


def test_a_line_for_each_way(monkeypatch):
    from fedjax_fm.experiments.bench import grouped

    monkeypatch.setattr(grouped, "on_tpu", lambda *_: None)
    lines = list(rows((SMALL,)))
    assert [line[3] for line in lines] == ["batched", "grouped"]
    assert all(float(line[4]) > 0 and line[-1] == "no compiler" for line in lines)
