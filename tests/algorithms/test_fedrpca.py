"""FedRPCA: the decomposition against a plain one in numpy, and its optimality conditions."""

import jax
import numpy as np
import pytest
from lora_problem import (
    LAYERS,
    MIXED,
    SIZES,
    close,
    make_clients,
    mean,
    simulated,
    train,
)

from fedjax_fm.algorithms.lora_rules.robust_pca import robust_pca


def plain(matrix, sparsity, steps=4000):
    """Alternating directions in f64, with numpy's SVD."""
    scale = np.abs(matrix).max()
    data = matrix / scale
    mu = data.size / (4 * np.abs(data).sum())
    sparse, dual = np.zeros_like(data), np.zeros_like(data)
    for _ in range(steps):
        u, s, vt = np.linalg.svd(data - sparse + dual / mu, full_matrices=False)
        low_rank = (u * np.maximum(s - 1 / mu, 0)) @ vt
        rest = data - low_rank + dual / mu
        sparse = np.sign(rest) * np.maximum(np.abs(rest) - sparsity / mu, 0)
        dual += mu * (data - low_rank - sparse)
    return scale * low_rank


def planted(seed=0, n=40, m=6, n_own=3):
    """(a common direction, a few own entries of every client)."""
    rng = np.random.default_rng(seed)
    common = np.outer(rng.normal(size=n), 1 + 0.1 * rng.normal(size=m))
    own = np.zeros((n, m))
    for client in range(m):
        own[rng.choice(n, n_own, replace=False), client] = 5 * rng.normal(size=n_own)
    return common, own


decompose = jax.jit(robust_pca, static_argnames=("tolerance", "most_steps"))


def test_the_decomposition_is_numpys_and_finds_what_was_planted():
    common, own = planted()
    matrix = (common + own).astype(np.float32)
    low_rank, sparse = decompose(matrix, 6.0, tolerance=1e-7, most_steps=4000)
    np.testing.assert_allclose(low_rank + sparse, matrix, atol=1e-6)
    np.testing.assert_allclose(low_rank, plain(matrix, 40**-0.5), atol=5e-3)
    left = np.linalg.norm(low_rank - common) / np.linalg.norm(own)
    assert left < 0.1  # the mean of the columns leaves 0.43, the best rank one 0.71


def test_it_is_optimal():
    """Of equal objective with the convex programme: no feasible step lowers it."""
    common, own = planted(1)
    matrix = (common + own).astype(np.float32)
    found, _ = decompose(matrix, 6.0, tolerance=1e-7, most_steps=4000)
    found = np.asarray(found, np.float64)

    def objective(low_rank):
        values = np.linalg.svd(low_rank, compute_uv=False)
        return values.sum() + 40**-0.5 * np.abs(matrix - low_rank).sum()

    rng = np.random.default_rng(0)
    for _ in range(50):
        step = rng.normal(size=found.shape)
        assert objective(found) < objective(found + 0.1 * step) + 1e-4
        assert (
            objective(found) < objective(found + 1e-2 * step * (found != matrix)) + 1e-4
        )


@pytest.mark.parametrize("spread", [True, False], ids=["spread out", "one entry"])
def test_equal_columns_are_common_unless_single_entries_outweigh_them(spread):
    """S = 0 iff the largest entry is at most lambda sqrt(m) |x|."""
    m, n = 4, 30
    x = np.ones(n) if spread else np.eye(n)[0] + 0.01
    matrix = np.tile(x[:, None], (1, m)).astype(np.float32)
    is_common = np.abs(x).max() <= n**-0.5 * np.sqrt(m) * np.linalg.norm(x)
    _, sparse = decompose(matrix, float(m))
    assert is_common == spread
    assert (np.abs(sparse).max() < 1e-4) == spread


def test_extreme_prices_and_padding():
    common, own = planted()
    matrix = (common + own).astype(np.float32)
    _, sparse = decompose(matrix, 6.0, sparsity=1e3)
    np.testing.assert_allclose(sparse, 0, atol=1e-4)
    low_rank, _ = decompose(matrix, 6.0, sparsity=1e-3)
    np.testing.assert_allclose(low_rank, 0, atol=1e-4)
    first, _ = decompose(matrix, 6.0)
    padded = np.concatenate(
        [matrix[:, :3], np.zeros((40, 2), np.float32), matrix[:, 3:]], 1
    )
    same, _ = decompose(padded, 6.0)
    np.testing.assert_allclose(np.delete(same, [3, 4], 1), first, atol=1e-4)
    np.testing.assert_allclose(same[:, 3:5], 0, atol=1e-5)
    assert not np.any(decompose(np.zeros((5, 3), np.float32), 0.0))


def ends(state, backbone, ranks):
    clients = zip(make_clients(), ranks, strict=True)
    return [train(state.delta, backbone, *client) for client in clients]


@pytest.mark.parametrize("ranks", [(3,) * len(SIZES), MIXED], ids=["equal", "mixed"])
def test_with_beta_one_it_is_fedit(ranks):
    one, state, _ = simulated("fedrpca", ranks, beta=1.0)
    found = ends(state, one.backbone, ranks)
    after, metrics = one.run(state, 1)
    close(after.delta, mean(found))
    assert metrics["uplink_bytes"][0] == metrics["downlink_bytes"][0]


def test_own_parts_count_more():
    """A round with beta, from the clients' ends, by the plain decomposition."""
    one, state, _ = simulated("fedrpca", beta=3.0)
    found = ends(state, one.backbone, (None,) * len(SIZES))
    after, _ = one.run(state, 1)
    shares = np.array(SIZES) / sum(SIZES)
    close(after.delta["head"], mean(found)["head"])
    for name in LAYERS:
        for kind in ("lora_a", "lora_b"):
            start = np.asarray(state.delta[name][kind], np.float64)
            for at in np.ndindex(start.shape[:-2]):
                changes = np.stack(
                    [(end[name][kind] - start)[at].ravel() for end in found], 1
                )
                common = plain(changes, max(changes.shape) ** -0.5)
                moved = (common + 3 * (changes - common)) @ shares
                expected = start[at] + moved.reshape(start[at].shape)
                ours = np.asarray(after.delta[name][kind])[at]
                np.testing.assert_allclose(ours, expected, atol=3e-4)
                fedit = start[at] + (changes @ shares).reshape(start[at].shape)
                assert np.abs(ours - fedit).max() > 1e-3
