"""A robust rule in the place of a method's mean.

server:  m <- rule(x_1, ..., x_m);  the method's own step, as if one client had sent m
"""

import jax.numpy as jnp

from fedjax_fm.robust.exchange import RobustState, with_rule
from fedjax_fm.robust.fits import check_fits
from fedjax_fm.robust.rule import Rule
from fedjax_fm.types import Algorithm


def robust(
    algorithm: Algorithm,
    rule: Rule,
    *,
    most_weight: float | None = None,
    factors: bool = False,
) -> Algorithm:
    """A method whose mean over the cohort is replaced by a robust rule.

    Clients work and send as before; the server keeps the uploads of the whole cohort.
    An upload with NaN or infinity is rejected and stops no round. Where none is left
    the server acts as if nobody had come. Clients count the same, since a liar could
    claim any number of examples.

    Of low-rank factors, FLoRA, FlexLoRA and FedEx-LoRA are taken with rules of
    distances, which see the products B_k A_k without forming them. Methods that send
    one factor beside a common one (FFA-LoRA, Fed-SB) are taken with every rule, on that
    factor. FedIT sends both: coordinates of A and B are no property of B A, and whoever
    sends (c B, A / c) moves their mean anywhere while B A stays; it is refused unless
    `factors` asks for it.

    Metrics: `rejected`, the number of uploads that were not finite, `rejected_client`,
    the smallest id of them or -1, and the rule's own; of several exchanges by their
    numbers, `rejected_0`.

    Args:
      algorithm: a method whose server takes the weighted mean of its clients' uploads.
      rule: `robust.coordinate_median()` and its like.
      most_weight: lets clients count by their own weights, but none by more than this;
        for rules that take weights. None: all count the same.
      factors: takes coordinates of both factors of a pair as they are.

    Returns:
      An algorithm whose server state is `RobustState`.

    Raises:
      TypeError, ValueError: an argument is of another kind, or the method's server does
        something else than averaging; both factors of a pair, when the first round is
        traced.

    References:
      Blanchard et al. 2017, arXiv 1703.02757, section 2, for the setting; each rule
      names its own.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> from fedjax_fm import robust
      >>> task = ffm.Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> plain = ffm.fedavg(task, optax.sgd(1.0), local_steps=1, batch_size=1)
      >>> method = robust.robust(plain, robust.coordinate_median())
      >>> clients = [{"x": jnp.array([x])} for x in (1.0, 2.0, float("inf"), 9e9)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=4)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> float(state.delta), metrics["rejected_client"].tolist()
      (2.0, [2.0])
    """
    check_fits(algorithm, rule, most_weight, factors)
    n = len(algorithm.exchanges)
    exchanges = tuple(
        with_rule(algorithm, rule, index, most_weight, factors) for index in range(n)
    )

    def init(delta, key, setting):
        own = algorithm.init(delta, key, setting)
        first = rule.init(algorithm.delta(own))
        return RobustState(own, (first,) * n, jnp.int32(0))

    def delta(state):
        return algorithm.delta(state.method)

    wrapped = algorithm._replace(init=init, exchanges=exchanges, delta=delta)
    of_method = algorithm.model
    if of_method is None:
        return wrapped

    def model(state, own, backbone):
        return of_method(state.method, own, backbone)

    return wrapped._replace(model=model)
