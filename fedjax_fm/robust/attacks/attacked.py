"""A method some of whose clients lie.

Liars work as all clients do, with the same keys, and are billed as they are; what they
send in the end is replaced. The server's code knows nothing of it.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import checks
from fedjax_fm.robust.attacks.attack import Attack
from fedjax_fm.robust.attacks.conspiracy import with_lies
from fedjax_fm.robust.received import is_all_received
from fedjax_fm.types import Algorithm, Exchange

LIES = 0x11E5  # folds a liar's key, whose own draws stay what they were


def attacked(
    algorithm: Algorithm,
    attack: Attack,
    liars: Sequence[int],
    *,
    omniscient: bool = True,
) -> Algorithm:
    """A method some of whose clients lie.

    What honest clients send is the same to the last bit, and with no liars so is the
    whole run.

    Args:
      algorithm: a method; for liars that act together one of `robust.robust`, whose
        rule may be `robust.mean()`.
      attack: of `robust.attacks`.
      liars: ids, those of other clients are honest; `liars_of` draws a share.
      omniscient: whether liars that act together see what honest clients of the cohort
        send; else they see what they would send themselves.

    Returns:
      An algorithm with the same server.

    Raises:
      TypeError, ValueError: an id is negative or no whole number, or uploads are not
        kept side by side for liars that act together.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> from fedjax_fm.robust import attacks
      >>> task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> plain = ffm.fedavg(task, optax.sgd(1.0), local_steps=1, batch_size=1)
      >>> method = attacked(plain, attacks.sign_flip(), liars=[1])
      >>> clients = [{"x": jnp.array([2.0])}, {"x": jnp.array([2.0])}]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, _ = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> float(state.delta)
      0.0
    """
    checks.instance("algorithm", algorithm, Algorithm, "such as ffm.fedavg(...)")
    checks.instance("attack", attack, Attack, "such as attacks.sign_flip()")
    checks.flag("omniscient", omniscient)
    for one in liars:
        checks.whole("liars", one, least=0)
    ids = jnp.asarray(np.array(liars, np.int32).reshape(-1))
    exchanges = []
    for exchange in algorithm.exchanges:
        if not isinstance(exchange, Exchange):
            raise ValueError(
                "attacks are made on the uploads of a round, but this method repeats "
                "its exchanges within one (`Repeat`)"
            )
        if attack.alone is not None:
            exchange = _alone(exchange, attack.alone, ids)
        if attack.together is not None:
            exchange = _together(exchange, attack.together, ids, omniscient)
        exchanges.append(exchange)
    return algorithm._replace(exchanges=tuple(exchanges))


def _alone(exchange: Exchange, lie: Callable, ids: jax.Array) -> Exchange:
    """The exchange whose liars send a lie of their own."""

    def client(backbone, message):
        one_of_method = exchange.client(backbone, message)

        def one(mine, state, data, key):
            output = one_of_method(mine, state, data, key)
            told = lie(output.upload, mine, jax.random.fold_in(key, LIES))
            is_liar = jnp.any(ids == data.id)

            def sent(honest, other):
                if not jnp.issubdtype(honest.dtype, jnp.floating):
                    return honest  # a number of rows
                return jnp.where(is_liar, other.astype(honest.dtype), honest)

            return output._replace(upload=jax.tree.map(sent, output.upload, told))

        return one

    return exchange._replace(client=client)


def _together(
    exchange: Exchange, lie: Callable, ids: jax.Array, omniscient: bool
) -> Exchange:
    """The exchange whose liars replace what they send by one lie, before the rule."""
    reduce = exchange.reduce
    if not is_all_received(reduce):
        raise ValueError(
            "liars that act together look at the uploads side by side: put a rule "
            "around the method first, robust.robust(method, robust.mean()) for none"
        )

    def finish(found, setting):
        return reduce.finish(with_lies(found, lie, ids, omniscient), setting)

    return exchange._replace(reduce=reduce._replace(finish=finish))
