"""The cases of `fedjax-fm bench kernels`.

Each has our kernel, what it replaces, and one plain read and write of the same arrays.
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
    """The same work by other means, or other work to compare with."""

    title: str
    call: Callable[[], Any]
    # agrees(our result, its result); None for other work
    agrees: Callable[[Any, Any], bool] | None = None


class Case(NamedTuple):
    """What is timed."""

    ours: Callable[[], Any]
    floor: Callable[[], Any]  # reads the input and writes the output once
    peers: tuple[Peer, ...]


def jitted(function: Callable, *arrays: Any) -> Callable[[], Any]:
    """A call of a compiled function.

    Args:
      function: is compiled.
      *arrays: its arguments.
    """
    compiled = jax.jit(function)
    return lambda: compiled(*arrays)


def top_k(shape: tuple[int, ...], with_torch: bool) -> Case:
    """The mask of the largest hundredth of every row of normal numbers.

    Args:
      shape: of the numbers, one or two dimensions.
      with_torch: whether torch.topk is a peer.
    """
    x = jax.random.normal(jax.random.key(0), shape)
    k = shape[-1] // 100

    def ours(x):
        return top_k_mask(x, k)

    def with_lax(x):
        return lax.top_k(jnp.abs(x), k)

    if len(shape) == 2:
        ours, with_lax = jax.vmap(ours), jax.vmap(with_lax)

    def same_places(mask, found):
        wanted, places = np.zeros(shape, bool), np.asarray(found[1], np.int64)
        np.put_along_axis(wanted, places, True, axis=-1)
        return np.array_equal(mask, wanted)

    def same_magnitudes(mask, found):  # torch does not say which of equals it takes
        magnitudes = np.abs(np.asarray(x))
        kept = magnitudes[np.asarray(mask)].reshape(*shape[:-1], -1)
        theirs = np.sort(np.asarray(found[0]))
        return np.array_equal(np.sort(kept), theirs)

    peers = [Peer("lax.top_k", jitted(with_lax, x), same_places)]
    if with_torch:
        import torch

        here = torch.from_numpy(np.array(x))

        def with_torch_topk():
            return torch.topk(here.abs(), k, dim=-1, sorted=False)

        peers.append(Peer("torch.topk", with_torch_topk, same_magnitudes))
    floor = jitted(lambda x: jnp.abs(x) > 2.5, x)
    return Case(jitted(ours, x), floor, tuple(peers))


def quantize(n: int) -> Case:
    """Stochastic codes of 7 levels, l2 norm.

    The peer is the same arithmetic with jax.random.uniform, whose numbers differ by at
    most 2**-16.

    Args:
      n: entries.
    """
    x = jax.random.normal(jax.random.key(0), (n,))

    def with_jax_random(x, key):
        scale = scale_of(norm_of(x, "l2"), 7)
        noise = jax.random.uniform(key, x.shape)
        codes = signed_codes(x, scale, noise, 7)
        return codes.astype(jnp.int8), scale

    def same(ours, theirs):
        # But for the few entries whose probability lies between the two numbers.
        codes, other = np.asarray(ours[0], int), np.asarray(theirs[0], int)
        difference = np.abs(codes - other)
        few = difference.max() <= 1 and difference.mean() < 1e-4
        return bool(few and ours[1] == theirs[1])

    def plain(x):
        rounded = round_up_or_down(x, jnp.float32(0.5), 7)
        return rounded.astype(jnp.int8)

    theirs = jitted(with_jax_random, x, KEY)
    peer = Peer("the same with jax.random.uniform", theirs, same)
    return Case(jitted(stochastic_quantize, x, KEY), jitted(plain, x), (peer,))


def pack(n: int, back: bool) -> Case:
    """4-bit codes to bytes, or back; beside quantising as many entries.

    Args:
      n: codes.
      back: whether bytes are unpacked.
    """
    numbers = jax.random.randint(jax.random.key(0), (n,), 0, 16)
    codes = numbers.astype(jnp.uint8)
    quantising = Peer("quantising", quantize(n).ours)

    def packed(codes):
        return pack_bits(codes, 4)

    def unpacked(packed):
        return unpack_bits(packed, 4, n)

    def widened(codes):
        return codes.astype(jnp.uint32)

    def halved(codes):
        return codes[: n // 2] + codes[n // 2 : n // 2 * 2]

    if back:
        in_bytes = jax.jit(packed)(codes)
        return Case(
            jitted(unpacked, in_bytes), jitted(widened, codes), peers=(quantising,)
        )
    return Case(jitted(packed, codes), jitted(halved, codes), peers=(quantising,))


def uplink(n: int) -> Case:
    """Error feedback, the largest hundredth, 4 bits.

    Peers are the selection alone, and the same steps with lax.top_k and jax.random.

    Args:
      n: entries.
    """
    x, residual = jax.random.normal(jax.random.key(0), (2, n))
    k = n // 100

    def step_by_step(x, residual, key):
        corrected = x + residual
        _, largest = lax.top_k(jnp.abs(corrected), k)
        places = jnp.sort(largest)
        values = jnp.pad(corrected[places], (0, -k % 512)).reshape(-1, 512)
        scales = scale_of(norm_of(values, "max"), 7)[:, None]
        noise = jax.random.uniform(key, (values.size,)).reshape(values.shape)
        codes = signed_codes(values, scales, noise, 7)
        rounded = (codes.astype(jnp.float32) * scales).reshape(-1)
        decoded = jnp.zeros(n).at[places].set(rounded[:k])
        return decoded, corrected - decoded

    def same(ours, theirs):
        # But for the few entries whose probability lies between two noise numbers.
        pairs = zip(ours, theirs, strict=True)
        differ = [np.mean(np.asarray(a) != np.asarray(b)) for a, b in pairs]
        return all(bool(share < 1e-5) for share in differ)

    def selection(x):
        return top_k_mask(x, k)

    def at_once(x, residual, key):
        return sparse_quantize(x, residual, k, bits=4, key=key)

    def plain(x, residual):
        return x + residual, x - residual

    in_steps = jitted(step_by_step, x, residual, KEY)
    peers = (
        Peer("the selection alone", jitted(selection, x)),
        Peer("lax.top_k and jax.random", in_steps, same),
    )
    ours = jitted(at_once, x, residual, KEY)
    return Case(ours, jitted(plain, x, residual), peers)


CASES: dict[str, Callable[[int, bool], Case]] = {
    "topk-1e6": lambda part, torch: top_k((10**6 // part,), torch),
    "topk-1e7": lambda part, torch: top_k((10**7 // part,), torch),
    "topk-256x1e5": lambda part, torch: top_k((256, 10**5 // part), torch),
    "quantize-4e6": lambda part, torch: quantize(4 * 10**6 // part),
    "pack-4e6": lambda part, torch: pack(4 * 10**6 // part, back=False),
    "unpack-4e6": lambda part, torch: pack(4 * 10**6 // part, back=True),
    "uplink-1e6": lambda part, torch: uplink(10**6 // part),
}
