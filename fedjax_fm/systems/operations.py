"""How many operations a client's program makes, counted in the program itself.

One client of every exchange is traced with its number of steps, nothing is computed, and
the products of matrices and the convolutions of its jaxpr are added up, those inside a
loop as often as it runs. What is not a product (activations, norms, optimizers) is left
out, as it is where utilisation is quoted.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from fedjax_fm import checks, trees
from fedjax_fm.engine import Simulator
from fedjax_fm.engine.billing import unwrapped
from fedjax_fm.engine.data import n_processed, n_steps, shapes_of
from fedjax_fm.engine.parts import BoundExchange
from fedjax_fm.types import ClientData, Repeat, Tree


class Operations(NamedTuple):
    """What one client does in a round in which it takes part in all exchanges.

    Attributes:
      flop: of products, forward and backward.
      steps: local steps.
      rows: examples that its steps go through.
      is_exact: False: a loop whose length the data decide was counted once, or some
        exchanges are for some clients alone.
    """

    flop: float
    steps: int
    rows: int
    is_exact: bool


def flop_of_client(simulator: Simulator, n_examples: int) -> Operations:
    """Counts the operations of one client.

    A short batch counts by its rows: a machine of its own would not pad it.

    Args:
      simulator: after `init`.
      n_examples: that the client has, at least 1.

    Returns:
      FLOP and steps of one round.

    Raises:
      TypeError, ValueError: no number of examples.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return (batch["x"] @ w)[:, 0] ** 2, {}
      >>> method = ffm.fedavg(ffm.Task(loss), optax.sgd(0.1), epochs=1, batch_size=4)
      >>> clients = [{"x": np.ones((8, 3), np.float32)}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state = simulator.init(jnp.ones((3, 1)))
      >>> flop_of_client(simulator, 8).flop  # 2 products of 4 x 3 x 1, 2 steps
      96.0
    """
    checks.whole("n_examples", n_examples, least=1)
    flop, steps, rows, is_exact = 0.0, 0, 0, True
    passages = _passages(simulator)
    for bound, times in zip(simulator.engine.exchanges, passages, strict=True):
        batches = bound.exchange.batches
        n = np.int32(n_examples)
        own_steps = int(n_steps(jnp.int32(n), batches))
        own_rows = int(n_processed(jnp.int32(n), batches))
        found = _Count()
        found.add(_needed(_traced(simulator, bound, n, np.int32(own_steps))), 1.0)
        full = max(own_steps * batches.batch_size, 1)
        flop += times * found.flop * own_rows / full
        steps += times * own_steps
        rows = max(rows, own_rows)
        is_exact &= found.is_exact and bound.exchange.selects is None
    return Operations(flop=flop, steps=steps, rows=rows, is_exact=is_exact)


def flop_of(function: Any, *operands: Any) -> float:
    """FLOP of the products in a function, which is traced and not run.

    Args:
      function: of arrays.
      *operands: arrays or their shapes.

    Returns:
      FLOP; a loop whose length the data decide counts once.

    Example:
      >>> x = jax.ShapeDtypeStruct((5, 7), jnp.float32)
      >>> flop_of(lambda x: x @ x.T, x)  # 5 x 7 x 5
      350.0
    """
    found = _Count()
    found.add(_needed(jax.make_jaxpr(function)(*operands)), 1.0)
    return found.flop


def _passages(simulator: Simulator) -> list[int]:
    """How often each exchange happens in a round."""
    found = []
    for group in simulator.algorithm.exchanges:
        inner = group.exchanges if isinstance(group, Repeat) else (group,)
        found += [group.times if isinstance(group, Repeat) else 1] * len(inner)
    return found


def _traced(simulator: Simulator, bound: BoundExchange, n: Any, steps: Any) -> Any:
    """The jaxpr of one client of an exchange, its number of steps known.

    Counts are NumPy's, which tracing leaves as they are: loops over steps have a length.
    """
    exchange, shapes = bound.exchange, simulator.shapes
    examples = shapes_of(simulator.population).arrays
    size = exchange.batches.batch_size

    def batch(step: jax.Array) -> tuple[Tree, jax.Array]:
        rows = {
            name: jnp.zeros((size, *array.shape[1:]), array.dtype)
            for name, array in examples.items()
        }
        return rows, jnp.ones(size, bool)

    def client(backbone: Tree, server: Any, state: Any, key: jax.Array) -> Any:
        message = unwrapped(exchange.broadcast(server))
        zero = jnp.int32(0)
        own = message
        if exchange.address is not None:
            own = exchange.address(message, state, zero)
        work = exchange.client(backbone, message)
        data = ClientData(
            id=zero, round=zero, n_examples=n, n_steps=steps, batch=batch, repeat=zero
        )
        output = work(unwrapped(own), state, data, key)
        kept = output.state
        if callable(kept):
            kept = kept(output.upload)
        return output.upload, kept  # who trains alone uploads nothing

    backbone = trees.shapes(simulator.backbone)
    own_state, _ = shapes.rows
    trace = jax.make_jaxpr(client)
    return trace(backbone, shapes.server, own_state, jax.random.key(0))


def _needed(closed: Any) -> Any:
    """The jaxpr without what no result depends on, which compilers leave out, too."""
    jaxpr = closed.jaxpr
    kept, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return kept


class _Count:
    """FLOP so far, and whether all loops had a known length."""

    def __init__(self):
        self.flop, self.is_exact = 0.0, True

    def add(self, jaxpr: Any, times: float) -> None:
        """Adds the products of a jaxpr and of all inside of it, `times` over."""
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if name == "dot_general":
                self.flop += times * _of_product(equation)
            elif name == "conv_general_dilated":
                self.flop += times * _of_convolution(equation)
            elif name == "cond":
                self._add_longest(equation, times)
                continue
            elif name == "scan":
                self.add(
                    equation.params["jaxpr"].jaxpr, times * equation.params["length"]
                )
                continue
            self._note_loop(name, equation)
            for inner in jaxprs_in(equation.params):
                self.add(inner, times)

    def _note_loop(self, name: str, equation: Any) -> None:
        """A loop of unknown length is counted once, which matters if it has products."""
        if name != "while":
            return
        inner = _Count()
        inner.add(equation.params["body_jaxpr"].jaxpr, 1.0)
        self.is_exact &= inner.flop == 0

    def _add_longest(self, equation: Any, times: float) -> None:
        """The branch with the most products."""
        branches = []
        for branch in equation.params["branches"]:
            one = _Count()
            one.add(branch.jaxpr, times)
            branches.append(one)
        self.flop += max(one.flop for one in branches)
        self.is_exact &= all(one.is_exact for one in branches)


def _of_product(equation: Any) -> float:
    """FLOP of a dot_general: two for each entry of its result and each term of its sum."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    terms = math.prod(left[axis] for axis in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * terms


def _of_convolution(equation: Any) -> float:
    """FLOP of a convolution: two for each entry of its result and each entry of a kernel."""
    kernel = equation.invars[1].aval.shape
    out_axis = equation.params["dimension_numbers"].rhs_spec[0]
    entries = math.prod(kernel) // kernel[out_axis]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * entries


def jaxprs_in(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation.

    Args:
      params: of the equation.
    """
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one
