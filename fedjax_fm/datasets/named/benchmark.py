"""What the table of named benchmarks is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.datasets.named.partitioners import LabelShares, PoissonUsers
from fedjax_fm.datasets.named.templates import Template

Row = Mapping[str, Any]  # as the hub gives it
Example = dict[str, Any]  # one value for each column of the normal form

# Partitioners that only a benchmark needs; all others are of fedjax_fm.population.
_OWN = {"LabelShares": LabelShares, "PoissonUsers": PoissonUsers}


class Dropped(NamedTuple):
    """A row that is no example."""

    reason: str


Parser = Callable[[Iterable[Row]], Iterator["Example | Dropped"]]


@dataclass(frozen=True)
class Hub:
    """Where the real rows are.

    Attributes:
      id: OWNER/NAME of a data set of the Hugging Face hub; None: it is on no hub, and
        `load(cache=FOLDER)` reads its files.
      config: of a data set with several.
      train: the split to train on; "train+test" joins two.
      test: the split that is held out; None: rows are held out of `train`.
      columns: that a row must have.
      revision: the commit that is read; None: it is not pinned, and the loader records
        the commit that it found.
      checked: whether id and columns were seen in code or on the data's own page; else
        they are recalled.
    """

    id: str | None
    columns: tuple[str, ...]
    config: str | None = None
    train: str = "train"
    test: str | None = None
    revision: str | None = None
    checked: bool = True


@dataclass(frozen=True)
class Held:
    """What is held out for the test where the hub has no split for it.

    Attributes:
      how: "split": the hub's own; "rows": a random share of the rows; "rows of each": a
        number of each category; "clients": the last share of the clients; "category":
        all rows of one; "latest": the last share of each client's rows.
      value: the share, the number or the category.
      ours: whether the choice is this library's, because the authors evaluate on other
        data.
    """

    how: str
    value: Any = None
    ours: bool = False


@dataclass(frozen=True)
class Partition:
    """How rows are dealt to clients.

    Attributes:
      kind: a partitioner of `fedjax_fm.population`, or "PoissonUsers" or "LabelShares"
        of this package.
      arguments: its parameters but for the seed; numbers of clients by their name
        there.
      note: where it deviates from the authors'.
    """

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def natural(self) -> bool:
        """Whether a column of the data says which client a row is of."""
        return self.kind == "NaturalIdPartitioner"

    @property
    def clients(self) -> int | None:
        """The number of clients; None where the data decide."""
        return self.arguments.get("num_partitions")

    def build(self, seed: int, n_rows: int | None = None) -> Any:
        """The partitioner.

        A least size of clients that a smaller table could not give is lowered to a
        hundredth of the mean size, so that a few clients may have no row there.

        Args:
          seed: of its draws, where it has any.
          n_rows: rows of the table that it will deal; None keeps all arguments.

        Returns:
          An object with `partition(table)`.
        """
        from fedjax_fm import population

        known = {**vars(population), **_OWN}
        kind = known[self.kind]
        arguments = dict(self.arguments)
        least = arguments.get("min_partition_size")
        if least is not None and n_rows is not None and self.clients:
            fitting = n_rows // (100 * self.clients)
            arguments["min_partition_size"] = min(least, fitting)
        names = {entry.name for entry in dataclasses.fields(kind)}
        if "seed" in names:
            arguments["seed"] = seed
        return kind(**arguments)


@dataclass(frozen=True)
class Settings:
    """The settings of the paper; None for what it does not fix.

    Attributes:
      source: "authors' code", "paper", or "recalled", and of which work.
      model: the backbone.
      clients: in all.
      cohort: clients of a round, a number or a share.
      rounds: in all.
      local_steps: optimizer steps of a client in a round.
      local_epochs: passes over a client's rows, where steps are not fixed.
      batch_size: rows of a step.
      accumulation: batches of a step.
      length: tokens of a row.
      lr: the clients' learning rate at the start.
      lr_last: what it falls to over the rounds; None: it is constant.
      optimizer: the clients'.
      server: the server's rule.
      rank: of LoRA.
      alpha: of LoRA.
      dropout: of LoRA.
      unverified: names of fields that were recalled or that sources differ in.
      note: what does not fit into fields.
    """

    source: str
    model: str | None = None
    clients: int | None = None
    cohort: int | float | None = None
    rounds: int | None = None
    local_steps: int | None = None
    local_epochs: int | None = None
    batch_size: int | None = None
    accumulation: int | None = None
    length: int | None = None
    lr: float | None = None
    lr_last: float | None = None
    optimizer: str | None = None
    server: str = "FedAvg"
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    unverified: tuple[str, ...] = ()
    note: str = ""


class Request(NamedTuple):
    """What a generator of stand-in rows is asked for.

    Attributes:
      clients: int[n], the client of each row; -1 where a partitioner will say.
      n_clients: in all, whether or not they have rows here.
      rng: all draws come from it.
      test: whether the rows are those of the hub's test split.
    """

    clients: np.ndarray
    n_clients: int
    rng: np.random.Generator
    test: bool


StandIn = Callable[[Request], list[dict[str, Any]]]


@dataclass(frozen=True)
class Benchmark:
    """One named benchmark: data, clients and the protocol of its authors.

    Attributes:
      name: FAMILY/NAME, or a name alone.
      title: in words.
      hub: where the real rows are.
      columns: of the normal form, without `client`.
      parse: rows of the hub to examples of the normal form.
      stand_in: makes rows of the hub's schema; None: the data ship with the package.
      partition: how rows are dealt to clients.
      held: what is held out.
      settings: of the authors.
      metric: names of scores, those of the authors first.
      citation: the work that the protocol is of.
      rows: training rows on the hub, before anything is held out.
      test_rows: rows of the hub's test split; 0 where there is none.
      n_clients: clients of a natural partition; 0 where a partitioner says.
      test_clients: clients of the hub's test split, where these are others.
      spread: the standard deviation of the logarithm of a natural client's rows, for
        the stand-in.
      most: most rows of a natural client; None: no bound.
      template: of the prompts; None where there are none.
      licence: of the real data; None: not known.
      classes: number of labels; 0 where there are none.
    """

    name: str
    title: str
    hub: Hub
    columns: tuple[str, ...]
    parse: Parser
    stand_in: StandIn | None
    partition: Partition
    held: Held
    settings: Settings
    metric: tuple[str, ...]
    citation: str
    rows: int
    test_rows: int = 0
    n_clients: int = 0
    test_clients: int = 0
    spread: float = 1.0
    most: int | None = None
    template: Template | None = None
    licence: str | None = None
    classes: int = 0
