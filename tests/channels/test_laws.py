"""The constants of the channels' papers: no bias, exact variances,
contractions, EDEN's errors.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from fedjax_fm.channels import (
    cast,
    drive,
    eden,
    int_blocks,
    natural,
    nf4,
    nnadq,
    random_k,
    sign,
    ternary,
    threshold,
)
from fedjax_fm.types import Channel

N_DRAWS = 8_000
KEY = jax.random.key(7)


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n).astype(np.float32)


@functools.cache
def sender(channel: Channel) -> Callable[[Any, jax.Array], Any]:
    return jax.jit(
        lambda x, key: channel.decode(channel.encode(channel.init(x), x, key)[0])
    )


def send(channel: Channel, x: np.ndarray) -> np.ndarray:
    return np.asarray(sender(channel)(x, KEY), np.float64)


def draws(channel: Channel, x: np.ndarray, n: int = N_DRAWS) -> np.ndarray:
    many = jax.jit(jax.vmap(sender(channel), in_axes=(None, 0)))
    return np.asarray(many(x, jax.random.split(KEY, n)), np.float64)


def blocks(x: np.ndarray, width: int | None) -> list[np.ndarray]:
    x = np.asarray(x, np.float64)
    return [x[i : i + (width or x.size)] for i in range(0, x.size, width or x.size)]


def variance_of_random_k(x: np.ndarray) -> float:
    return (x.size / np.ceil(0.3 * x.size) - 1) * np.sum(np.square(x, dtype=np.float64))


def variance_of_ternary(p: float, width: int | None) -> Callable[[np.ndarray], float]:
    def norm(b):
        return np.linalg.norm(b, p)

    return lambda x: sum(
        np.linalg.norm(b, 1) * norm(b) - np.sum(b**2) for b in blocks(x, width)
    )


def variance_of_natural(x: np.ndarray) -> float:
    fraction, exponent = np.frexp(np.abs(x).astype(np.float64))
    low, f = 2.0 ** (exponent - 1), 2 * fraction - 1
    return float(np.sum(low**2 * f * (1 - f)))


UNBIASED = {
    "random_k": (random_k(0.3), variance_of_random_k),
    "ternary(16)": (ternary(16), variance_of_ternary(np.inf, 16)),
    "ternary(None, l2)": (ternary(None, "l2"), variance_of_ternary(2, None)),
    "natural": (natural(), variance_of_natural),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_with_the_exact_variance(name: str) -> None:
    channel, variance = UNBIASED[name]
    x = normal(40) * np.repeat(np.float32([1, 10, 0.1]), [16, 16, 8])
    error = draws(channel, x) - x
    deviation = error.std(axis=0)
    random = deviation > 1e-4 * np.abs(x)
    z = error.mean(axis=0)[random] / (deviation[random] / np.sqrt(N_DRAWS))
    assert random.sum() >= 30
    assert np.abs(z).max() < 4.5
    assert (
        np.abs(error[:, ~random]).max(initial=0) < 1e-5
    )  # what is not random is exact
    squares = np.sum(error**2, axis=1)
    assert abs(squares.mean() - variance(x)) < 4 * squares.std() / np.sqrt(N_DRAWS)


def test_natural_attains_an_eighth_and_no_more() -> None:
    worst = np.full(8, 4 / 3, np.float32)
    assert variance_of_natural(worst) / np.sum(worst**2) == pytest.approx(1 / 8)
    assert np.mean((draws(natural(), worst) - worst) ** 2) / (
        4 / 3
    ) ** 2 == pytest.approx(1 / 8, rel=0.03)


def test_ternary_keeps_as_many_entries_as_the_paper_says() -> None:
    x = normal(64)
    kept = np.count_nonzero(draws(ternary(None), x), axis=1)
    expected = np.abs(x).sum() / np.abs(x).max()
    assert abs(kept.mean() - expected) < 4 * kept.std() / np.sqrt(N_DRAWS)


def test_random_k_chooses_k_places_each_equally_often() -> None:
    kept = draws(random_k(0.3), np.ones(40, np.float32), 4000) != 0
    assert np.all(kept.sum(axis=1) == 12)
    z = (kept.mean(axis=0) - 0.3) / np.sqrt(0.3 * 0.7 / 4000)
    assert np.abs(z).max() < 4


@pytest.mark.parametrize("width", [None, 16])
def test_the_error_of_sign_is_exact(width: int | None) -> None:
    for x in (
        normal(40),
        normal(40, 1) ** 5,
        np.eye(1, 40, 3, dtype=np.float32)[0],
        np.full(40, -2, np.float32),
    ):
        error = np.sum((send(sign(width), x) - x) ** 2)

        def delta(b):
            return (
                np.linalg.norm(b, 1) ** 2 / (b.size * np.sum(b**2))
                if np.any(b)
                else 1.0
            )

        exact = sum((1 - delta(b)) * np.sum(b**2) for b in blocks(x, width))
        assert error == pytest.approx(exact, rel=1e-5, abs=1e-6 * float(np.sum(x**2)))


ROUNDED = {  # channel, width of a block, largest distance of neighbouring levels / (2 max)
    "int_blocks(4, 16)": (int_blocks(4, 16), 16, 1 / 14),
    "int_blocks(8, None)": (int_blocks(8, None), None, 1 / 254),
    "nf4(16)": (nf4(16), 16, (1 - 0.6961928) / 2),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_to_nearest_contracts_and_keeps_the_largest_entry(name: str) -> None:
    channel, width, half_step = ROUNDED[name]
    for x in (normal(40), normal(40, 1) ** 7, np.full(40, -3, np.float32)):
        for b, sent in zip(
            blocks(x, width), blocks(send(channel, x), width), strict=True
        ):
            error, largest = np.abs(sent - b), np.abs(b).max()
            assert np.all(error <= half_step * largest * (1 + 1e-5))
            assert np.all(error <= np.abs(b) * (1 + 1e-5))
            assert error[np.argmax(np.abs(b))] <= 1e-6 * largest
            assert np.sum(error**2) <= (1 - 1 / b.size) * np.sum(b**2) + 1e-9


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [
        ("bfloat16", 2**-8),
        ("float16", 2**-11),
        ("float8_e4m3fn", 2**-4),
        ("float8_e5m2", 2**-3),
    ],
)
def test_casts_round_to_nearest(dtype: str, unit: float) -> None:
    import ml_dtypes  # noqa: F401  numpy learns the names

    x = np.concatenate([normal(200), [0.5, -448.0, 1.0625]]).astype(np.float32)
    np.testing.assert_array_equal(
        send(cast(dtype), x), x.astype(dtype).astype(np.float64)
    )
    large = np.abs(x) > 0.1
    assert np.all(np.abs(send(cast(dtype), x) - x)[large] <= unit * np.abs(x)[large])
    small = x * np.float32(2.0**-40)  # a scale a block brings them back into the range
    assert np.all(
        np.abs(send(cast(dtype, 1), small) - small) <= unit * np.abs(small) * (1 + 1e-6)
    )


def test_narrow_floats_overflow_loudly_without_a_scale() -> None:
    x = np.array([1e6, 1.0], np.float32)
    assert not np.isfinite(send(cast("float8_e4m3fn"), x)[0])
    np.testing.assert_allclose(send(cast("float8_e4m3fn", 2), x)[0], 1e6, rtol=2**-4)


@pytest.mark.parametrize(
    ("least", "relative_to"), [(0.7, None), (0.5, "max"), (1.5, "rms")]
)
def test_threshold_keeps_what_is_large_and_nothing_else(
    least: float, relative_to: str | None
) -> None:
    x = normal(50)
    of = {None: 1.0, "max": np.abs(x).max(), "rms": np.sqrt(np.mean(x**2))}[relative_to]
    channel = threshold(least, relative_to)
    np.testing.assert_array_equal(
        send(channel, x), np.where(np.abs(x) >= least * of, x, 0)
    )
    payload, _ = channel.encode((), x, KEY)
    k = int(np.sum(np.abs(x) >= least * of))
    assert int(channel.bits(payload)) == 32 + 32 * k + 8 * -(-min(6 * k, 50) // 8)


# ---- NNADQ


def level_of(norm: float, weight: float) -> int:
    return int(np.floor(max(1, np.sqrt(norm * 32 * np.log(4) / weight))))


@pytest.mark.parametrize("weight", [1e-2, 1e-3, 1e-4])
def test_nnadq_is_the_paper_s(weight: float) -> None:
    x = normal(500) * 0.05 + 0.3
    channel = nnadq(weight)
    payload, _ = jax.jit(channel.encode)((), {"w": x}, KEY)
    sent = np.asarray(channel.decode(payload)["w"], np.float64)
    norm = (float(x.max()) - float(x.min())) / 2
    level = level_of(norm, weight)
    assert (
        abs(int(payload.side[0].level) - level) <= 1
    )  # f32 against f64 under the floor
    level = int(payload.side[0].level)
    assert np.abs(sent - x).max() <= norm / (2 * level) * (1 + 1e-4)
    width = 1 + int(np.ceil(np.log2(level + 1)))
    assert int(channel.bits(payload)) == width * 8 * 63 + 96
    assert (
        np.unique(
            np.round((sent - (x.max() + x.min()) / 2) / (norm / level), 3) % 1 % 0.999
        ).max()
        < 0.05
    )


def test_nnadq_of_constants_of_four_times_the_range_and_of_no_price() -> None:
    constant = np.full(9, 0.3, np.float32)
    np.testing.assert_array_equal(send(nnadq(), constant), constant.astype(np.float64))
    x = normal(100)
    levels = [int(nnadq().encode((), x * c, KEY)[0].side[0].level) for c in (1, 4)]
    assert levels[1] in (2 * levels[0], 2 * levels[0] + 1)
    np.testing.assert_allclose(
        send(nnadq(1e-14), x), x, rtol=0, atol=2**-22 * np.abs(x).max()
    )


# ---- EDEN

TABLE = {
    1: (0.571, 0.363),
    2: (0.1331, 0.1175),
    3: (0.0358, 0.0345),
    4: (0.0096, 0.0095),
}  # KERNELS, section 5


@pytest.mark.parametrize("bits", TABLE)
@pytest.mark.parametrize("scale", ["unbiased", "mse"])
def test_the_error_of_eden_is_that_of_the_lloyd_max_quantiser(
    bits: int, scale: str
) -> None:
    """For a vector that is no Gaussian at all before it is rotated."""
    x = np.repeat(normal(1 << 7), 1 << 7) ** 3
    error = draws(eden(bits, scale, 4096, turns=2), x, 64) - x
    vnmse = np.sum(error**2, axis=1) / np.sum(x.astype(np.float64) ** 2)
    assert vnmse.mean() == pytest.approx(TABLE[bits][scale == "mse"], rel=0.01)


def test_eden_is_unbiased_and_the_other_scale_is_not() -> None:
    x = normal(1024)
    error = draws(eden(2, "unbiased", 1024), x, 2000) - x
    z = error.mean(axis=0) / (error.std(axis=0) / np.sqrt(2000))
    assert np.abs(z).max() < 5
    assert abs(z.mean()) < 0.2
    assert 0.9 < z.std() < 1.1

    def along(sent):
        return np.mean(sent @ x) / np.sum(x.astype(np.float64) ** 2)

    assert along(error + x) == pytest.approx(1, abs=1e-3)
    assert along(draws(eden(2, "mse", 1024), x, 200)) == pytest.approx(
        1 - 0.1175, abs=3e-3
    )


def test_one_rotation_is_biased_for_two_entries_and_two_rotations_are_not() -> None:
    """What the docstring warns of: two entries make two magnitudes, and the sign of the
    sum is that of the larger.
    """
    x = np.zeros(1024, np.float32)
    x[[5, 900]] = 1.0, 0.6
    once, twice = (draws(drive("unbiased", 1024, turns), x, 1000) for turns in (1, 2))
    assert once.mean(axis=0)[900] < 0.1
    for place in (5, 900):
        spread = twice[:, place].std() / np.sqrt(1000)
        assert abs(twice[:, place].mean() - x[place]) < 4 * spread + 0.01


def sparse_vectors(n: int) -> dict[str, np.ndarray]:
    """A few large entries, alone or above noise."""
    found = {}
    for k in (1, 2, 3, 4, 6, 10, 30):
        places = np.linspace(0, n - 1, k).astype(int)
        for name, values in (("equal", np.ones(k)), ("halving", 2.0 ** -np.arange(k))):
            found[f"{k}, {name}"] = np.zeros(n, np.float32)
            found[f"{k}, {name}"][places] = values
    found["3 above noise"] = normal(n) * np.float32(0.01)
    found["3 above noise"][[7, n // 2, n - 2]] = 1, 0.7, 0.5
    return found


def relative_bias(sent: np.ndarray, x: np.ndarray) -> float:
    """||mean - x|| / ||x||, what the mean of so many draws would miss by chance taken off."""
    by_chance = sent.var(axis=0, ddof=1).sum() / len(sent)
    square = np.sum((sent.mean(axis=0) - x) ** 2) - by_chance
    return float(np.sqrt(max(square, 0) / np.sum(np.square(x, dtype=np.float64))))


def biases_of(channel: Channel, n: int, n_draws: int = 1500) -> dict[str, float]:
    """Relative bias of every sparse vector, in one program."""
    vectors, keys = sparse_vectors(n), jax.random.split(KEY, n_draws)
    many = jax.jit(
        lambda xs: jax.lax.map(
            lambda x: jax.vmap(sender(channel), in_axes=(None, 0))(x, keys), xs
        )
    )
    sent = many(np.stack(list(vectors.values())))
    pairs = zip(vectors.items(), sent, strict=True)
    return {
        name: relative_bias(np.asarray(some, np.float64), x)
        for (name, x), some in pairs
    }


@pytest.mark.parametrize(("n", "bound"), [(128, 0.035), (1024, 0.015)])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_by_default_eden_is_unbiased_for_a_few_large_entries(
    bits: int, n: int, bound: float
) -> None:
    biases = biases_of(eden(bits), n)
    assert max(biases.values()) < bound, biases


def test_one_turn_is_biased_for_a_few_large_entries() -> None:
    """Why it is not the default; and that the test above would see it."""
    biases = biases_of(drive(turns=1), 128)
    assert biases["2, halving"] > 0.4
    assert sum(bias > 0.1 for bias in biases.values()) >= 6


def test_the_bias_and_error_are_those_of_a_uniformly_random_rotation() -> None:
    """DRIVE by NumPy, with rotations drawn from all of them: the errors of sparse
    vectors are as large, with no bias.
    """
    rng = np.random.default_rng(0)
    x = sparse_vectors(128)["3, halving"].astype(np.float64)
    errors, total, n_draws = [], np.zeros(128), 600
    for _ in range(n_draws):
        rotation, triangle = np.linalg.qr(rng.normal(size=(128, 128)))
        rotation *= np.sign(np.diag(triangle))
        y = rotation @ x
        estimate = rotation.T @ (np.sign(y) * (y @ y) / np.abs(y).sum())
        errors.append(np.sum((estimate - x) ** 2) / np.sum(x**2))
        total += estimate
    assert (
        np.sum((total / n_draws - x) ** 2) / np.sum(x**2)
        < 2 * np.mean(errors) / n_draws
    )
    ours = np.sum(
        (draws(drive(), x.astype(np.float32), n_draws) - x) ** 2, axis=1
    ) / np.sum(x**2)
    assert ours.mean() == pytest.approx(np.mean(errors), rel=0.03)


def test_mse_contracts_every_single_message() -> None:
    for x in (normal(300), normal(300) ** 9, np.eye(1, 300, 7, dtype=np.float32)[0]):
        sent = send(eden(1, "mse", 128), x)
        assert np.sum((sent - x) ** 2) <= np.sum(x.astype(np.float64) ** 2) * (1 + 1e-6)
