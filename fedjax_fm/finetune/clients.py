"""Who has which examples: clients, those that are held out, and what is scored."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import population
from fedjax_fm.finetune.examples import Examples, key_of
from fedjax_fm.finetune.expressions import build
from fedjax_fm.finetune.files import Source
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import nearest

USUAL = ("user_id", "user", "client_id", "client", "annotator_id", "author", "sender")
SPLIT_SEED = 2026  # of the clients that tune, the same for all seeds
TUNING_SHARE = 0.2  # of the clients, where there are settings to choose


class Clients(NamedTuple):
    """All clients with their examples.

    Attributes:
      names: of each.
      places: i64[examples] of each, places in `Examples`.
      counts: {what was counted or left out: how many}.
    """

    names: list[str]
    places: list[np.ndarray]
    counts: dict[str, int]


class Dealt(NamedTuple):
    """The split of one seed; all are places in `Examples`.

    Attributes:
      train: of each client that trains.
      own: further examples of the same clients, which are scored; may be empty.
      unseen: of each client that never trains.
      leaks: scored examples that were left out, as a client that trains has them too.
    """

    train: list[np.ndarray]
    own: list[np.ndarray]
    unseen: list[np.ndarray]
    leaks: int


def find(settings: Settings, source: Source, examples: Examples) -> Clients:
    """Deals the examples to clients, by a column or by a partitioner.

    Args:
      settings: say how; small clients are left out, and equal examples if asked.
      source: has the column.
      examples: to be dealt.

    Returns:
      The clients, in order of their names.

    Raises:
      UsageError: nothing says who the clients are; fewer than two are left.

    Example:
      >>> from fedjax_fm.finetune import examples as of_rows
      >>> table = {"text": ["a", "b", "a"], "user": ["u", "v", "v"]}
      >>> source = Source(table=table, name="t", kind="csv", sha256="")
      >>> settings = Settings(text="text", client="user")
      >>> found = of_rows.make(source, of_rows.choose(settings, source))
      >>> clients = find(settings, source, found)
      >>> clients.names, [places.tolist() for places in clients.places]
      (['u', 'v'], [[0], [1, 2]])
      >>> clients.counts["equal examples with several clients"]
      1
    """
    counts: dict[str, int] = {}
    labels = examples.labels
    keys = np.array(
        [
            key_of(value, None if labels is None else int(labels[place]))
            for place, value in enumerate(examples.values)
        ],
        dtype=object,
    )
    keep = np.arange(len(keys))
    _, first = np.unique(keys, return_index=True)
    counts["equal examples"] = len(keys) - len(first)
    if settings.drop_duplicates:
        keep = np.sort(first)
    names, places = _dealt(settings, source, examples, keep, counts)
    counts["equal examples with several clients"] = _shared(keys, places)
    large = [k for k, own in enumerate(places) if len(own) >= settings.min_examples]
    counts["clients too small"] = len(places) - len(large)
    names, places = [names[k] for k in large], [places[k] for k in large]
    counts["clients with one example"] = sum(len(own) == 1 for own in places)
    if len(places) < 2:
        raise UsageError(
            f"{len(places)} clients with {settings.min_examples} examples or more: a "
            "federation needs two; lower --min-examples or choose other clients"
        )
    return Clients(names=names, places=places, counts=counts)


def _dealt(
    settings: Settings,
    source: Source,
    examples: Examples,
    keep: np.ndarray,
    counts: dict[str, int],
) -> tuple[list[str], list[np.ndarray]]:
    """(names, places) of all clients."""
    client = settings.client or source.client or _usual(source)
    if client in source.columns:
        return _by_column(source, client, examples, keep, counts)
    if ":" not in client and "(" not in client and client not in PARTITIONERS:
        known = [*source.columns, *PARTITIONERS]
        raise UsageError(f"--client: {nearest(client, known, 'column or partitioner')}")
    named = [name for name in source.columns if name in client]
    # A conversation goes to one client, however many examples were made of it.
    kept, first = np.unique(examples.rows[keep], return_index=True)
    table = {name: np.asarray(source.table[name])[kept] for name in named}
    table["row of the table"] = kept
    given: dict[str, Any] = {"seed": 42}
    if examples.labels is not None:
        table["label of the example"] = examples.labels[keep[first]]
        given["partition_by"] = "label of the example"
    dealer = build(client, PARTITIONERS, "partitioner", given=given)
    try:
        parts = dealer.partition(table)
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"--client {client}: {error}") from error
    places = [keep[_of_rows(examples.rows[keep], kept[part])] for part in parts]
    counts["examples that the partitioner leaves out"] = len(keep) - sum(
        map(len, places)
    )
    return [str(k) for k in range(len(parts))], places


def _of_rows(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of the examples of these rows, in the order in which they are wanted.

    Args:
      rows: i64[n], of each example, ascending.
      wanted: i64[m], different rows.
    """
    begin = np.searchsorted(rows, wanted, side="left")
    end = np.searchsorted(rows, wanted, side="right")
    ranges = [np.arange(*edges) for edges in zip(begin, end, strict=True)]
    return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)


def _usual(source: Source) -> str:
    """The one column that is usually called so."""
    found = [name for name in source.columns if name.lower() in USUAL]
    if len(found) == 1:
        return found[0]
    several = f"; {' and '.join(found)} could be it" if found else ""
    raise UsageError(
        f"say who the clients are{several}: --client COLUMN, one of "
        f"{', '.join(source.columns)}, or a partitioner: --client iid:10, --client "
        "dirichlet:num_partitions=10,alpha=0.5"
    )


def _by_column(
    source: Source,
    name: str,
    examples: Examples,
    keep: np.ndarray,
    counts: dict[str, int],
) -> tuple[list[str], list[np.ndarray]]:
    """A client for each value of the column."""
    column = source.table[name]
    values = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    own: dict[str, list[int]] = {}
    nobody = 0
    for place in keep:
        value = values[examples.rows[place]]
        if value is None or value != value:
            nobody += 1
        else:
            own.setdefault(str(value), []).append(int(place))
    counts["examples of no client"] = nobody
    names = sorted(own)
    return names, [np.array(own[client], np.int64) for client in names]


def _shared(keys: np.ndarray, places: Sequence[np.ndarray]) -> int:
    """How many different examples more than one client has."""
    owner: dict[str, int] = {}
    shared = set()
    for k, own in enumerate(places):
        for key in keys[own]:
            if owner.setdefault(key, k) != k:
                shared.add(key)
    return len(shared)


def deal(
    clients: Clients, examples: Examples, settings: Settings, seed: int, split: str
) -> Dealt:
    """Splits clients into those that train and those that do not, and their examples.

    With several learning rates a fifth of the clients is put aside, the same for every
    seed: they alone are used while tuning, and never afterwards. Examples of one row,
    which are the answers of one conversation, stay together. A scored example that some
    client trains on is left out.

    Args:
      clients: all of them.
      examples: theirs.
      settings: shares of what is held out.
      seed: of the split.
      split: "tuning" or "final".

    Returns:
      The split.

    Raises:
      UsageError: too few clients.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(clients.places))
    if len(settings.learning_rate) > 1:
        n_tuning = max(2, round(TUNING_SHARE * len(order)))
        if len(order) - n_tuning < 2:
            raise UsageError(
                f"{len(order)} clients are too few to put some aside for the choice of "
                "a learning rate; give one learning rate"
            )
        order = order[:n_tuning] if split == "tuning" else order[n_tuning:]
    random = np.random.default_rng(seed)
    order = random.permutation(order)
    n_out = 0
    if settings.holdout_clients:
        n_out = max(1, round(settings.holdout_clients * len(order)))
    if len(order) - n_out < 1:
        raise UsageError(
            f"of {len(order)} clients {n_out} are held out, and none is left to train"
        )
    train, own = [], []
    for k in np.sort(order[n_out:]):
        mine = clients.places[k]
        rows = random.permutation(_different(examples.rows[mine]))
        n = min(round(settings.holdout_examples * len(rows)), len(rows) - 1)
        is_own = np.isin(examples.rows[mine], rows[:n])
        train.append(np.sort(mine[~is_own]))
        own.append(np.sort(mine[is_own]))
    unseen = [clients.places[k] for k in np.sort(order[:n_out])]
    return _without_leaks(Dealt(train=train, own=own, unseen=unseen, leaks=0), examples)


def _different(rows: np.ndarray) -> np.ndarray:
    """The different rows, in the order in which they come."""
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)]


def _without_leaks(dealt: Dealt, examples: Examples) -> Dealt:
    """Leaves scored examples out that equal one that is trained on."""
    trained = {key_of(examples.values[place]) for own in dealt.train for place in own}

    def clean(places: np.ndarray) -> np.ndarray:
        fresh = [key_of(examples.values[place]) not in trained for place in places]
        return places[np.array(fresh, bool)]

    own = [clean(places) for places in dealt.own]
    unseen = [clean(places) for places in dealt.unseen]
    before = sum(map(len, [*dealt.own, *dealt.unseen]))
    leaks = before - sum(map(len, [*own, *unseen]))
    return Dealt(train=dealt.train, own=own, unseen=unseen, leaks=leaks)


def capped(places: Sequence[np.ndarray], most: int, seed: int) -> list[np.ndarray]:
    """At most `most` examples in all, dealt evenly over the clients.

    Args:
      places: of each client.
      most: examples in all.
      seed: of the choice.

    Returns:
      Some places of each client.

    Example:
      >>> [len(own) for own in capped([np.arange(9), np.arange(2)], most=5, seed=0)]
      [3, 2]
    """
    random = np.random.default_rng(seed)
    shuffled = [random.permutation(own) for own in places]
    taken = [0] * len(places)
    left = most
    while left > 0:
        open_ones = [k for k, own in enumerate(shuffled) if taken[k] < len(own)]
        if not open_ones:
            break
        for k in open_ones[:left]:
            taken[k] += 1
        left -= min(left, len(open_ones))
    return [np.sort(own[:n]) for own, n in zip(shuffled, taken, strict=True)]


def _snake(name: str) -> str:
    """`InnerDirichletPartitioner` as `inner_dirichlet`."""
    short = name.removesuffix("Partitioner")
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in short).lstrip("_")


def _partitioners() -> dict[str, type]:
    """Partitioners of rows, by both spellings of their names."""
    names = [
        name
        for name in population.__all__
        if name.endswith("Partitioner")
        and name not in ("Partitioner", "IdToSizeFncPartitioner")
        and not name.startswith("Vertical")
    ]
    classes = {name: getattr(population, name) for name in names}
    return {_snake(name): kind for name, kind in classes.items()} | classes


PARTITIONERS = _partitioners()
