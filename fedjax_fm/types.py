"""Every public type on one page.

Shapes: N clients in the population, C in a cohort, B examples in a batch. `Tree` is any
pytree of arrays. A round is a sequence of exchanges; an exchange is
broadcast -> client -> wire -> reduce -> server.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from fedjax_fm import checks

Tree = Any


class Task(NamedTuple):
    """What is learned: a loss over one batch.

    With the number of response tokens as `weight`, and a loss that is the mean over them,
    all averages are token-weighted: in a batch by its own weights, among clients by the
    weights of all examples that a client holds, whether or not its local steps came to
    see them. So a client with weights w_i counts as one that holds each example w_i
    times.

    Attributes:
      loss: `(delta, backbone, batch, key) -> (f32[B], {name: f32[B]})`: per example, not
        averaged, so that short batches can be masked; other shapes are refused while a
        round is traced. `key` drives dropout and the like; it is None where the model is
        evaluated.
      weight: `batch -> f32[B]`, what an example counts in every mean; None counts each
        as one.
    """

    loss: Callable[[Tree, Tree, dict[str, jax.Array], Any], tuple[jax.Array, dict]]
    weight: Callable[[dict[str, jax.Array]], jax.Array] | None = None


class Setting(NamedTuple):
    """Sizes that an algorithm may divide by.

    Attributes:
      n_clients: N, of the population.
      cohort_size: planned, never the number that turned up.
    """

    n_clients: int
    cohort_size: int


class Batches(NamedTuple):
    """How a client walks its data, shuffled anew each pass.

    Attributes:
      batch_size: examples a step; the last batch of a pass may be short.
      epochs: full passes; this or `steps`.
      steps: batches.
    """

    batch_size: int
    epochs: int | None = None
    steps: int | None = None

    def checked(self) -> "Batches":
        """Itself, after a check of its values.

        Raises:
          ValueError: names the value that makes no sense.
        """
        checks.whole("batch_size", self.batch_size, least=1)
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "give either epochs or local_steps, got "
                f"epochs={self.epochs}, local_steps={self.steps}"
            )
        if self.steps is None:
            checks.whole("epochs", self.epochs, least=1)
        else:
            checks.whole("local_steps", self.steps, least=1)
        return self


class ClientData(NamedTuple):
    """What one client sees of the world; every count is traced.

    Attributes:
      id: i32[].
      round: i32[], from 0.
      n_examples: i32[], n_k.
      n_steps: i32[], local steps.
      batch: `i -> ({name: [B, ...]}, mask bool[B])`, the batch of local step i. Rows whose
        mask is False repeat a real row of the same client and must not count.
      repeat: i32[], which passage of a `Repeat` this is; 0 outside of one.
    """

    id: jax.Array
    round: jax.Array
    n_examples: jax.Array
    n_steps: jax.Array
    batch: Callable[[jax.Array], tuple[dict[str, jax.Array], jax.Array]]
    repeat: jax.Array


class ClientOutput(NamedTuple):
    """What one client's work leaves behind.

    Attributes:
      upload: goes up the wire.
      weight: f32[]; n_k unless the method says otherwise.
      state: the client's next state, or a function of `sent`, what the server decoded.
      metrics: {name: (sum f32[], count f32[])}.
    """

    upload: Tree
    weight: jax.Array
    state: Any = ()
    metrics: Mapping[str, tuple[jax.Array, jax.Array]] = MappingProxyType({})


class Stack(NamedTuple):
    """All contributions of a cohort, for reductions that are no sums (medians, stacking).

    Attributes:
      values: leaves [C, ...], in the sampler's order; zeros where not active.
      active: bool[C], took part, and the upload arrived.
      ids: i32[C], whose; any id where not active.
    """

    values: Tree
    active: jax.Array
    ids: jax.Array


class Reduce(NamedTuple):
    """A sum over the cohort: `finish(sum of lift(...))`.

    Attributes:
      lift: `(server_state, sent, weight) -> contribution`, of one client, after decoding:
        clips and rejections belong here.
      finish: `(total, setting) -> value`; the total is over all clients, in f32, or with
        `keep` a `Stack` of them.
      keep: keeps every contribution, which needs memory for the whole cohort.
      shows_nan: NaN or infinity in an upload is always one in the sum, so that the engine
        looks at the sum alone.
    """

    lift: Callable[[Any, Tree, jax.Array], Tree]
    finish: Callable[[Any, Setting], Tree]
    keep: bool = False
    shows_nan: bool = False


class Aggregate(NamedTuple):
    """What the server receives."""

    value: Tree  # from Reduce.finish
    n_clients: jax.Array  # i32[], uploads that arrived


class Exchange(NamedTuple):
    """One way down and up again.

    Attributes:
      broadcast: `server_state -> message`; leaves wrapped in `Unbilled` are not billed.
      client: `(backbone, message) -> one`, where `one(message, client_state, data, key) ->
        ClientOutput`. The outer half runs once an exchange on each device, the inner half
        once a client: it is written for one client and knows no batch of clients.
      server: `(server_state, aggregate, key) -> (server_state, {name: f32[]})`.
      reduce: how the cohort's uploads become the aggregate.
      batches: how a client walks its data.
      address: `(message, client_state, id) -> part`, what of the message this client is
        sent, given to `one` and billed by its shape instead of the whole; None sends the
        whole.
      selects: `(message, id, key) -> bool[]`, who of the cohort takes part; the others
        are not computed. None selects everyone.
      same_entries: whether an entry of the upload is about the same number of the model
        in every round. Where it is not, error feedback is refused: it would add what
        one entry lost to another.
    """

    broadcast: Callable[[Any], Tree]
    client: Callable[
        [Tree, Tree], Callable[[Tree, Any, ClientData, jax.Array], ClientOutput]
    ]
    server: Callable[[Any, Aggregate, jax.Array], tuple[Any, dict[str, jax.Array]]]
    reduce: Reduce
    batches: Batches
    address: Callable[[Tree, Any, jax.Array], Tree] | None = None
    selects: Callable[[Tree, jax.Array, jax.Array], jax.Array] | None = None
    same_entries: bool = True


class Repeat(NamedTuple):
    """Exchanges in turn, several times over within one round, as in split learning.

    One loop, which only `pmap` unrolls.

    Attributes:
      times: passages.
      exchanges: of each passage, in this order.
    """

    times: int
    exchanges: tuple[Exchange, ...]


class Privacy(NamedTuple):
    """What a private method was accounted for; a simulator holds it to that.

    Attributes:
      law: of the sampler, one of `population.samplers.laws`.
      rounds: planned, no more are run; None for any number.
      delta: of the guarantee.
      epsilon: `rounds done -> epsilon`, called on the host; None where noise is added
        and nothing was accounted.
      relation: which data sets are neighbours, in words.
      mechanism: in words.
      released: the metrics that the guarantee covers, beside the server's tree. All
        others (losses, numbers of clients and examples, bytes) are exact: diagnostics
        of the simulator, which a deployment would not see.
    """

    law: Any = None
    rounds: int | None = None
    delta: float | None = None
    epsilon: Callable[[int], float] | None = None
    relation: str = ""
    mechanism: str = ""
    released: tuple[str, ...] = ()


def _stateless(delta: Tree, key: jax.Array) -> tuple:
    """The first state of clients that keep nothing."""
    return ()


class Algorithm(NamedTuple):
    """A federated method: pure functions, hyper-parameters closed over.

    Attributes:
      init: `(delta, key, setting) -> server_state`.
      exchanges: of a round, each an `Exchange` or a `Repeat`.
      client_init: `(delta, key) -> client_state`, () when stateless.
      delta: `server_state -> trainable tree`.
      privacy: of a method that clips and adds noise; such methods divide by the planned
        cohort.
      model: `(server_state, client_state, backbone) -> (delta, backbone)`, what is
        evaluated: of the server where client_state is None, else of that client. None:
        `(delta(server_state), backbone)` for both.
      sampler: `(chosen, setting) -> Sampler`, of a method that decides who takes part: it
        makes its own of the one that was chosen for the simulator (None if there was
        none), or refuses it.
    """

    init: Callable[[Tree, jax.Array, Setting], Any]
    exchanges: tuple[Any, ...]
    client_init: Callable[[Tree, jax.Array], Any] = _stateless
    delta: Callable[[Any], Tree] = attrgetter("delta")
    privacy: Privacy | None = None
    model: Callable[[Any, Any, Tree], tuple[Tree, Tree]] | None = None
    sampler: "Callable[[Sampler | None, Setting], Sampler] | None" = None


class Channel(NamedTuple):
    """What the wire does to one message; the receiver sees `decode(payload)` only.

    Attributes:
      init: `tree of shapes -> state of one sender`.
      encode: `(state, tree, key) -> (payload, state)`.
      decode: `payload -> tree`; a payload decodes alone.
      bits: `payload -> int`, the length of its packed buffers, or u32[] where the data
        decide.
      law: what the receiver may rely on, `channels.Unbiased` or `channels.Contractive`;
        None promises nothing.
    """

    init: Callable[[Tree], Any]
    encode: Callable[[Any, Tree, jax.Array], tuple[Any, Any]]
    decode: Callable[[Any], Tree]
    bits: Callable[[Any], int | jax.Array]
    law: Any = None


class Sampler(NamedTuple):
    """Who is drawn for a round.

    Attributes:
      init: `() -> state`.
      draw: `(state, key) -> (ids i32[capacity], n_active i32[], state)`; ids past n_active
        are ignored.
      capacity: clients of the largest cohort.
      law: what a privacy accountant may rely on, one of `population.samplers.laws`; None
        promises nothing.
    """

    init: Callable[[], Any]
    draw: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array, Any]]
    capacity: int
    law: Any = None


class Behaviour(NamedTuple):
    """What clients' machines do to a round: `(id i32[], round i32[], key) -> ...`.

    Attributes:
      most_steps: `-> i32[]`, local steps that a straggler manages before the round
        closes; fewer than one means that it takes no part.
      drops: `-> bool[]`: the client worked, but its upload never arrives. It counts
        nothing, its old state stays, its download is billed and its upload is not.
    """

    most_steps: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    drops: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None


class Unbilled(NamedTuple):
    """Marks a leaf of a broadcast that both sides know already: it is not billed.

    A round number, a seed, public examples.

    Attributes:
      value: as the client reads it.
    """

    value: Tree


class Rows(NamedTuple):
    """An array whose height differs from client to client, under one static shape.

    Ranks, for example. Billed by count.

    Attributes:
      values: [rows, ...], zero past the first `count`.
      count: i32[].
    """

    values: jax.Array
    count: jax.Array
