"""Adaptive quantisation: bits of each layer by what its noise does to the last one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks, trees
from fedjax_fm.channels.arguments import checked_whole
from fedjax_fm.channels.buffers import Codes, pack
from fedjax_fm.channels.payload import Payload, payload_bits
from fedjax_fm.channels.vectors import flatten, form_of, opened, unflatten
from fedjax_fm.types import Channel, Tree

ALPHA = math.log(4)  # one more bit divides the energy of the noise by four
MOST_BITS = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cells:
    """One leaf on the wire.

    Attributes:
      codes: the cell of each entry.
      low: f32[], where the first cell begins.
      high: f32[], where the last one ends.
    """

    codes: Codes
    low: jax.Array
    high: jax.Array


def layer_bits(widths: Mapping[str, int] | int) -> Channel:
    """Rounds every leaf to the middles of 2^b cells of its range, b its own.

        code_i = floor((x_i - low) / D),  C(x)_i = low + (code_i + 1/2) D,
        D = (high - low) / 2^b

    Deterministic, hence biased; the error of an entry is at most D / 2, in the mean D^2
    / 12 for entries spread evenly. A constant leaf arrives exactly. Bits: b an entry
    (whole bytes a leaf), and 64 a leaf.

    Args:
      widths: {dotted path of a leaf: b}, 1 to 8, as `rounded(bit_widths(...))` gives
        them; one number for all leaves.

    Returns:
      A channel without state.

    Raises:
      ValueError: a width is out of its bounds; at the first message, a leaf without
        one.
      TypeError: at the first message, `Rows` among the leaves.

    References:
      Zhou et al., Adaptive quantization for deep neural network, AAAI 2018, arXiv
      1712.01048.

    Example:
      >>> from fedjax_fm import channels
      >>> channel = channels.layer_bits({"a": 1, "b": 2})
      >>> tree = {"a": jnp.array([0.0, 4.0]), "b": jnp.array([0.0, 1.0, 4.0])}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> {name: x.tolist() for name, x in channel.decode(payload).items()}
      {'a': [1.0, 3.0], 'b': [0.5, 1.5, 3.5]}
      >>> channel.bits(payload)  # a byte each, and two ends each
      144
    """
    setting = _checked(widths)

    def encode(state, tree, key):
        form = form_of(tree, "layer_bits", rows=False)
        vector = flatten(tree, form)
        paths = [trees.path_of(path) for path, _ in jax.tree.leaves_with_path(tree)]
        start, side = 0, []
        for path, leaf in zip(paths, form.leaves, strict=True):
            if leaf.kind == "float":
                x = vector.x[start : start + leaf.size]
                side.append(_cells(x, _width(setting, path)))
                start += leaf.size
        written = ("layer_bits", setting, form)
        return Payload((), tuple(side), written, vector.rest), state

    def decode(payload):
        form = opened(payload, "layer_bits", setting)
        x = jnp.concatenate([_middles(sent) for sent in payload.side])
        return unflatten(x, form, payload.rest, nearest=True)

    return Channel(
        init=lambda shapes: (), encode=encode, decode=decode, bits=payload_bits
    )


def _checked(widths: Any) -> Any:
    """The widths in a form that both ends can compare."""
    if not isinstance(widths, Mapping):
        return checked_whole("widths", widths, least=1, most=MOST_BITS)
    for path, width in widths.items():
        checked_whole(f"widths[{path!r}]", width, least=1, most=MOST_BITS)
    return tuple(sorted((path, int(width)) for path, width in widths.items()))


def _width(setting: Any, path: str) -> int:
    if isinstance(setting, int):
        return setting
    known = dict(setting)
    if path in known:
        return known[path]
    raise ValueError(
        f"layer_bits: expected a width for every leaf, got none for {path!r}; there "
        f"are widths for {sorted(known)}"
    )


def _cells(x: jax.Array, width: int) -> Cells:
    low, high = jnp.min(x), jnp.max(x)
    step = high / 2**width - low / 2**width
    code = jnp.floor((x - low) / jnp.where(step > 0, step, 1.0))
    code = jnp.clip(jnp.nan_to_num(code), 0, 2**width - 1)
    return Cells(pack(code.astype(jnp.uint8), 2**width), low, high)


def _middles(sent: Cells) -> jax.Array:
    width = sent.codes.bits
    step = sent.high / 2**width - sent.low / 2**width
    codes = sent.codes.unpack().astype(jnp.float32)
    middle = sent.low + (codes + 0.5) * step
    return jnp.where(step == 0, sent.low, middle)


def bit_widths(
    sizes: Mapping[str, int],
    energies: Mapping[str, float],
    robustness: Mapping[str, float],
    *,
    mean_bits: float | None = None,
    most_noise: float | None = None,
) -> dict[str, float]:
    """The bits of each layer that do least harm for their number.

    Least sum_i s_i b_i with sum_i (p_i / t_i) e^(-a b_i) <= C, a = ln 4: at the optimum
    p_i e^(-a b_i) / (t_i s_i) is the same for all layers, so

        b_i = (1 / a) ln(p_i / (t_i s_i)) + a constant

    Args:
      sizes: s_i, entries of each leaf by its dotted path.
      energies: p_i, energy of the noise in the last layer at no bits, above 0; see
        `noise_energies`.
      robustness: t_i, energy there that costs a given accuracy, above 0; see
        `noise_that_costs`.
      mean_bits: the mean of b_i over all entries; give this or `most_noise`.
      most_noise: C.

    Returns:
      {path: b_i}, real numbers, which may be out of what a channel can send.

    Raises:
      TypeError, ValueError: a number out of bounds; other paths in one of the three;
        neither or both of the last two.

    References:
      Zhou et al. 2018, arXiv 1712.01048, equations 8 to 16.

    Example:
      >>> ones = {"a": 1.0, "b": 1.0}
      >>> bits = bit_widths({"a": 9, "b": 9}, {"a": 4.0, "b": 1.0}, ones, mean_bits=4)
      >>> {name: round(b, 6) for name, b in bits.items()}
      {'a': 4.5, 'b': 3.5}
    """
    if (mean_bits is None) == (most_noise is None):
        raise ValueError(
            "give either mean_bits or most_noise, got "
            f"mean_bits={mean_bits}, most_noise={most_noise}"
        )
    for name, values in (("energies", energies), ("robustness", robustness)):
        if set(values) != set(sizes):
            raise ValueError(
                f"expected {name} for {sorted(sizes)}, got {sorted(values)}"
            )
        for path, value in values.items():
            checks.real(f"{name}[{path!r}]", value, above=0)
    for path, size in sizes.items():
        checks.whole(f"sizes[{path!r}]", size, least=1)
    share = {
        path: math.log(energies[path] / (robustness[path] * sizes[path])) / ALPHA
        for path in sizes
    }
    total = sum(sizes.values())
    if most_noise is not None:
        checks.real("most_noise", most_noise, above=0)
        more = -math.log(most_noise / total) / ALPHA
    else:
        mean = sum(sizes[path] * share[path] for path in sizes) / total
        more = checks.real("mean_bits", mean_bits, above=0) - mean
    return {path: share[path] + more for path in sizes}


def rounded(widths: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers of bits that `layer_bits` can send, 1 to 8.

    Args:
      widths: real numbers, of `bit_widths`.
    """
    return {path: int(np.clip(round(b), 1, MOST_BITS)) for path, b in widths.items()}


def noise_energies(
    features: Callable[[Tree], jax.Array], delta: Tree, bits: int = 6
) -> dict[str, float]:
    """Energy in the last layer of the noise of each leaf, as if it had no bits.

        p_i = ||f(w, leaf i rounded to b bits) - f(w)||^2 4^b

    Args:
      features: `delta -> array`, what the last layer gives on some examples.
      delta: w.
      bits: b, at which it is measured, 1 to 8.

    Returns:
      {dotted path: p_i}, by the law that one more bit divides the energy by four.
    """
    clean = features(delta)
    leaves, structure = jax.tree.flatten(delta)
    paths = [trees.path_of(path) for path, _ in jax.tree.leaves_with_path(delta)]
    found = {}
    for number, path in enumerate(paths):
        noisy = list(leaves)
        middles = _middles(_cells(jnp.ravel(noisy[number]), bits))
        noisy[number] = middles.reshape(jnp.shape(noisy[number]))
        change = features(jax.tree.unflatten(structure, noisy)) - clean
        found[path] = float(jnp.sum(jnp.square(change))) * 4.0**bits
    return found


def noise_that_costs(
    drop: float,
    features: Callable[[Tree], jax.Array],
    score: Callable[[Tree], float],
    delta: Tree,
    key: jax.Array,
    *,
    halvings: int = 20,
) -> dict[str, float]:
    """Energy in the last layer at which noise on one leaf alone costs `drop`.

    Uniform noise on the leaf, scaled until the score has fallen that far.

    Args:
      drop: of the score, above 0: 0.1 for ten points of accuracy.
      features: `delta -> array`, what the last layer gives on some examples.
      score: `delta -> number`, the accuracy on them.
      delta: w.
      key: of the noise.
      halvings: of the interval of the scale, from 2^-20 to 2^10 of the leaf's range.

    Returns:
      {dotted path: t_i}.

    Raises:
      ValueError: noise of no scale costs that much.
    """
    checks.real("drop", drop, above=0)
    checks.whole("halvings", halvings, least=1)
    clean, best = features(delta), float(score(delta))
    leaves, structure = jax.tree.flatten(delta)
    paths = [trees.path_of(path) for path, _ in jax.tree.leaves_with_path(delta)]
    found = {}
    for number, path in enumerate(paths):
        leaf = leaves[number]
        span = float(jnp.max(leaf) - jnp.min(leaf)) or 1.0
        draw = jax.random.uniform(jax.random.fold_in(key, number), leaf.shape)
        noise = span * (draw - 0.5)

        def with_noise(exponent, number=number, leaf=leaf, noise=noise):
            noisy = list(leaves)
            noisy[number] = leaf + 2.0**exponent * noise
            return jax.tree.unflatten(structure, noisy)

        low, high = -20.0, 10.0
        if best - float(score(with_noise(high))) < drop:
            raise ValueError(
                f"no noise on {path!r} costs drop={drop} of a score of {best:.4g}; "
                "ask for less"
            )
        for _ in range(halvings):
            middle = (low + high) / 2
            costs = best - float(score(with_noise(middle))) >= drop
            low, high = (low, middle) if costs else (middle, high)
        change = features(with_noise(high)) - clean
        found[path] = float(jnp.sum(jnp.square(change)))
    return found
