"""Inversion of one upload: one example, one step of SGD, no clipping and no noise.

That is the attacker's best case. What it finds of a run with local steps, larger
batches, channels or noise is less.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.audit.findings import LEAKS, NOTHING, Finding, skipped
from fedjax_fm.audit.subject import Subject
from fedjax_fm.evaluation.inversion import token_f1, tokens_of_gradient
from fedjax_fm.evaluation.leaks import (
    Interval,
    TextSearch,
    first_inputs,
    search_text,
    soft_loss,
    span_residuals,
    token_table,
)
from fedjax_fm.types import Tree

F1 = "F1 of tokens"
INPUTS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "c_attn", "qkv_proj")
IN_SPAN = 1e-2  # residual of a token that is found
SHARPNESS = 30.0


class Seen(NamedTuple):
    """An example, and what the server is sent of it.

    Attributes:
      tokens: i64[T], of the text.
      gradient: of the trainable tree.
    """

    tokens: np.ndarray
    gradient: Tree


def audited(subject: Subject, search_steps: int) -> list[Finding]:
    """Tries to read one example of the first client from its gradient.

    Args:
      subject: the run.
      search_steps: of the search among embeddings; 0 leaves it out.

    Returns:
      Lines of three attacks.
    """
    names = ("embeddings", "first layer", "search")
    rows = subject.data.train[0]
    if "input_ids" not in rows:
        why = "the inputs are no tokens"
        return [skipped(f"inversion: {name}", why) for name in names]
    seen = _seen(subject)
    return [
        _by_table(subject, seen),
        _by_span(subject, seen),
        _by_search(subject, seen, search_steps),
    ]


def _seen(subject: Subject) -> Seen:
    """The gradient of the first example of the first client."""
    delta, backbone = subject.model.parts
    row = {name: column[:1] for name, column in subject.data.train[0].items()}

    def loss(delta: Tree) -> jax.Array:
        each, _ = subject.data.task.loss(delta, backbone, row, None)
        return each.sum()

    real = row["attention_mask"][0] != 0
    tokens = np.asarray(row["input_ids"][0][real], np.int64)
    return Seen(tokens, jax.jit(jax.grad(loss))(delta))


def line(name: str, found: Any, truth: np.ndarray, note: str, chance: float) -> Finding:
    """The line of an attack that has read some tokens.

    Args:
      name: of the attack.
      found: tokens.
      truth: tokens of the text.
      note: in words.
      chance: F1 of as many tokens that are drawn at random.
    """
    f1 = token_f1(np.asarray(found).tolist(), truth.tolist())
    return Finding(
        name=f"inversion: {name}",
        measure=F1,
        figure=Interval(f1, f1, f1),
        chance=chance,
        verdict=LEAKS if f1 > max(2 * chance, 0.2) else NOTHING,
        note=f"{note}; one example, one step, no noise",
    )


def _table(subject: Subject) -> np.ndarray:
    return np.asarray(token_table(subject.model.adapted.model(*subject.model.parts)))


def _of_table(shape: tuple[int, ...], gradient: Tree) -> np.ndarray | None:
    """The gradient of the table of tokens, if that is trained."""
    for leaf in jax.tree.leaves(gradient):
        if leaf.shape == shape:
            return np.asarray(leaf)
    return None


def _by_table(subject: Subject, seen: Seen) -> Finding:
    """Rows of the table that have moved."""
    found = _of_table(_table(subject).shape, seen.gradient)
    if found is None:
        return skipped("inversion: embeddings", "the table of tokens is frozen")
    present, n_tokens = set(seen.tokens.tolist()), len(found)
    # A tied head moves all rows; those of tokens that were read move most.
    norms = np.linalg.norm(found, axis=1)
    rows = tokens_of_gradient(found)
    if len(rows) > 2 * len(present):
        rows = np.argsort(-norms)[: len(present)]
    note = f"{len(rows)} rows of {n_tokens} that moved, most or alone"
    chance = len(present) / n_tokens
    return line("embeddings", rows, np.array(sorted(present)), note, chance)


def _by_span(subject: Subject, seen: Seen) -> Finding:
    """Tokens whose input of the first layer lies in the span of its gradients."""
    name = "first layer"
    model = subject.model.adapted.model(*subject.model.parts)
    try:
        inputs = np.asarray(first_inputs(model, len(seen.tokens)))
    except TypeError as error:
        return skipped(f"inversion: {name}", str(error))
    columns = _first_columns(seen.gradient, inputs.shape[-1])
    if columns is None:
        why = "nothing that reads the first layer's inputs is trained"
        return skipped(f"inversion: {name}", why)
    residuals = np.stack([span_residuals(columns, one) for one in inputs]).min(axis=0)
    rows = np.flatnonzero(residuals < IN_SPAN)
    present = np.unique(seen.tokens)
    note = f"{len(rows)} tokens of {len(residuals)} in the span"
    chance = len(present) / len(residuals)
    if len(rows) == len(residuals):
        return skipped(f"inversion: {name}", f"{note}: it is everything")
    return line(name, rows, present, note, chance)


def _first_columns(gradient: Tree, width: int) -> np.ndarray | None:
    """f32[width, columns], gradients of what reads the first layer's inputs."""
    found = []
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        is_input = any(f"'{part}'" in name for part in INPUTS)
        if is_input and leaf.ndim == 3 and leaf.shape[1] == width:
            found.append(np.asarray(leaf[0], np.float64))
    if not found or not any(np.any(one) for one in found):
        return None
    # Each on its own scale: LoRA's A of one layer may be far smaller than another's.
    scaled = [one / max(np.linalg.norm(one), 1e-30) for one in found]
    return np.concatenate(scaled, axis=1)


def _by_search(subject: Subject, seen: Seen, steps: int) -> Finding:
    """A search among embeddings, of an attacker who knows the length alone."""
    name = "inversion: search"
    if steps == 0:
        why = "give --search-steps 300 for it; large models take minutes"
        return skipped(name, why)
    if not subject.is_text or subject.model.subject.model_type == "t5":
        why = "it is written for decoders, whose labels are their texts"
        return skipped(name, why)
    adapted, (delta, backbone) = subject.model.adapted, subject.model.parts
    table = _table(subject)

    def without_table(gradient: Tree) -> list[Any]:
        leaves = jax.tree.leaves(gradient)
        return [leaf for leaf in leaves if leaf.shape != table.shape]

    def gradient_of(embedded: jax.Array) -> list[Any]:
        def loss(delta: Tree) -> jax.Array:
            return soft_loss(adapted, delta, backbone, embedded, SHARPNESS)

        return without_table(jax.grad(loss)(delta))

    observed = without_table(seen.gradient)
    if not observed:
        return skipped(name, "nothing beside the table of tokens is trained")
    how = TextSearch(steps=steps, starts=1)
    given = (gradient_of, observed, jnp.asarray(table), len(seen.tokens))
    found = search_text(*given, how=how, seed=subject.seed)
    in_place = float((found.tokens == seen.tokens).mean())
    note = f"{100 * in_place:.0f} % in their places; distance {found.distance:.2g}"
    chance = len(seen.tokens) / len(table)
    return line("search", found.tokens, seen.tokens, note, chance)
