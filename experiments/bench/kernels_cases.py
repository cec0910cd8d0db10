"""What `fedjax-fm bench kernels` times.

Our kernels, what they replace, and one plain read and write of the same arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_fm.kernels import (
    pack_bits,
    sparse_quantize,
    stochastic_quantize,
    top_k_mask,
    unpack_bits,
)
from fedjax_fm.kernels.quantize import norm_of, round_up_or_down, scale_of, signed_codes

KEY = jax.random.key(1)


class Peer(NamedTuple):
    """The same work done otherwise.

    `agrees(our result, its result)`; None where it is other work, to compare with.
    """

    title: str
    call: Callable[[], Any]
    agrees: Callable[[Any, Any], bool] | None = None


class Case(NamedTuple):
    """`ours` and `floor` return arrays.

    `floor` reads the input and writes the output once, and does nothing else.
    """

    ours: Callable[[], Any]
    floor: Callable[[], Any]
    peers: tuple[Peer, ...]


def jitted(function: Callable, *arrays: Any) -> Callable[[], Any]:
    """A call of the compiled function."""
    compiled = jax.jit(function)
    return lambda: compiled(*arrays)


def top_k(shape: tuple[int, ...], with_torch: bool) -> Case:
    """The mask of the largest hundredth of every row of normal numbers."""
    x = jax.random.normal(jax.random.key(0), shape)
    k = shape[-1] // 100
    rows = len(shape) == 2
    over_rows = jax.vmap if rows else (lambda function: function)

    def same_places(mask, found):
        wanted = np.zeros(shape, bool)
        np.put_along_axis(wanted, np.asarray(found[1], np.int64), True, axis=-1)
        return bool((np.asarray(mask) == wanted).all())

    def same_magnitudes(mask, found):  # torch does not say which of equals it takes
        kept = np.abs(np.asarray(x))[np.asarray(mask)].reshape(*shape[:-1], -1)
        return bool((np.sort(kept) == np.sort(np.asarray(found[0]))).all())

    peers = [
        Peer(
            "lax.top_k",
            jitted(over_rows(lambda x: lax.top_k(jnp.abs(x), k)), x),
            same_places,
        )
    ]
    if with_torch:
        import torch

        here = torch.from_numpy(np.array(x))
        peers.append(
            Peer(
                "torch.topk",
                lambda: torch.topk(here.abs(), k, dim=-1, sorted=False),
                same_magnitudes,
            )
        )
    return Case(
        jitted(over_rows(lambda x: top_k_mask(x, k)), x),
        jitted(lambda x: jnp.abs(x) > 2.5, x),
        tuple(peers),
    )


def quantize(n: int) -> Case:
    """7 levels, l2 norm; the peer is the same arithmetic with jax.random.uniform, whose
    numbers differ by 2**-16.
    """
    x = jax.random.normal(jax.random.key(0), (n,))

    def with_jax_random(x, key):
        scale = scale_of(norm_of(x, "l2"), 7)
        return signed_codes(x, scale, jax.random.uniform(key, x.shape), 7).astype(
            jnp.int8
        ), scale

    def same(
        ours, theirs
    ):  # but for the few entries whose probability lies between the two numbers
        difference = np.abs(np.asarray(ours[0], int) - np.asarray(theirs[0], int))
        return bool(
            difference.max() <= 1 and difference.mean() < 1e-4 and ours[1] == theirs[1]
        )

    peer = Peer(
        "the same with jax.random.uniform", jitted(with_jax_random, x, KEY), same
    )
    floor = jitted(
        lambda x: round_up_or_down(x, jnp.float32(0.5), 7).astype(jnp.int8), x
    )
    return Case(jitted(stochastic_quantize, x, KEY), floor, (peer,))


def pack(n: int, back: bool) -> Case:
    """4-bit codes to bytes, or back; beside quantising as many entries."""
    codes = jax.random.randint(jax.random.key(0), (n,), 0, 16).astype(jnp.uint8)
    packed = jax.jit(lambda codes: pack_bits(codes, 4))(codes)
    quantising = Peer("quantising", quantize(n).ours)
    if back:
        ours = jitted(lambda packed: unpack_bits(packed, 4, n), packed)
        return Case(
            ours, jitted(lambda codes: codes.astype(jnp.uint32), codes), (quantising,)
        )
    floor = jitted(lambda codes: codes[: n // 2] + codes[n // 2 : n // 2 * 2], codes)
    return Case(jitted(lambda codes: pack_bits(codes, 4), codes), floor, (quantising,))


def uplink(n: int) -> Case:
    """Error feedback, the largest hundredth, 4 bits.

    Beside the selection alone, and with lax.top_k and jax.random.
    """
    x, residual = jax.random.normal(jax.random.key(0), (2, n))
    k = n // 100

    def step_by_step(x, residual, key):
        corrected = x + residual
        places = jnp.sort(lax.top_k(jnp.abs(corrected), k)[1])
        values = jnp.pad(corrected[places], (0, -k % 512)).reshape(-1, 512)
        scales = scale_of(norm_of(values, "max"), 7)[:, None]
        noise = jax.random.uniform(key, (values.size,)).reshape(values.shape)
        rounded = signed_codes(values, scales, noise, 7).astype(jnp.float32) * scales
        decoded = jnp.zeros(n).at[places].set(rounded.reshape(-1)[:k])
        return decoded, corrected - decoded

    def same(
        ours, theirs
    ):  # but for the few entries whose probability lies between two numbers of the noise
        return all(
            bool(np.mean(np.asarray(a) != np.asarray(b)) < 1e-5)
            for a, b in zip(ours, theirs, strict=True)
        )

    peers = (
        Peer("the selection alone", jitted(lambda x: top_k_mask(x, k), x)),
        Peer("lax.top_k and jax.random", jitted(step_by_step, x, residual, KEY), same),
    )
    ours = jitted(
        lambda x, residual, key: sparse_quantize(x, residual, k, 4, key),
        x,
        residual,
        KEY,
    )
    return Case(
        ours,
        jitted(lambda x, residual: (x + residual, x - residual), x, residual),
        peers,
    )


CASES: dict[str, Callable[[int, bool], Case]] = {
    "topk-1e6": lambda part, torch: top_k((10**6 // part,), torch),
    "topk-1e7": lambda part, torch: top_k((10**7 // part,), torch),
    "topk-256x1e5": lambda part, torch: top_k((256, 10**5 // part), torch),
    "quantize-4e6": lambda part, torch: quantize(4 * 10**6 // part),
    "pack-4e6": lambda part, torch: pack(4 * 10**6 // part, back=False),
    "unpack-4e6": lambda part, torch: pack(4 * 10**6 // part, back=True),
    "uplink-1e6": lambda part, torch: uplink(10**6 // part),
}
