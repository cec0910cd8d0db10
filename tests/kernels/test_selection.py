"""The k largest magnitudes, against sorting and partitioning in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm.kernels import (
    kth_largest_key,
    selection,
    threshold_search,
    top_k_cut,
    top_k_mask,
    top_k_masks,
)
from fedjax_fm.kernels.selection import magnitude_keys

LENGTHS = (1, 2, 5, 16, 33)  # one compilation each
DENORMAL = float(np.finfo(np.float32).smallest_subnormal)
ODD = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    DENORMAL,
    -DENORMAL,
    1e-40,
    1.2e-38,
    3.4e38,
    np.inf,
    -np.inf,
    np.nan,
)

mask_of = jax.jit(top_k_mask)  # k is traced everywhere below
kth_key_of = jax.jit(lambda x, k: kth_largest_key(magnitude_keys(x), k))


def magnitudes(x: np.ndarray) -> np.ndarray:
    """|x| with NaN as zero."""
    return np.where(np.isnan(x), np.float32(0), np.abs(x)).astype(np.float32)


def reference(x: np.ndarray, k: int) -> np.ndarray:
    """A stable sort: of equals, the lowest index first."""
    mask = np.zeros(len(x), bool)
    mask[np.argsort(-magnitudes(x), kind="stable")[:k]] = True
    return mask


@st.composite
def vectors(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """A vector of any floats, of few values with many ties, or of edge cases, and k up
    to a little above n.
    """
    n = draw(st.sampled_from(LENGTHS))
    entry = draw(
        st.sampled_from(
            (
                st.floats(width=32),
                st.sampled_from((-2.0, -1.0, 0.0, 1.0, 2.0)),
                st.sampled_from(ODD),
                st.floats(width=32) | st.sampled_from(ODD),
            )
        )
    )
    return np.array(draw(st.lists(entry, min_size=n, max_size=n)), np.float32), draw(
        st.integers(0, n + 2)
    )


@settings(max_examples=300, deadline=None)
@given(case=vectors())
def test_the_mask_is_that_of_a_stable_sort(case: tuple[np.ndarray, int]) -> None:
    x, k = case
    mask = np.asarray(mask_of(x, k))
    assert mask.dtype == bool
    assert mask.sum() == min(k, len(x))
    np.testing.assert_array_equal(mask, reference(x, k))


@settings(max_examples=300, deadline=None)
@given(case=vectors())
def test_the_kth_largest_is_that_of_partition_bit_for_bit(
    case: tuple[np.ndarray, int],
) -> None:
    x, k = case
    n = len(x)
    key = np.uint32(kth_key_of(x, k))
    if k == 0:
        assert key == 2**31 - 1
    elif k > n:
        assert key == 0
    else:
        assert key == np.partition(magnitudes(x), n - k)[n - k].view(np.uint32)


def every_entry_of_the_sample_is(value: float):
    """The sample is every 3rd entry of 6007, and nothing else is like it."""
    return lambda rng, n: np.where(np.arange(n) % 3 == 0, value, rng.normal(size=n))


LARGE = {
    "random": lambda rng, n: rng.normal(size=n),
    "constant": lambda rng, n: np.full(n, -2.5),
    "zero": lambda rng, n: np.zeros(n),
    "denormal": lambda rng, n: rng.integers(-50, 50, n) * DENORMAL,
    "infinite": lambda rng, n: rng.choice([np.inf, -np.inf, 3e38, 0.0], n),
    "nan": lambda rng, n: np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n)),
    "all nan": lambda rng, n: np.full(n, np.nan),
    "ties": lambda rng, n: rng.integers(-3, 4, n),
    "two values next to each other": lambda rng, n: (
        np.float32(1) + rng.integers(0, 2, n) * np.float32(2**-23)
    ),
    "far apart": lambda rng, n: rng.normal(size=n) * 10.0 ** rng.integers(-30, 30, n),
    "rare giants": lambda rng, n: (
        rng.normal(size=n) * np.where(rng.random(n) < 0.01, 1e30, 1e-30)
    ),
    "sample of zeros": every_entry_of_the_sample_is(0.0),
    "sample of giants": every_entry_of_the_sample_is(1e9),
    "sorted": lambda rng, n: np.sort(rng.normal(size=n)),
    "all magnitudes": lambda rng, n: rng.integers(0, 2**32, n, dtype=np.uint32).view(
        np.float32
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_long_vectors(kind: str) -> None:
    n = 6007
    x = LARGE[kind](np.random.default_rng(0), n).astype(np.float32)
    for k in (0, 1, 2, 60, 300, 3000, n - 1, n, n + 7):
        np.testing.assert_array_equal(np.asarray(mask_of(x, k)), reference(x, k))
        if 0 < k <= n:
            assert np.uint32(kth_key_of(x, k)) == np.partition(magnitudes(x), n - k)[
                n - k
            ].view(np.uint32)


def test_the_search_ends_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than 64 passes, and few where the sample is a fair one."""
    passes = []

    def loop(is_open, body, state):
        n_passes, body = 0, jax.jit(body)
        while is_open(state):
            state, n_passes = body(state), n_passes + 1
        passes.append(n_passes)
        return state

    monkeypatch.setattr(threshold_search.lax, "while_loop", loop)
    wanted = jnp.int32(60)
    for kind in (
        "random",
        "ties",
        "far apart",
        "sample of giants",
        "two values next to each other",
    ):
        x = jnp.asarray(LARGE[kind](np.random.default_rng(0), 6007).astype(np.float32))
        interval = threshold_search._search(
            (x,), wanted, threshold_search._first_thresholds((x,), wanted, 6007)
        )
        assert interval.at_low >= 60 > interval.at_high
        assert passes[-1] <= (12 if kind in ("random", "ties") else 64), kind


def test_ties_in_every_block_of_the_search_for_the_last_one() -> None:
    n = 5000  # four blocks of 1024 and a part
    x = np.tile(np.float32([2, 1, 0, -2]), n // 4)
    for k in (1, 511, 512, 513, 1024, 1025, 2047, 2048, 2049, 2499, 2500, 2501, 3000):
        np.testing.assert_array_equal(np.asarray(mask_of(x, k)), reference(x, k))


@pytest.mark.parametrize("small", [10, 2**16])
def test_leaves_are_selected_together_as_if_they_were_joined(
    small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_SMALL", small)
    rng = np.random.default_rng(5)
    for draw in (
        lambda *shape: rng.normal(size=shape),
        lambda *shape: rng.integers(-3, 4, shape),
    ):
        tree = {
            "a": jnp.asarray(draw(40, 70), jnp.float32),
            "b": [
                jnp.asarray(draw(5), jnp.bfloat16),
                jnp.zeros((0, 3)),
                jnp.asarray(draw(2000), jnp.float32),
            ],
            "c": jnp.asarray(draw(), jnp.float32),
        }
        joined = np.concatenate(
            [np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)]
        )
        masks_of = jax.jit(lambda tree, k: top_k_masks(tree, k))
        for k in (0, 1, 48, 2400, 4805, 4806, 9999):
            masks = masks_of(tree, k)
            assert jax.tree.map(jnp.shape, masks) == jax.tree.map(jnp.shape, tree)
            flat = np.concatenate(
                [np.asarray(mask).ravel() for mask in jax.tree.leaves(masks)]
            )
            np.testing.assert_array_equal(flat, reference(joined, k))


def test_nothing_to_select_from() -> None:
    assert top_k_mask(jnp.zeros(0), 3).shape == (0,)
    assert top_k_masks({}, 3) == {}
    assert top_k_masks([jnp.zeros((2, 0))], jnp.int32(3))[0].shape == (2, 0)


def test_a_mask_passes_gradients_as_a_constant() -> None:
    x = jnp.array([1.0, -3.0, 2.0])
    gradient = jax.jit(
        jax.grad(lambda x: jnp.sum(jnp.where(top_k_mask(x, 2), x, 0) ** 2))
    )(x)
    assert gradient.tolist() == [0.0, -6.0, 4.0]


def test_keys_are_selected_as_they_are() -> None:
    keys = np.random.default_rng(0).integers(0, 2**31, 999, dtype=np.uint32)
    cut = top_k_cut((jnp.asarray(keys),), 10)
    assert (
        np.sort(keys[keys >= np.uint32(cut.key)]).tolist()
        == np.sort(keys)[-10:].tolist()
    )


def test_nan_is_selected_after_every_number_but_zero() -> None:
    x = jnp.array([np.nan, 1.0, DENORMAL, -np.inf, np.nan])
    assert mask_of(x, 3).tolist() == [False, True, True, True, False]
    assert mask_of(x, 4).tolist() == [True, True, True, True, False]
    assert mask_of(jnp.array([0.0, np.nan]), 1).tolist() == [
        True,
        False,
    ]  # equal to zero: the lowest index


def test_ties_go_to_the_lowest_index_whatever_the_sign() -> None:
    assert mask_of(jnp.array([1.0, -3.0, 3.0, -3.0]), 2).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert mask_of(jnp.array([-0.0, 0.0, 0.0]), 1).tolist() == [True, False, False]


def test_jit_is_eager_for_static_and_traced_k() -> None:
    x = jax.random.normal(jax.random.key(0), (33,))
    eager = np.asarray(top_k_mask(x, 10))
    static = jax.jit(top_k_mask, static_argnums=1)
    for other in (
        mask_of(x, 10),
        mask_of(x, jnp.int32(10)),
        static(x, 10),
        mask_of(x, np.int64(10)),
    ):
        np.testing.assert_array_equal(eager, np.asarray(other))
    for k in (0, 40):
        np.testing.assert_array_equal(
            np.asarray(static(x, k)), np.asarray(mask_of(x, k))
        )


def test_one_trace_serves_every_k() -> None:
    traces = []
    counted = jax.jit(lambda x, k: traces.append(1) or top_k_mask(x, k))
    for k in range(6):
        assert np.asarray(counted(jnp.arange(5.0), k)).sum() == min(k, 5)
    assert len(traces) == 1


def test_vmap_is_the_loop() -> None:
    x = np.random.default_rng(1).integers(-4, 5, (6, 33)).astype(np.float32)
    ks = np.array([0, 1, 5, 20, 33, 50], np.int32)
    each_k = np.asarray(jax.jit(jax.vmap(top_k_mask))(x, ks))
    one_k = np.asarray(jax.jit(jax.vmap(top_k_mask, in_axes=(0, None)))(x, 7))
    for row, k, mask, mask_of_7 in zip(x, ks, each_k, one_k, strict=True):
        np.testing.assert_array_equal(mask, reference(row, k))
        np.testing.assert_array_equal(mask_of_7, reference(row, 7))


def test_every_form_of_vmap_is_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).integers(-4, 5, (2, 3, 33)).astype(np.float32)
    wanted = np.array([[reference(row, 7) for row in rows] for rows in x])

    def check():
        both = jax.jit(jax.vmap(jax.vmap(lambda row: top_k_mask(row, 7))))(x)
        np.testing.assert_array_equal(np.asarray(both), wanted)
        last = jax.jit(
            jax.vmap(lambda column: top_k_mask(column, 7), in_axes=1, out_axes=1)
        )(x[0].T)
        np.testing.assert_array_equal(np.asarray(last).T, wanted[0])
        by_k = jax.jit(jax.vmap(top_k_mask, in_axes=(None, 0)))(x[0, 0], jnp.arange(5))
        np.testing.assert_array_equal(
            np.asarray(by_k), [reference(x[0, 0], k) for k in range(5)]
        )
        tree = jax.jit(
            jax.vmap(lambda a, b: top_k_masks((a, b), 9), in_axes=(0, None))
        )(x[0], x[1, 0])
        for row, in_a, in_b in zip(x[0], *map(np.asarray, tree), strict=True):
            np.testing.assert_array_equal(
                np.append(in_a, in_b), reference(np.append(row, x[1, 0]), 9)
            )

    check()
    monkeypatch.setattr(
        threshold_search, "on_cpu", lambda: False
    )  # all rows at once, as accelerators have it
    check()


def test_rows_over_devices() -> None:
    x = np.random.default_rng(1).normal(size=(8, 33)).astype(np.float32)
    mesh = jax.make_mesh((4,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("clients")
    rows = jax.shard_map(
        jax.vmap(lambda row: top_k_mask(row, 7)),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    np.testing.assert_array_equal(
        np.asarray(jax.jit(rows)(x)), [reference(row, 7) for row in x]
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats_are_cast_without_loss(dtype: jnp.dtype) -> None:
    x = jax.random.normal(jax.random.key(2), (33,), dtype)
    np.testing.assert_array_equal(
        np.asarray(mask_of(x, 9)), reference(np.asarray(x.astype(jnp.float32)), 9)
    )


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"expected a vector, got shape \(2, 3\)"):
        top_k_mask(jnp.zeros((2, 3)), 1)
    with pytest.raises(ValueError, match=r"expected k >= 0, got k=-1"):
        top_k_mask(jnp.zeros(3), -1)
    with pytest.raises(ValueError, match=r"expected floats, got int32"):
        top_k_masks([jnp.zeros(3), jnp.zeros(3, jnp.int32)], 1)
