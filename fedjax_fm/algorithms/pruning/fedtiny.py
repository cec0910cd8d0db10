"""FedTiny, progressive pruning: Distributed Pruning Towards Tiny Neural Networks.

Huang, Zhang, Sun, Fang, Yuan, Wu, 2022, arXiv 2212.01977. The density of
every layer stays; which entries are kept changes:

    client:  local steps on the kept entries;  sends those of w - w_k
             every so many rounds, of the layers of one block, the last block first:
             the a_l gradients of pruned entries that are largest
    server:  w <- w - server_optimizer(sum_k p_k (w - w_k)), on the kept entries
             the a_l pruned entries of the largest mean gradient come back, at 0;
             the a_l kept entries of the smallest |w| go
    a_l = share (1 + cos(pi t / stop)) n_l,  n_l entries kept, t rounds
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.averaging import averaging
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.pruning import fedtiny_round
from fedjax_fm.algorithms.pruning.fedtiny_plan import checked_masks, plans_of
from fedjax_fm.algorithms.pruning.fedtiny_round import FedTiny
from fedjax_fm.algorithms.pruning.parts import NO_MASKS, kept_exchange
from fedjax_fm.algorithms.reduce import total
from fedjax_fm.sparsity.layers import Flat
from fedjax_fm.sparsity.schedules import cosine_share
from fedjax_fm.types import Algorithm, Task


def fedtiny(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    masks: Flat,
    every: int = 10,
    stop: int = 100,
    share: float = 0.15,
    blocks: Sequence[str] | None = None,
    weighted: bool = True,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Sparse averaging whose masks move, block by block, at a constant density.

    The second stage of FedTiny; `fedtiny_selection` is the first and finds `masks`. The
    gradient is that of one batch at the trained weights, and only its largest entries
    are sent. Masked, not faster: pruned entries are zeros in arrays of the old shape.

    Sends: the kept entries of the pruned leaves and all others, both ways; down the
    mask, a bit an entry, to a client whose mask is not the present one, the first time
    too; up, in every `every`-th round, a_l gradients of 32 bits and their places of
    ceil(log2 n) bits, for the leaves of one block; an uplink that rounds is refused, as
    it would round places.

    Metrics: `density` and `density PATH`, which stay; `moved`, how many entries the
    round exchanged for others.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round, or a function of the round.
      server_optimizer: applied to the mean of (start - end); None means
        `optax.sgd(1.0)`.
      masks: bool by the dotted paths of the pruned leaves, concrete; each leaf is a
        layer.
      every: rounds between moves.
      stop: round from which on the masks stay, at least `every`.
      share: half of the share of a layer's kept entries that the first move exchanges,
        0 < share <= 0.5.
      blocks: regular expressions, in the order of the forward pass, each the masks'
        leaves of one block; None: every leaf by itself, in the order of `masks`.
      weighted: whether clients count by their examples; False: all the same.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `PrunedState`; a client's state is i32[], the
      version of the masks that it holds.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a leaf
        that no block or several of them name; later, masks that fit no leaf.

    References:
      Huang et al. 2022, arXiv 2212.01977, progressive pruning.

    Example:
      >>> import fedjax_fm as ffm
      >>> def loss(w, backbone, batch, key):
      ...     return jnp.sum((w - batch["x"]) ** 2, axis=(-2, -1)) / 2, {}
      >>> masks = {"": jnp.array([[True, True, False, False]])}
      >>> how = {"masks": masks, "every": 1, "stop": 4, "share": 0.5}
      >>> how |= {"local_steps": 1, "batch_size": 1}
      >>> method = fedtiny(Task(loss), optax.sgd(1.0), **how)
      >>> x = jnp.array([[[4.0, 1.0, 3.0, 2.0]]])
      >>> population = ffm.Population.from_clients([{"x": x}])
      >>> simulator = ffm.Simulator(method, population, cohort_size=1)
      >>> state, metrics = simulator.run(simulator.init(jnp.zeros((1, 4))), 3)
      >>> state.delta.tolist(), metrics["moved"].tolist()
      ([[4.0, 0.0, 3.0, 0.0]], [2.0, 1.0, 0.0])
    """
    average = averaging(
        task,
        client_optimizer,
        server_optimizer,
        weighted=weighted,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.whole("every", every, least=1)
    checks.whole("stop", stop, least=every)
    checks.real("share", share, above=0, most=0.5)
    known = checked_masks(masks)
    method = FedTiny(
        average=average,
        masks=known,
        plans=plans_of(known, blocks, share),
        schedule=cosine_share(share, stop),
        every=every,
        stop=stop,
        n_blocks=len(known) if blocks is None else len(blocks),
    )
    exchange = kept_exchange(
        average,
        client=partial(fedtiny_round.client, method),
        server=partial(fedtiny_round.server, method),
        reduce=total(partial(fedtiny_round.lift, method)),
    )
    return Algorithm(
        init=partial(fedtiny_round.first_round, method),
        exchanges=(exchange,),
        client_init=lambda delta, key: jnp.int32(NO_MASKS),
    )
