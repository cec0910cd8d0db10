"""SoteriaFL: A Unified Framework for Private FL with Communication Compression.

Li, Zhao, Li, Chi, 2022, arXiv 2206.09888, algorithm 2, and its baseline CDP-SGD, algorithm 1.

    client:  g_k from clipped gradients of m examples                 `estimated`
             u_k = g_k + N(0, (z G / m)^2);  sends v_k = C(u_k - s_k)
             s_k <- s_k + gamma v_k                                   `client`
    server:  x <- x - eta (s + mean_k v_k)
             s <- s + gamma mean_k v_k,  the old s in the step        `server`

The estimators g_k are in `clipped_gradients`; CDP-SGD is sgd with gamma = 0. Each example
is clipped by itself: the authors' code clips the mean of a batch, which does not bound
what one example moves.
"""

from functools import partial

from fedjax_fm import checks
from fedjax_fm.algorithms.clipped_gradients import (
    Estimator,
)
from fedjax_fm.algorithms.compressed import (
    arrived_decoded,
    positive,
    unbiased,
)
from fedjax_fm.algorithms.everyone import meets_everyone
from fedjax_fm.algorithms.local_noise import (
    check_no_weight,
    check_table,
    local_noise,
)
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.algorithms.soteriafl_round import (
    Soteria,
    client,
    client_init,
    init,
    server,
)
from fedjax_fm.privacy.examples import ESTIMATORS, LocalAccounting
from fedjax_fm.types import (
    Algorithm,
    Batches,
    Channel,
    Exchange,
    Task,
)


def soteriafl(
    task: Task,
    learning_rate: float,
    channel: Channel,
    *,
    clip_norm: float,
    noise_multiplier: float,
    estimator: str = "sgd",
    shift_rate: float | None = None,
    snapshot_rate: float = 0.1,
    table_rows: int | None = None,
    index: str | None = None,
    accounting: LocalAccounting | None = None,
    batch_size: int,
) -> Algorithm:
    """Compressed gradients that every client makes private itself.

    The server sees noise from the first step on, so that nobody need be trusted. Every
    client counts the same; where some take part only, the shifts follow as in `diana`.
    Without noise and clip it is DIANA with alpha = gamma.

    Sends: down x, up C(u_k - s_k), the length of the channel's buffers. A client keeps
    s_k, for svrg two more of its size, for saga one gradient an example.

    Metrics: `epsilon` after each round, of an accounted method.

    Args:
      task: the loss; without `weight`, as each example counts the same.
      learning_rate: eta, above 0.
      channel: C, unbiased, without a memory, as the shifts are it.
      clip_norm: G, of each example's gradient, above 0; infinity for none (then
        noise_multiplier must be 0).
      noise_multiplier: z, deviation of the noise on the mean gradient in units of G / m;
        0 for none.
      estimator: "sgd", "svrg" or "saga".
      shift_rate: gamma, 0 to 1; None: sqrt((1 + 2 omega) / (2 (1 + omega)^3)).
      snapshot_rate: p of svrg, 0 < p <= 1.
      table_rows: of saga: examples of the largest client.
      index: of saga: the column that numbers a client's examples, integers from 0.
      accounting: the smallest client, rounds and delta that z is accounted for. A
        client with fewer examples then stops the run as not finite.
      batch_size: examples a round, m of them where a client has fewer.

    Returns:
      An algorithm whose server state is `SoteriaState` and whose clients keep a
      `SoteriaClient`.

    Formal guarantees:
      With noise and `accounting`, all that a client sends in `rounds` rounds is
      (epsilon, delta) differentially private for one of its examples replaced by
      another, with the epsilon of `privacy.local_spent`. The channel, the shifts and
      the server come after the noise and cost nothing. Not covered, as they leave no
      client in a deployment: `loss` and the task's metrics, `examples`, clients' states.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a channel
        that is biased or has a memory; arguments of an estimator that is not used;
        later, the sampler never meets some clients.

    References:
      Li et al. 2022, arXiv 2206.09888, algorithm 2 (SoteriaFL), section 4; the authors'
      code, github.com/haoyuzhao123/soteriafl.

    Example:
      >>> import jax.numpy as jnp
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> accounting = ffm.privacy.LocalAccounting(n_examples=20, rounds=3, delta=1e-5)
      >>> how = {"clip_norm": 1.0, "noise_multiplier": 4.0, "batch_size": 5}
      >>> method = soteriafl(
      ...     task, 0.1, ffm.channels.natural(), **how, accounting=accounting
      ... )
      >>> population = ffm.Population.from_clients([{"x": jnp.ones(20)}] * 2)
      >>> simulator = ffm.Simulator(method, population, cohort_size=2)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 3)
      >>> metrics["uplink_bytes"].tolist(), bool(metrics["epsilon"][2] < 4)
      ([4, 4, 4], True)
    """
    checks.choice("estimator", estimator, ESTIMATORS)
    batches = Batches(batch_size, steps=1).checked()
    how = {"batch_size": batch_size, "estimator": estimator}
    noise = local_noise(noise_multiplier, clip_norm, accounting, **how)
    if shift_rate is not None:
        checks.real("shift_rate", shift_rate, least=0, most=1)
    checks.real("snapshot_rate", snapshot_rate, above=0, most=1)
    check_table(estimator, table_rows, index)
    check_no_weight(task)
    method = Soteria(
        estimator=Estimator(
            task=checked(task),
            name=estimator,
            clip_norm=clip_norm,
            snapshot_rate=snapshot_rate,
            table_rows=table_rows,
            index=index,
        ),
        learning_rate=positive("learning_rate", learning_rate),
        channel=unbiased("soteriafl, channel", channel, "as its noise is never undone"),
        noise=noise,
        shift_rate=shift_rate,
    )
    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=lambda backbone, message: partial(client, method, backbone),
        server=partial(server, method),
        reduce=arrived_decoded(method.channel),
        batches=batches,
    )
    everybody = meets_everyone("SoteriaFL", "the server's shift")
    return Algorithm(
        init=partial(init, method),
        exchanges=(exchange,),
        client_init=partial(client_init, method),
        privacy=noise.privacy,
        sampler=None if shift_rate == 0 else everybody,
    )
