"""The gradients of a swarm, computed along its log, by the project's own blocks.

A stage is a pure function; a peer adds up the gradients of the microbatches that it was
sent, and a step ends with the sum over a stage's peers. That sum is the gradient of the
model in one piece, whatever the routes were.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.models.gpt2 import GPT2LMHeadModel
from fedjax_fm.models.stacked import run_stacked
from fedjax_fm.systems.swarm_parts import Done
from fedjax_fm.types import Tree


class Stage(NamedTuple):
    """A part of a model.

    Attributes:
      parameters: of the stage.
      apply: `(parameters, x, batch) -> y`: of the first stage x is None, of the last one
        y is f32[], the sum of the losses.
    """

    parameters: Tree
    apply: Callable[[Tree, Any, Any], Any]


def stages_of(model: GPT2LMHeadModel, n_stages: int) -> list[Stage]:
    """A GPT-2 cut into runs of its layers; the loss is the next tokens' sum of -log p.

    The tied embedding lies in the first stage and in the last, each with its own copy,
    whose gradients belong together (`whole_gradient`).

    Args:
      model: with at least `n_stages` layers.
      n_stages: P, at least 2.

    Returns:
      The stages; a microbatch is {"input_ids": i32[B, T]}.

    Raises:
      ValueError: more stages than layers, or a head of its own.
    """
    decoder = model.transformer
    if not decoder.config.tie_word_embeddings:
        raise ValueError(
            "expected a GPT-2 whose head is its embedding, got one of its own"
        )
    n_layers = decoder.config.n_layer
    checks.whole("n_stages", n_stages, least=2, most=n_layers)
    graphdef, layers = nnx.split(decoder.h)
    cuts = [n_layers * s // n_stages for s in range(n_stages + 1)]

    def run(part: Tree, hidden: jax.Array) -> jax.Array:
        length = hidden.shape[1]
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        return run_stacked(nnx.merge(graphdef, part), hidden, mask)

    def first(own: Tree, _: Any, batch: Any) -> jax.Array:
        ids = batch["input_ids"]
        hidden = own["wte"][ids] + own["wpe"][: ids.shape[1]]
        return run(own["h"], hidden)

    def middle(own: Tree, hidden: jax.Array, batch: Any) -> jax.Array:
        return run(own["h"], hidden)

    norm = nnx.split(decoder.ln_f)

    def last(own: Tree, hidden: jax.Array, batch: Any) -> jax.Array:
        hidden = nnx.merge(norm[0], own["ln_f"])(run(own["h"], hidden))
        logits = hidden[:, :-1] @ own["wte"].T
        scores = jax.nn.log_softmax(logits.astype(jnp.float32))
        following = batch["input_ids"][:, 1:, None]
        return -jnp.sum(jnp.take_along_axis(scores, following, axis=-1))

    table = decoder.wte.embedding[...]
    found = []
    for s in range(n_stages):
        part = jax.tree.map(lambda x, s=s: x[cuts[s] : cuts[s + 1]], layers)
        own: dict[str, Any] = {"h": part}
        if s == 0:
            own |= {"wte": table, "wpe": decoder.wpe.embedding[...]}
        if s == n_stages - 1:
            own |= {"wte": table, "ln_f": norm[1]}
        kind = first if s == 0 else last if s == n_stages - 1 else middle
        found.append(Stage(own, kind))
    return found


def swarm_gradients(
    stages: Sequence[Stage], batches: Sequence[Any], done: Iterable[Done]
) -> list[dict[int, Tree]]:
    """The gradients that each peer has added up in one step.

    Args:
      stages: of the model.
      batches: of the step, by the number of their microbatch minus that of the first.
      done: the log of the step; work that does not count is computed and thrown away, as
        its peer has.

    Returns:
      Of each stage, {peer: its sum}.

    Raises:
      ValueError: a microbatch was counted twice at a stage, or not at all.
    """
    log = list(done)
    first = min(one.microbatch for one in log)
    _check_once(log, len(stages), range(first, first + len(batches)))
    sums: list[dict[int, Tree]] = [{} for _ in stages]
    inputs: dict[tuple[int, int], Any] = {}
    slopes: dict[tuple[int, int], Any] = {}
    apply = [jax.jit(stage.apply) for stage in stages]
    back = [jax.jit(_pullback(stage.apply)) for stage in stages]
    for one in log:
        k, s = one.microbatch, one.stage
        batch, own = batches[k - first], stages[s].parameters
        x = inputs.get((k, s))
        if not one.backward:
            inputs[k, s + 1] = apply[s](own, x, batch)
            continue
        slope = slopes.get((k, s), jnp.float32(1))
        gradient, slopes[k, s - 1] = back[s](own, x, batch, slope)
        if one.counts:
            held = sums[s].get(one.peer)
            added = gradient if held is None else jax.tree.map(jnp.add, held, gradient)
            sums[s][one.peer] = added
    return sums


def _pullback(apply: Callable) -> Callable:
    """`(parameters, x, batch, slope of y) -> (gradient, slope of x)`."""

    def back(parameters, x, batch, slope):
        if x is None:
            _, pull = jax.vjp(lambda own: apply(own, None, batch), parameters)
            return pull(slope)[0], None
        _, pull = jax.vjp(lambda own, x: apply(own, x, batch), parameters, x)
        return pull(slope)

    return back


def _check_once(log: Sequence[Done], n_stages: int, microbatches: range) -> None:
    """Refuses a log in which a gradient counts twice, or never."""
    counted = [(d.microbatch, d.stage) for d in log if d.backward and d.counts]
    expected = {(k, s) for k in microbatches for s in range(n_stages)}
    if len(counted) != len(set(counted)):
        raise ValueError("a microbatch counts twice at a stage of this log")
    if set(counted) != expected:
        missing = sorted(expected ^ set(counted))
        raise ValueError(f"(microbatch, stage) {missing[0]} is not whole in this log")


def reduced(sums: Sequence[dict[int, Tree]]) -> list[Tree]:
    """The sum over the peers of each stage.

    Args:
      sums: from `swarm_gradients`.

    Returns:
      The gradient of each stage.
    """
    found = []
    for of_peers in sums:
        total, *rest = of_peers.values()
        for other in rest:
            total = jax.tree.map(jnp.add, total, other)
        found.append(total)
    return found


def whole_gradient(gradients: Sequence[Tree]) -> Tree:
    """The gradients of all stages in the form of one stage's: layers in a row.

    Args:
      gradients: of each stage, from `reduced` or of a single stage.

    Returns:
      {"h", "wte", "wpe", "ln_f"}, both copies of the embedding added up.
    """
    layers = [one["h"] for one in gradients]
    return {
        "h": jax.tree.map(lambda *parts: jnp.concatenate(parts), *layers),
        "wte": gradients[0]["wte"] + gradients[-1]["wte"],
        "wpe": gradients[0]["wpe"],
        "ln_f": gradients[-1]["ln_f"],
    }
