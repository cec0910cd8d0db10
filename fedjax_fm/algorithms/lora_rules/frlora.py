"""FRLoRA: averaged factors are merged into the frozen layers, clients start again.

Yan, Feng, Zuo, Zhu, Goh, Liu, 2025, "Federated Residual Low-Rank Adaption of Large
Language Models" (ICLR). With A0 and B0 from the first singular values of W, which `principal_start`
takes out of it:

    client:  (A_k, B_k) <- local steps from (A0, B0), beside W
    server:  A = sum_k p_k A_k,  B = sum_k p_k B_k,   W <- W + s (B A - B0 A0)

What is learnt over T rounds has a rank of up to 2 r T, that of LoRA r.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_fm import checks, linalg, trees
from fedjax_fm.algorithms.local import ClientOptimizer
from fedjax_fm.algorithms.lora_rules.factors import (
    Factors,
    Pair,
    child,
    join,
    product,
    split,
)
from fedjax_fm.algorithms.lora_rules.flexlora import signs_of
from fedjax_fm.algorithms.lora_rules.residual import (
    ResidualState,
    check_arguments,
    is_below_dense,
    residual_rule,
)
from fedjax_fm.algorithms.lora_rules.training import factor_training
from fedjax_fm.types import Algorithm, Batches, Task, Tree

ROUNDING = 1e-6  # of the largest singular value; smaller ones count as zero


def frlora(
    task: Task,
    client_optimizer: ClientOptimizer,
    *,
    scaling: float,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """Averages the factors, merges what they gained, and starts them where they began.

    Start with `simulator.init(delta)` of the delta and beside the backbone that
    `principal_start` makes. The factors are averaged one by one, as in `fedit`, so a
    round is not exact. The other trained leaves (a classifier) are averaged and not
    reset.

    Sends up r (d_in + d_out) numbers a layer, down the same of the last round's means,
    or d_in d_out where that is less; the start is known to all clients and not billed.
    See `residual.py` for clients that missed a round.

    Args:
      task: the loss.
      client_optimizer: starts afresh each round; a function of the round makes one for
        each round.
      scaling: s = alpha / r of the LoRA layers; the algorithm sees trees, which do not
        hold it.
      epochs: full passes over a client's data in a round; give this or `local_steps`.
      local_steps: batches of a round.
      batch_size: examples a step.

    Returns:
      An algorithm whose server state is `ResidualState`; the factors of its delta are
      always A0 and B0, and `model` adds what was learnt to the kernels. The client
      state is i32[], the last round in which the client took part, -1 before its first.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        the delta has no pairs of `lora_a` and `lora_b`.

    References:
      Yan et al. 2025, FRLoRA; github.com/IAMJackYan/FRLoRA.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_fm as ffm
      >>> def loss(delta, backbone, batch, key):
      ...     update = delta["layer"]["lora_a"] @ delta["layer"]["lora_b"]
      ...     kernel = backbone["layer"]["base"]["kernel"] + update
      ...     return jnp.sum((batch["x"] @ kernel - 1) ** 2, axis=-1), {}
      >>> method = frlora(
      ...     Task(loss), optax.sgd(0.1), scaling=1.0, local_steps=1, batch_size=1
      ... )
      >>> backbone = {"layer": {"base": {"kernel": 2 * jnp.eye(3)[:, :2]}}}
      >>> pair = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> delta, backbone = principal_start({"layer": pair}, backbone, scaling=1.0)
      >>> clients = [{"x": jnp.eye(3)[:1]}, {"x": jnp.eye(3)[1:2]}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, backbone=backbone, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(delta), 2)
      >>> bool(jnp.all(state.delta["layer"]["lora_b"] == delta["layer"]["lora_b"]))
      True
    """
    check_arguments(scaling, None)
    batches = Batches(batch_size, epochs, local_steps)
    training = factor_training(task, client_optimizer, batches, None)

    def height(pair, n_clients):
        rank = pair.a.shape[0]
        return rank if is_below_dense(pair, rank) else None

    def combine(cohort, old, key):
        mean = trees.select(cohort.arrived, cohort.mean(cohort.factors), old)
        added = {}
        for layer, (a, b) in mean.pairs.items():
            is_real = jnp.ones(a.shape[0], bool)
            added[layer] = Pair(scaling * a, b), is_real
        return dataclasses.replace(old, rest=mean.rest), added

    algorithm = residual_rule(
        training, combine, height, most_clients=None, starts_anew=True
    )
    (exchange,) = algorithm.exchanges

    def server(state, aggregate, key):
        after, metrics = exchange.server(state, aggregate, key)
        start = split(state.delta).pairs
        return _without(after, start, scaling), metrics

    return algorithm._replace(exchanges=(exchange._replace(server=server),))


def _without(
    state: ResidualState, start: dict[str, Pair], scaling: float
) -> ResidualState:
    """The state with s B0 A0 off the kernels; clients do that by themselves."""
    total = {
        layer: x - scaling * product(start[layer])
        for layer, x in state.residual.total.items()
    }
    return state._replace(residual=state.residual._replace(total=total))


def principal_start(
    delta: Tree, backbone: Tree, *, scaling: float
) -> tuple[Tree, Tree]:
    """Takes the first singular values of every adapted kernel out of it, as factors.

        W = U S V^T;   A0 = sqrt(S_r) U_r^T / sqrt(s),  B0 = V_r sqrt(S_r) / sqrt(s),
        W <- W - s B0 A0

    The adapted model computes what it computed with B = 0, up to rounding.

    Args:
      delta: has pairs of `lora_a` [..., in, r] and `lora_b` [..., r, out]; what they
        hold is not read.
      backbone: has the kernels `<layer>.base.kernel` [..., in, out].
      scaling: s > 0, of the LoRA layers.

    Returns:
      (delta, backbone), new trees of the same shapes and dtypes.

    Raises:
      TypeError, ValueError: a scaling that is not above 0, no pairs in the delta, a
        layer without a dense kernel, or a rank beyond the smaller side of a kernel.

    References:
      Yan et al. 2025, FRLoRA.

    Example:
      >>> import jax.numpy as jnp
      >>> backbone = {"layer": {"base": {"kernel": jnp.diag(jnp.array([9.0, 1.0]))}}}
      >>> pair = {"lora_a": jnp.zeros((2, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> delta, rest = principal_start({"layer": pair}, backbone, scaling=1.0)
      >>> jnp.abs(rest["layer"]["base"]["kernel"]).round(3).tolist()
      [[0.0, 0.0], [0.0, 1.0]]
      >>> round(abs(float(delta["layer"]["lora_a"][0, 0])), 3)
      3.0
    """
    checks.real("scaling", scaling, above=0)
    factors = split(delta)
    found, structure = jax.tree.flatten_with_path(backbone)
    leaves = {trees.path_of(path): leaf for path, leaf in found}
    pairs = {}
    for layer, old in factors.pairs.items():
        name = child(layer, "base.kernel")
        if name not in leaves:
            raise ValueError(
                f"expected a dense kernel {name!r} in the backbone to take singular "
                "values of: load the model with frozen='dense'"
            )
        kernel = leaves[name]
        whole = jnp.asarray(kernel, jnp.float32)
        pair = balanced(whole / scaling, old.a.shape[0], layer)
        pairs[layer] = pair
        rest = whole - scaling * product(pair)
        leaves[name] = rest.astype(kernel.dtype)
    start = join(Factors(pairs, factors.rest, factors.form))
    return start, jax.tree.unflatten(structure, leaves.values())


def balanced(matrix: jax.Array, rank: int, layer: str) -> Pair:
    """The best pair of a rank for a matrix, its singular values shared by both factors.

    In every row of a the largest entry is positive. Where a singular value is zero, a row
    of unit length stays in a beside zeros in b: with zeros in both, neither would ever
    have a gradient.

    Args:
      matrix: f32[..., in, out].
      rank: r, at most the smaller side.
      layer: its name, for the error.

    Returns:
      a [r, ..., in] and b [r, ..., out], with equal Gram matrices if no value is zero.

    Raises:
      ValueError: a rank beyond the smaller side.
    """
    if rank > min(matrix.shape[-2:]):
        raise ValueError(
            f"expected a rank of at most {min(matrix.shape[-2:])}, the smaller side of "
            f"{layer!r}, got rank {rank}"
        )
    u, s, vt = linalg.svd(matrix)
    sign = signs_of(u[..., :rank])
    s = s[..., None, :rank]
    is_zero = s <= ROUNDING * s[..., :1]
    of_a = sign * jnp.where(is_zero, 1.0, jnp.sqrt(s))
    of_b = sign * jnp.where(is_zero, 0.0, jnp.sqrt(s))
    a = of_a * u[..., :rank]
    b = jnp.swapaxes(of_b, -1, -2) * vt[..., :rank, :]
    return Pair(jnp.moveaxis(a, -1, 0), jnp.moveaxis(b, -2, 0))
