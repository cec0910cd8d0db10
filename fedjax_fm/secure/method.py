"""A method whose server sees the sum of fixed-point numbers, and no client's own.

client:  v_k = min(w_k / W, 1),  sends  encode(v_k x_k), encode(v_k)
server:  sum of codes modulo 2^32 -> sum_k v_k x_k / sum_k v_k
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.reduce import mean_of, weighted_mean
from fedjax_fm.secure.fixed_point import FixedPoint, decode, encode
from fedjax_fm.trees import all_finite
from fedjax_fm.types import Algorithm, ClientOutput, Exchange, Reduce, Tree

ROUNDING = 0x5EC  # folds a client's key, whose own draws stay what they were


class Codes(NamedTuple):
    """What a client sends, as whole numbers.

    Attributes:
      values: u32 leaves, its upload times its share of the weight.
      weight: u32[], that share.
    """

    values: Tree
    weight: jax.Array


class Counted(NamedTuple):
    """Sums of a cohort, modulo 2^32.

    Attributes:
      codes: of those that arrived.
      n_clients: u32[].
    """

    codes: Codes
    n_clients: jax.Array


def secured(
    algorithm: Algorithm, fixed: FixedPoint | None = None, *, most_weight: float
) -> Algorithm:
    """A method whose uploads are added up as secure aggregation adds them up.

    Uploads are fixed-point numbers, and the server's code is given their sum modulo 2^32
    alone. The masks of `secure.masked` change that sum by nothing, bit for bit, so that
    a run need not compute them: what it says of accuracy holds for masked uploads. Its
    uplink is billed as 32 bits a number; `secure.bill` has packed numbers, keys and
    shares.

    The sum of what was sent does not depend on the order of clients.

    Args:
      algorithm: a method whose server takes the weighted mean of uploads.
      fixed: clip and levels; None: `FixedPoint()`.
      most_weight: W, the weight of a client that counts fully, such as the most
        examples that one has; a heavier one counts as W.

    Returns:
      An algorithm with the same state.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a method
        whose server looks at single uploads, or whose clients wait for what arrived.

    References:
      Bonawitz et al. 2017, ePrint 2017/281, section 7.2 (weights travel beside values).

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> plain = ffm.fedavg(task, optax.sgd(1.0), local_steps=1, batch_size=1)
      >>> method = secured(plain, most_weight=1)
      >>> population = ffm.Population.from_clients(
      ...     [{"x": jnp.array([x])} for x in (1.0, 2.0, 4.5)]
      ... )
      >>> simulator = ffm.Simulator(method, population, cohort_size=3)
      >>> state, _ = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> float(state.delta)
      2.5
    """
    checks.instance("algorithm", algorithm, Algorithm, "such as ffm.fedavg(...)")
    chosen = FixedPoint() if fixed is None else fixed
    checks.instance("fixed", chosen, FixedPoint, "write secure.FixedPoint(...)")
    chosen.checked()
    checks.real("most_weight", most_weight, above=0)
    if chosen.clip < 1:
        raise ValueError(
            f"expected clip >= 1, as weights up to 1 travel too, got {chosen.clip}"
        )
    if algorithm.privacy is not None:
        raise ValueError(
            "the method clips single uploads at the server, which sees none under "
            "secure aggregation: its clients would have to clip"
        )
    exchanges = tuple(
        _secured(exchange, chosen, most_weight) for exchange in algorithm.exchanges
    )
    return algorithm._replace(exchanges=exchanges)


def _secured(exchange: Any, fixed: FixedPoint, most_weight: float) -> Exchange:
    """The exchange with whole numbers on its way up."""
    if not isinstance(exchange, Exchange) or exchange.reduce != weighted_mean():
        raise ValueError(
            "secure aggregation shows the server a sum, and this method does something "
            "else with single uploads (it keeps, sorts or clips them, or repeats its "
            "exchanges): expected one whose server takes their weighted mean"
        )

    def client(backbone, message):
        one_of_method = exchange.client(backbone, message)

        def one(mine, state, data, key):
            output = one_of_method(mine, state, data, key)
            codes = _codes(output, fixed, most_weight, key)
            # Whole numbers hide NaN and infinity, which have to stop the run.
            is_fine = all_finite(output.upload)
            weight = jnp.where(is_fine, output.weight, jnp.nan)
            return output._replace(upload=codes, weight=weight)

        return one

    def finish(total: Counted, setting):
        sums = decode(total.codes, total.n_clients, fixed)
        return mean_of(sums.values, sums.weight)

    return exchange._replace(client=client, reduce=Reduce(lift=_counted, finish=finish))


def _codes(
    output: ClientOutput, fixed: FixedPoint, most_weight: float, key: jax.Array
) -> Codes:
    """A client's upload and weight as whole numbers."""
    if callable(output.state):
        raise ValueError(
            "the method's clients keep what the server decoded of them, and under "
            "secure aggregation it decodes no single upload"
        )
    for leaf in jax.tree.leaves(output.upload):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"secure aggregation takes uploads of floating numbers, got {leaf.dtype}"
            )
    share = jnp.minimum(output.weight / most_weight, 1.0).astype(jnp.float32)
    scaled = jax.tree.map(lambda x: share * x.astype(jnp.float32), output.upload)
    own = jax.random.fold_in(key, ROUNDING)
    return encode(Codes(scaled, share), fixed, own)


def _counted(server: Any, sent: Codes, weight: jax.Array) -> Counted:
    return Counted(sent, jnp.uint32(1))
