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
from fedjax_fm.finetune.tokens import Arrays
from fedjax_fm.types import Tree

F1 = "F1 of tokens"
INPUTS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "c_attn", "qkv_proj")
LEAST = 0.2  # F1 from which an attack counts as one
IN_SPAN = 1e-2  # residual of a token that is found
MOST = 4  # examples, of as many clients
SHARPNESS = 30.0


class Seen(NamedTuple):
    """An example, and what the server is sent of it.

    Attributes:
      tokens: i64[T], of the text.
      gradient: of the trainable tree.
    """

    tokens: np.ndarray
    gradient: Tree


class Read(NamedTuple):
    """What was read of an example.

    Attributes:
      found: tokens.
      truth: tokens that could have been found.
      n_tokens: that there are.
    """

    found: Any
    truth: np.ndarray
    n_tokens: int

    @property
    def f1(self) -> float:
        """Of the bags of tokens."""
        return token_f1(np.asarray(self.found).tolist(), self.truth.tolist())


def audited(subject: Subject, search_steps: int) -> list[Finding]:
    """Tries to read the first example of some clients from its gradient.

    Args:
      subject: the run.
      search_steps: of the search among embeddings; 0 leaves it out.

    Returns:
      Lines of three attacks.
    """
    rows = [one for one in subject.data.train if "input_ids" in one][:MOST]
    if not rows:
        why = "the inputs are no tokens"
        names = ("embeddings", "first layer", "search")
        return [skipped(f"inversion: {name}", why) for name in names]
    seen = _seen(subject, rows)
    return [
        _by_table(subject, seen),
        _by_span(subject, seen),
        _by_search(subject, seen[0], search_steps),
    ]


def _seen(subject: Subject, clients: list[Arrays]) -> list[Seen]:
    """Gradients of the first example of each client."""
    delta, backbone = subject.model.parts

    def loss(delta: Tree, row: Any) -> jax.Array:
        each, _ = subject.data.task.loss(delta, backbone, row, None)
        return each.sum()

    gradient, found = jax.jit(jax.grad(loss)), []
    for rows in clients:
        row = {name: column[:1] for name, column in rows.items()}
        real = row["attention_mask"][0] != 0
        tokens = np.asarray(row["input_ids"][0][real], np.int64)
        found.append(Seen(tokens, gradient(delta, row)))
    return found


def line(name: str, read: list[Read], note: str) -> Finding:
    """The line of an attack that has read some examples.

    Args:
      name: of the attack.
      read: of each example.
      note: in words.
    """
    f1 = float(np.mean([one.f1 for one in read]))
    chance = float(np.mean([len(one.truth) / one.n_tokens for one in read]))
    size = "one example" if len(read) == 1 else f"mean of {len(read)} examples"
    return Finding(
        name=f"inversion: {name}",
        measure=F1,
        figure=Interval(f1, f1, f1),
        chance=chance,
        verdict=LEAKS if f1 > max(2 * chance, LEAST) else NOTHING,
        note=f"{note}; {size}, each alone, one step, no noise",
    )


def _table(subject: Subject) -> np.ndarray:
    return np.asarray(token_table(subject.model.adapted.model(*subject.model.parts)))


def _by_table(subject: Subject, seen: list[Seen]) -> Finding:
    """Rows of the table that have moved."""
    shape, read = _table(subject).shape, []
    for one in seen:
        leaves = jax.tree.leaves(one.gradient)
        own = [np.asarray(leaf) for leaf in leaves if leaf.shape == shape]
        if not own:
            return skipped("inversion: embeddings", "the table of tokens is frozen")
        present, rows = np.unique(one.tokens), tokens_of_gradient(own[0])
        if len(rows) > 2 * len(present):
            # A tied head moves all rows; those of tokens that were read move most.
            norms = np.linalg.norm(own[0], axis=1)
            rows = np.argsort(-norms)[: len(present)]
        read.append(Read(rows, present, shape[0]))
    return line("embeddings", read, "rows of the table that moved, alone or most")


def _by_span(subject: Subject, seen: list[Seen]) -> Finding:
    """Tokens whose input of the first layer lies in the span of its gradients."""
    name, read = "inversion: first layer", []
    model = subject.model.adapted.model(*subject.model.parts)
    longest = max(len(one.tokens) for one in seen)
    try:
        inputs = np.asarray(first_inputs(model, longest))
    except TypeError as error:
        return skipped(name, str(error))
    for one in seen:
        columns = _first_columns(one.gradient, inputs.shape[-1])
        if columns is None:
            why = "nothing that reads the first layer's inputs is trained"
            return skipped(name, why)
        places = inputs[: len(one.tokens)]
        each = np.stack([span_residuals(columns, place) for place in places])
        rows = np.flatnonzero(each.min(axis=0) < IN_SPAN)
        if len(rows) == inputs.shape[1]:
            return skipped(name, "the span is everything, which says nothing")
        read.append(Read(rows, np.unique(one.tokens), inputs.shape[1]))
    return line("first layer", read, "tokens in the span of the gradients")


def _first_columns(gradient: Tree, width: int) -> np.ndarray | None:
    """f32[width, columns], gradients of what reads the first layer's inputs."""
    found = []
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        is_input = any(f"'{part}'" in name for part in INPUTS)
        if is_input and leaf.ndim == 3 and leaf.shape[1] == width:
            found.append(np.asarray(leaf[0], np.float64))
    if not any(np.any(one) for one in found):
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
    return line("search", [Read(found.tokens, seen.tokens, len(table))], note)
