"""Clients that train, clients that could have, and canaries that some have instead.

    users --+-- tuning: public; head, directions, clip norms and rates are chosen on them
            +-- test and validation: what is learned is judged on them
            +-- final, dealt anew for every seed --+-- members: they train
                                                   +-- outsiders: they do not

Members and outsiders are drawn alike, so that nothing but training tells them apart.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import systems
from fedjax_fm.evaluation.leaks import Canaries, draw_canaries
from fedjax_fm.study.judged import joined

Arrays = dict[str, np.ndarray]  # {"hidden", "attention_mask", "labels"}: [n, T, ...]


NOTHING = systems.Preparation()


class Pool(NamedTuple):
    """All rows of a task, as the last layer reads them.

    Attributes:
      model: the last layer and its head, as every arm begins.
      rows: of all users, `config.rows` a user, one after the other.
      users: {"tuning", "validation", "test", "final": numbers of users}.
      alphabet: i32[a], classes that secrets are drawn from.
      secret: classes of a secret.
      canary: `(canaries, seed) -> Arrays`, one row a canary; the columns with labels are
        the same in all rows.
      targets: of LoRA and its kin.
      preparation: of all rows.
    """

    model: Any
    rows: Arrays
    users: dict[str, np.ndarray]
    alphabet: np.ndarray
    secret: int
    canary: Callable[[Canaries, int], Arrays]
    targets: str
    preparation: systems.Preparation = NOTHING


class Data(NamedTuple):
    """One seed.

    Attributes:
      model: the last layer and its head.
      targets: of LoRA and its kin.
      clients: that train.
      canaries: who was given one, by fair coins.
      secrets: Arrays, one row a canary, whether it is planted or not.
      members: rows of clients that train on their own, `config.rows` a client.
      outsiders: rows of clients that do not.
      test: rows of other users.
      public: rows of tuning users.
      preparation: of the clients' rows.
    """

    model: Any
    targets: str
    clients: list[Arrays]
    canaries: Canaries
    secrets: Arrays
    members: Arrays
    outsiders: Arrays
    test: Arrays
    public: Arrays
    preparation: systems.Preparation = NOTHING


def deal(pool: Pool, config: Any, seed: int, split: str) -> Data:
    """Deals users to both sides, and gives some members a canary.

    A client with a planted canary has nothing else, as often as others have rows.

    Args:
      pool: of the task.
      config: has the numbers of rows, clients, outsiders and canaries.
      seed: of the dealing and of the canaries.
      split: "tuning", which has fewer clients, or "final".

    Raises:
      ValueError: there are too few users.
    """
    order = np.random.default_rng(seed).permutation(pool.users[split])
    wanted = config.clients if split == "final" else len(order)
    rest = config.outsiders if split == "final" else 0
    if len(order) < wanted + rest:
        raise ValueError(
            f"{len(order)} users with {config.rows} rows, clients={wanted} and "
            f"outsiders={rest} are asked for"
        )
    n_canaries = round(config.canaries * wanted / config.clients)
    if n_canaries >= wanted:
        raise ValueError(
            f"expected fewer canaries than clients={config.clients}, got "
            f"canaries={config.canaries}: a client with one is no member"
        )
    chosen, others = order[:wanted], order[wanted : wanted + rest]
    how = {"prefix": config.prefix, "secret": pool.secret, "seed": seed}
    canaries = draw_canaries(pool.alphabet, n_canaries, wanted, **how)
    secrets = pool.canary(canaries, seed)
    own = [rows_of(pool, [user], config.rows) for user in chosen]
    clients = with_planted(own, canaries, secrets)
    without = np.setdiff1d(np.arange(wanted), canaries.clients)
    judged = "test" if split == "final" else "validation"
    return Data(
        model=pool.model,
        targets=pool.targets,
        clients=clients,
        canaries=canaries,
        secrets=secrets,
        members=joined([clients[k] for k in without[: config.outsiders]]),
        outsiders=rows_of(pool, others, config.rows),
        test=rows_of(pool, pool.users[judged], config.rows),
        public=rows_of(pool, pool.users["tuning"], config.rows),
        preparation=pool.preparation.part(
            wanted * config.rows, of=len(pool.rows["labels"])
        ),
    )


def with_planted(
    clients: list[Arrays], canaries: Canaries, secrets: Arrays
) -> list[Arrays]:
    """Gives clients whose coin says so a canary, as often as they had rows.

    Args:
      clients: rows of each.
      canaries: and their coins.
      secrets: one row a canary.
    """
    found = list(clients)
    for k in np.flatnonzero(canaries.is_planted):
        place = canaries.clients[k]
        again = np.repeat(k, len(clients[place]["labels"]))
        found[place] = {name: column[again] for name, column in secrets.items()}
    return found


def rows_of(pool: Pool, users: Any, rows: int) -> Arrays:
    """The rows of some users.

    Args:
      pool: of the task.
      users: numbers.
      rows: of a user.
    """
    first = np.asarray(users, np.int64)[:, None] * rows
    places = (first + np.arange(rows)).ravel()
    return {name: column[places] for name, column in pool.rows.items()}


def only(data: Data, n: int) -> Data:
    """A few clients: those with a planted canary, and some members.

    Args:
      data: of a seed.
      n: members.
    """
    planted = data.canaries.clients[data.canaries.is_planted]
    without = np.setdiff1d(np.arange(len(data.clients)), data.canaries.clients)[:n]
    few = [data.clients[k] for k in np.concatenate([planted, without])]
    return data._replace(
        clients=few, members=joined([data.clients[k] for k in without])
    )


def split_users(n: int, **sizes: int) -> dict[str, np.ndarray]:
    """Users for what is public and what is judged, the same for all seeds; the rest is final.

    Args:
      n: users.
      **sizes: how many, by name.

    Raises:
      ValueError: there are not so many.
    """
    if sum(sizes.values()) >= n:
        raise ValueError(f"{n} users are too few for {sizes}")
    order = np.random.default_rng(2026).permutation(n)
    ends = np.cumsum(list(sizes.values()))
    *parts, rest = np.split(order, ends)
    return {**dict(zip(sizes, parts, strict=True)), "final": rest}
