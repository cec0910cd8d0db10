"""What a run would cost on given machines: seconds, joules, grams, dollars."""

import math
import os
from typing import NamedTuple

from fedjax_fm.systems.carbon import Energy, added, energy_of, energy_of_server
from fedjax_fm.systems.counts import Counts
from fedjax_fm.systems.cross_cloud import dollars
from fedjax_fm.systems.energy import (
    READS_A_STEP,
    compute_seconds,
    compute_share,
    granularity,
    memory_needed,
    transfer_seconds,
)
from fedjax_fm.systems.hardware import Cloud, Device, Grid, Link, ServerMachine, find


class Scenario(NamedTuple):
    """Where a run would take place.

    Attributes:
      device: of every client.
      link: of every client.
      grid: of clients, network and server.
      server: that aggregates.
      cloud: whose machines the clients are; None: their own.
    """

    device: Device
    link: Link
    grid: Grid
    server: ServerMachine
    cloud: Cloud | None = None


def scenario(
    *,
    device: str,
    link: str = "home",
    grid: str = "world",
    server: str = "hyperscale",
    cloud: str | None = None,
    file: str | os.PathLike[str] | None = None,
) -> Scenario:
    """A scenario by the names of its profiles.

    Args:
      device: of every client.
      link: of every client.
      grid: a country's code of three letters, or "world".
      server: that aggregates.
      cloud: whose machines the clients are; None: their own.
      file: with profiles of one's own, see `profiles`.

    Returns:
      The scenario.

    Raises:
      ValueError: an unknown name; says which is nearest.
    """
    return Scenario(
        device=find("device", device, file),
        link=find("link", link, file),
        grid=find("grid", grid, file),
        server=find("server", server, file),
        cloud=None if cloud is None else find("cloud", cloud, file),
    )


class Cost(NamedTuple):
    """What a run would cost, all clients together unless it says otherwise.

    Attributes:
      seconds: from the first round to the last, each as long as its clients take on
        average: alike machines, alike work.
      compute_seconds: of all clients, also those that dropped out.
      transfer_seconds: likewise.
      granularity: seconds of computation for each of communication.
      compute_share: of a client's time.
      energy: joules by phase.
      grams: (lowest, highest) g CO2e, by the sources for networks.
      wasted_share: of the clients' joules, for what never arrived.
      per_joule: tokens for a joule of the clients' computation, examples where these are
        no text.
      unit: "tokens" or "examples".
      memory: bytes that training needs at a client, without activations.
      fits: whether the device has them.
      dollars: of rented machines and what leaves them; None without a cloud.
      dollars_per_million: examples; None without a cloud.
    """

    seconds: float
    compute_seconds: float
    transfer_seconds: float
    granularity: float
    compute_share: float
    energy: Energy
    grams: tuple[float, float]
    wasted_share: float
    per_joule: float
    unit: str
    memory: float
    fits: bool
    dollars: float | None
    dollars_per_million: float | None


def cost_of(counts: Counts, scenario: Scenario) -> Cost:
    """The prediction for a run's counts.

    Args:
      counts: of the run.
      scenario: machines, links and grid.

    Returns:
      Times, energies and prices.

    Raises:
      ValueError: the run's operations were not counted, or no client took part.

    Example:
      >>> from fedjax_fm import systems
      >>> counts = systems.Counts(
      ...     rounds=10, clients=20, examples=1000, tokens=64000, steps=100.0,
      ...     flop=4e15, bytes_down=10**9, bytes_up=10**8, trained=10**5,
      ...     model_bytes=10**8,
      ... )
      >>> where = systems.scenario(device="jetson-agx-orin", link="home", grid="DEU")
      >>> cost = systems.cost_of(counts, where)
      >>> round(cost.compute_seconds), round(cost.transfer_seconds)
      (310, 107)
      >>> round(cost.granularity, 1), round(cost.per_joule, 1), cost.fits
      (2.9, 4.1, True)
    """
    started = counts.clients + counts.clients_lost
    if counts.flop is None or counts.flop_lost is None:
        raise ValueError("the operations of this run were not counted")
    if not started:
        raise ValueError("no client took part in this run: there is nothing to cost")
    parts = (_arrived(counts, scenario), _lost(counts, scenario))
    compute = sum(part.compute for part in parts)
    transfer = sum(part.transfer for part in parts)
    seconds = counts.rounds * (compute + transfer) / started
    energy = added(
        [*(part.energy for part in parts), energy_of_server(scenario.server, seconds)]
    )
    g = granularity(compute, transfer)
    of_clients = energy.compute + energy.radio + energy.wasted
    memory = max(
        memory_needed(counts.model_bytes, counts.trained), counts.prepared_bytes
    )
    unit, done = _done(counts)
    price = _dollars(counts, scenario, compute + transfer)
    return Cost(
        seconds=seconds,
        compute_seconds=compute,
        transfer_seconds=transfer,
        granularity=g,
        compute_share=compute_share(g),
        energy=energy,
        grams=energy.grams(scenario.grid),
        wasted_share=energy.wasted / of_clients if of_clients else 0.0,
        per_joule=done / energy.compute if energy.compute else math.nan,
        unit=unit,
        memory=memory,
        fits=memory <= scenario.device.memory,
        dollars=price,
        dollars_per_million=_per_million(price, counts.examples),
    )


class _Part(NamedTuple):
    """The clients that arrived, or those that dropped out."""

    compute: float  # seconds of all of them
    transfer: float
    energy: Energy


def _arrived(counts: Counts, scenario: Scenario) -> _Part:
    """Those whose upload arrived."""
    down = counts.bytes_down * (1 - counts.lost_share)
    work = (counts.flop or 0.0, counts.steps)
    return _part(counts, scenario, work, (down, counts.bytes_up), counts.clients)


def _lost(counts: Counts, scenario: Scenario) -> _Part:
    """Those that were sent the model, computed, and dropped out."""
    down = counts.bytes_down * counts.lost_share
    of_steps = counts.examples_lost / counts.examples if counts.examples else 0.0
    work = (counts.flop_lost or 0.0, counts.steps * of_steps)
    part = _part(
        counts, scenario, work, (down, 0.0), counts.clients_lost, arrives=False
    )
    return part


def _part(
    counts: Counts,
    scenario: Scenario,
    work: tuple[float, float],
    sent: tuple[float, float],
    messages: int,
    arrives: bool = True,
) -> _Part:
    """Seconds and joules of some participations, alike machines."""
    (flop, steps), (down, up) = work, sent
    compute = compute_seconds(
        scenario.device, flop, steps=steps, model_bytes=counts.model_bytes
    )
    if arrives:
        compute += _prepared(counts, scenario.device)
    transfer = transfer_seconds(scenario.link, down, up, messages=messages)
    energy = energy_of(
        scenario.link,
        watts=scenario.device.power,
        compute_seconds=compute,
        bytes_down=down,
        bytes_up=up,
        arrives=arrives,
    )
    if not counts.bytes_down and not counts.bytes_up:
        transfer = 0.0  # nothing travels, so nothing waits
    return _Part(compute, transfer, energy)


def _prepared(counts: Counts, device: Device) -> float:
    """Seconds of what clients computed once; a pass reads the weights once, a step twice."""
    return compute_seconds(
        device,
        counts.prepared_flop,
        steps=counts.prepared_passes / READS_A_STEP,
        model_bytes=counts.prepared_bytes,
    )


def _done(counts: Counts) -> tuple[str, int]:
    """What efficiency counts: tokens, or examples that are no text."""
    if counts.tokens:
        return "tokens", counts.tokens
    return "examples", counts.examples


def _dollars(counts: Counts, scenario: Scenario, seconds: float) -> float | None:
    """Of the clients' machines, while they work, and all that leaves a machine."""
    if scenario.cloud is None:
        return None
    return dollars(scenario.cloud, seconds, counts.bytes_down + counts.bytes_up)


def _per_million(price: float | None, examples: int) -> float | None:
    """Dollars for a million examples."""
    return None if price is None or not examples else price / examples * 1e6
