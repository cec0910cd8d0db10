"""FedOBD's channel: the blocks that changed most, each tensor by NNADQ."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks, trees
from fedjax_fm.channels.arguments import checked_real
from fedjax_fm.channels.buffers import cut, pack, static
from fedjax_fm.channels.payload import Payload, payload_bits
from fedjax_fm.channels.vectors import Form, flatten, form_of, opened, unflatten
from fedjax_fm.kernels import (
    from_planes,
    nnadq_decode,
    nnadq_encode,
    nnadq_width,
    to_planes,
)
from fedjax_fm.kernels.nnadq import MAX_BITS
from fedjax_fm.types import Channel, Rows, Tree

SCORES = ("norm", "mean")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tensors:
    """The tensors of one leaf that travel: one, or one a row of a stack of layers.

    Attributes:
      planes: u8[tensors * (MAX_BITS + 1), ceil(n / 8)], bit planes in a row, of which
        those of the kept tensors travel, as many as their levels need.
      norm: f32[tensors], half the range of each; the kept ones travel, as below.
      offset: f32[tensors], its middle.
      level: u32[tensors], levels on each side of the middle.
      n: entries of a tensor.
    """

    planes: Rows
    norm: Rows
    offset: Rows
    level: Rows
    n: int = static()


class Blocks(NamedTuple):
    """Which tensor belongs to which block; known from the shapes alone.

    Attributes:
      of_leaf: per leaf, i32[tensors]: the block of each of its tensors.
      sizes: i64[blocks], entries of each block.
      names: of the blocks.
    """

    of_leaf: tuple[np.ndarray, ...]
    sizes: np.ndarray
    names: tuple[str, ...]


class _Setting(NamedTuple):
    """What both ends have in common."""

    dropped: float
    weight: float
    blocks: Callable[[str], str] | None
    stacked: str | None
    score: str


def blocks_of(
    tree: Tree,
    blocks: Callable[[str], str] | None = None,
    stacked: str | None = None,
) -> Blocks:
    """The semantic blocks of a tree.

    A leaf belongs to the block that its path names. A leaf of a stack, whose first axis
    counts layers, is one tensor a layer; layer r of all its leaves is one block.

    Args:
      tree: arrays or their shapes.
      blocks: `dotted path -> name of the block`; None: the path without its last word,
        the module.
      stacked: regular expression, searched in the dotted path, of leaves in stacks; the
        path up to the end of the match names the stack.

    Returns:
      Blocks in the order in which they are met.

    Example:
      >>> import jax.numpy as jnp
      >>> layers = {"w": jnp.zeros((2, 3, 3)), "b": jnp.zeros((2, 3))}
      >>> found = blocks_of({"head": {"w": jnp.zeros(4)}, "layers": layers}, stacked="layers")
      >>> found.names, found.sizes.tolist()
      (('head', 'layers[0]', 'layers[1]'), [4, 12, 12])
    """
    numbers: dict[str, int] = {}
    sizes: list[int] = []
    of_leaf = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        names = _names(trees.path_of(path), leaf, blocks, stacked)
        for name in names:
            if name not in numbers:
                numbers[name] = len(sizes)
                sizes.append(0)
            sizes[numbers[name]] += leaf.size // len(names)
        of_leaf.append(np.array([numbers[name] for name in names], np.int32))
    return Blocks(tuple(of_leaf), np.array(sizes, np.int64), tuple(numbers))


def _names(
    path: str, leaf: Any, blocks: Callable[[str], str] | None, stacked: str | None
) -> list[str]:
    """The blocks of a leaf's tensors."""
    match = None if stacked is None else re.search(stacked, path)
    if match is None:
        return [path.rpartition(".")[0] if blocks is None else blocks(path)]
    if leaf.ndim == 0:
        raise ValueError(
            f"block_dropout: {path!r} matches stacked={stacked!r}, but is a scalar; "
            "a leaf of a stack has a first axis that counts layers"
        )
    return [f"{path[: match.end()]}[{row}]" for row in range(leaf.shape[0])]


def block_dropout(
    dropped: float = 0.3,
    weight: float = 1e-3,
    *,
    blocks: Callable[[str], str] | None = None,
    stacked: str | None = None,
    score: str = "norm",
) -> Channel:
    """Sends the blocks that changed most, up to a share of the message, by NNADQ.

    Blocks are visited by falling score ||x_b||_2 / |b|. One is kept where the entries
    kept so far and its own are at most (1 - dropped) n together; else it is passed over
    and later ones may still fit. Kept tensors travel as with `nnadq`, dropped ones
    arrive as zeros.

    Deterministic, hence biased. Bits, which depend on the data: 1 a block (whole bytes;
    none where nothing can be dropped), and for each tensor that is kept 1 + ceil(log2(s
    + 1)) an entry, each bit plane in whole bytes, and 96.

    Args:
      dropped: lambda, the least share of the entries that is not sent, 0 <= lambda < 1.
      weight: of NNADQ: price of a bit against error, above 0.
      blocks: `dotted path -> name of the block`; None: the path without its last word.
      stacked: regular expression of leaves whose first axis counts layers: each layer
        is a block and each of its rows a tensor. See `blocks_of`.
      score: "norm" as above, the authors' code, or "mean", the mean magnitude.

    Returns:
      A channel without state.

    Raises:
      ValueError: an argument is out of its bounds; at the first message, no block is
        small enough to be sent.
      TypeError: at the first message, `Rows` among the leaves.

    References:
      Chen et al., FedOBD, 2023, arXiv 2208.05174, algorithm 1 and section 3.3; the
      authors' code, github.com/cyyever/distributed_learning_simulator.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_fm import channels
      >>> channel = channels.block_dropout(0.5, weight=1.0)
      >>> tree = {"a": {"w": jnp.ones(4)}, "b": {"w": jnp.array([5.0, 5.0, 0.0, 5.0])}}
      >>> payload, _ = channel.encode((), tree, jax.random.key(0))
      >>> channel.decode(payload)["a"]["w"].tolist()
      [0.0, 0.0, 0.0, 0.0]
      >>> int(channel.bits(payload))  # a byte of marks, 5 planes of a byte, three scalars
      144
    """
    checks.choice("score", score, SCORES)
    if blocks is not None and not callable(blocks):
        raise TypeError(f"expected blocks as a function of the path, got {blocks!r}")
    setting = _Setting(
        dropped=checked_real("dropped", dropped, least=0, below=1),
        weight=checked_real("weight", weight, above=0),
        blocks=blocks,
        stacked=_pattern(stacked),
        score=score,
    )

    def encode(state, tree, key):
        form = form_of(tree, "block_dropout", rows=False)
        if any(leaf.kind != "float" for leaf in form.leaves):
            raise TypeError("block_dropout carries floating leaves only, got bool ones")
        return _encoded(setting, tree, form), state

    def decode(payload):
        form, known = opened(payload, "block_dropout", setting)
        return _decoded(setting, payload, form, known)

    return Channel(
        init=lambda shapes: (), encode=encode, decode=decode, bits=payload_bits
    )


def _pattern(stacked: str | None) -> str | None:
    """`stacked`, if it is None or a regular expression."""
    if stacked is None:
        return None
    checks.text("stacked", stacked)
    try:
        re.compile(stacked)
    except re.error as error:
        raise ValueError(
            f"expected a regular expression, got stacked={stacked!r}: {error}"
        ) from None
    return stacked


class _Known(NamedTuple):
    """The blocks in a form that both ends, and the compiler, can compare."""

    of_leaf: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]


def _encoded(setting: _Setting, tree: Tree, form: Form) -> Payload:
    """The payload of a message."""
    found = blocks_of(tree, setting.blocks, setting.stacked)
    known = _Known(
        tuple(tuple(map(int, blocks)) for blocks in found.of_leaf),
        tuple(map(int, found.sizes)),
    )
    leaves = _tensors(flatten(tree, form).x, form, known)
    kept = _kept(setting, leaves, known)
    bad = ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))
    side = []
    for x, blocks, leaf in zip(leaves, known.of_leaf, form.leaves, strict=True):
        n_bits = 8 * jnp.dtype(leaf.dtype).itemsize
        travels = kept[np.array(blocks)]
        side.append(_sent(x, travels, setting.weight, n_bits=n_bits, bad=bad))
    marks = () if setting.dropped == 0 else (pack(kept, 2),)
    form_and_known = (form, known)
    return Payload(
        values=(),
        side=(marks, tuple(side)),
        form=("block_dropout", setting, form_and_known),
    )


def _tensors(x: jax.Array, form: Form, known: _Known) -> list[jax.Array]:
    """Per leaf, f32[tensors, entries]."""
    ends = np.cumsum([leaf.size for leaf in form.leaves])[:-1]
    parts = jnp.split(x, ends)
    pairs = zip(parts, known.of_leaf, strict=True)
    return [part.reshape(len(blocks), -1) for part, blocks in pairs]


def _kept(setting: _Setting, leaves: list[jax.Array], known: _Known) -> jax.Array:
    """bool[blocks]: which are sent."""
    sizes = np.array(known.sizes)
    share = 1 - Fraction(str(setting.dropped))
    most = int(share * int(sizes.sum()))
    if sizes.min() > most:
        raise ValueError(
            f"block_dropout: dropped={setting.dropped} leaves room for {most} of "
            f"{sizes.sum()} entries, and the smallest of {len(sizes)} blocks has "
            f"{sizes.min()}: nothing would ever be sent; make smaller blocks, by "
            "`blocks` or `stacked`, or drop less"
        )
    falling = jnp.argsort(-_scores(setting, leaves, known), stable=True)

    def visit(total, block):
        size = jnp.asarray(sizes, jnp.uint32)[block]
        fits = total + size <= most
        return jnp.where(fits, total + size, total), fits

    _, fits = jax.lax.scan(visit, jnp.uint32(0), falling)
    return jnp.zeros(len(sizes), bool).at[falling].set(fits)


def _scores(setting: _Setting, leaves: list[jax.Array], known: _Known) -> jax.Array:
    """f32[blocks]; infinite where a block is not finite, so that this is seen."""
    total = jnp.zeros(len(known.sizes), jnp.float32)
    is_norm = setting.score == "norm"
    for x, blocks in zip(leaves, known.of_leaf, strict=True):
        parts = jnp.sum(jnp.square(x) if is_norm else jnp.abs(x), axis=1)
        total = total.at[np.array(blocks)].add(parts)
    total = jnp.sqrt(total) if is_norm else total
    scores = total / np.array(known.sizes, np.float32)
    return jnp.nan_to_num(scores, nan=jnp.inf, posinf=jnp.inf)


def _sent(
    x: jax.Array, travels: jax.Array, weight: float, *, n_bits: int, bad: jax.Array
) -> Tensors:
    """The tensors of a leaf, those that travel in front; NaN if the message has one."""

    def code(row):
        codes, norm, offset, level = nnadq_encode(row, weight, n_bits)
        return to_planes(codes, MAX_BITS + 1), norm, offset, level

    planes, norm, offset, level = jax.vmap(code)(x)
    flags = _planes_sent(travels, level)
    n_tensors = jnp.sum(travels, dtype=jnp.int32)
    return Tensors(
        planes=_in_front(planes.reshape(-1, planes.shape[-1]), flags),
        norm=cut(_ordered(jnp.where(bad, jnp.nan, norm), travels), n_tensors),
        offset=cut(_ordered(offset, travels), n_tensors),
        level=cut(_ordered(level, travels), n_tensors),
        n=x.shape[1],
    )


def _planes_sent(travels: jax.Array, level: jax.Array) -> jax.Array:
    """bool[tensors * (MAX_BITS + 1)]: which planes travel."""
    planes = jnp.arange(MAX_BITS + 1, dtype=jnp.uint32)
    needed = planes[None] < nnadq_width(level)[:, None]
    return (travels[:, None] & needed).reshape(-1)


def _ordered(rows: jax.Array, flags: jax.Array) -> jax.Array:
    """The rows with a flag first, in their order."""
    return rows[jnp.argsort(~flags, stable=True)]


def _in_front(rows: jax.Array, flags: jax.Array) -> Any:
    count = jnp.sum(flags, dtype=jnp.int32)
    return cut(_ordered(rows, flags), count)


def _back(sent: Rows, flags: jax.Array, otherwise: Any) -> jax.Array:
    """The inverse of `_in_front`, other rows filled."""
    places = jnp.maximum(jnp.cumsum(flags) - 1, 0)
    rows = sent.values[places]
    shape = (-1, *[1] * (rows.ndim - 1))
    return jnp.where(flags.reshape(shape), rows, otherwise)


def _decoded(setting: _Setting, payload: Payload, form: Form, known: _Known) -> Tree:
    """The message; zeros where a block was dropped."""
    marks, side = payload.side
    kept = jnp.ones(len(known.sizes), bool)
    if marks:
        kept = marks[0].unpack().astype(bool)
    parts = []
    for sent, blocks in zip(side, known.of_leaf, strict=True):
        parts.append(_received(sent, kept[np.array(blocks)]).reshape(-1))
    return unflatten(jnp.concatenate(parts), form, nearest=True)


def _received(sent: Tensors, travels: jax.Array) -> jax.Array:
    """f32[tensors, n]."""
    level = _back(sent.level, travels, jnp.uint32(1))
    norm, offset = _back(sent.norm, travels, 0.0), _back(sent.offset, travels, 0.0)
    planes = _back(sent.planes, _planes_sent(travels, level), jnp.uint8(0))
    planes = planes.reshape(level.shape[0], MAX_BITS + 1, -1)

    def value(planes, norm, offset, level):
        return nnadq_decode(from_planes(planes, sent.n), norm, offset, level)

    return jax.vmap(value)(planes, norm, offset, level)
