"""FADA: Federated Adversarial Domain Adaptation.

Peng, Huang, Zhu, Saenko, 2020, arXiv 1911.02054. Sources k with labels, and one target
without: each source keeps an extractor G_k, a disentangler D_k, a classifier C_k and
three networks more; the target, G, D and C. For each step i of a round:

    all      G_k(x) of a batch                                     features up
    server   DI_k <- DI_k - grad telling(DI_k(G_k(x)), DI_k(G(x)))
    source   G_k <- along d confusing / d G_k(x)                   gradients down
             G_k, D_k, C_k, ... <- classes, confusion, separation  (`fada_source`)
    target   G <- along sum_k d confusing / d G(x)                 gradients down

and after the steps:

    source   u_k, the round's change of (G_k, D_k, C_k)            u_k up
    target   I_k, by how much u_k tightens its clusters            all u_k down, I_k up
    server   alpha = softmax(I);  (G, D, C) <- (G, D, C) + sum_k alpha_k u_k
"""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks
from fedjax_fm.algorithms.fada_exchanges import exchanges_of
from fedjax_fm.algorithms.fada_networks import (
    DOMAIN_IDENTIFIER,
    OF_SOURCE,
    OF_TARGET,
    PARTS,
    FADANetworks,
)
from fedjax_fm.algorithms.fada_parts import FADAClient, FADAMethod, FADAState
from fedjax_fm.algorithms.fada_source import SourceStep, Strengths, chosen
from fedjax_fm.algorithms.losses import check_trainable
from fedjax_fm.types import Algorithm, Batches

Begin = Literal["own", "target"]


def fada(
    networks: FADANetworks,
    client_optimizer: optax.GradientTransformation,
    identifier_optimizer: optax.GradientTransformation,
    *,
    target: int,
    clusters: int,
    cluster_steps: int = 10,
    temperature: float = 1.0,
    alignment: float = 1.0,
    confusion: float = 1.0,
    separation: float = 1.0,
    reconstruction: float = 1.0,
    begin: Begin = "own",
    label: str = "label",
    local_steps: int,
    batch_size: int,
) -> Algorithm:
    """Adapts a model to a client without labels, from clients of other domains.

    Sends, with features of h numbers and batches of B rows: each step B h numbers and B
    bits up and B h numbers down for every client; each round the changes of G, D and C
    up from every source, all of them down to the target and its N numbers up, beside
    its own G, D and C down and its change of G up. Examples and labels stay where they
    are. The target's labels are never read, and of a source's only its own losses know.

    Features and their gradients tell of the examples: this is no private method.

    The paper gives the target an extractor and a classifier. The classifier reads what
    the disentangler makes of the features, so here the target has that, too. The gain
    of a source is I before its update less I after it, on the round's batches of the
    target, divided by their number of rows; the paper leaves the scale open.

    Args:
      networks: of `fada_networks`, or one's own.
      client_optimizer: of optax, of all parts; a client keeps its state. Each loss is a
        step of its own: behind Adam, which rescales gradients, its strength hardly
        matters.
      identifier_optimizer: of the domain identifiers, at the server.
      target: the client whose labels are not read.
      clusters: k of the gap statistic's k-means, such as the number of classes.
      cluster_steps: of Lloyd's algorithm.
      temperature: of the softmax over gains.
      alignment: of the extractors' adversarial loss (equation 5).
      confusion: of the class identifier's entropy (equation 7).
      separation: of the mutual information (equation 8).
      reconstruction: of the features' reconstruction.
      begin: with what sources begin a round. "own" is algorithm 1, in which nothing is
        sent back to them: from random weights their models drift apart, and what is
        added up is then worth nothing. "target" sends each of them the target's G, D
        and C, as FedAvg does with its model.
      label: the column of class numbers.
      local_steps: steps a round.
      batch_size: B, rows a step.

    Returns:
      An algorithm whose server state is `FADAState`, with `FADAClient` for the clients,
      for `simulator.init(delta)` with all of `fada_networks`' parts. The metrics
      `attention_0` and so on are alpha by client, 0 for the target. A source that does
      not arrive weighs nothing; without the target nothing is adapted.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; in `init`,
        parts that are missing, or a target that is no client.

    References:
      Peng et al. 2020, arXiv 1911.02054, algorithm 1.

    Example:
      >>> import fedjax_fm as ffm
      >>> from fedjax_fm.algorithms import fada_networks
      >>> def extract(w, backbone, batch, key):
      ...     return batch["x"] @ w
      >>> sizes = {"features": 2, "classes": 2, "width": 4}
      >>> networks, delta = fada_networks(extract, jnp.eye(2), jax.random.key(0), **sizes)
      >>> sgd = optax.sgd(0.1)
      >>> how = {"target": 2, "clusters": 2, "local_steps": 2, "batch_size": 4}
      >>> method = fada(networks, sgd, sgd, **how)
      >>> client = {"x": jnp.eye(2), "label": jnp.arange(2)}
      >>> population = ffm.Population.from_clients([client] * 3)
      >>> simulator = ffm.Simulator(method, population, cohort_size=3)
      >>> state, metrics = simulator.run(simulator.init(delta), 2)
      >>> sum(float(metrics[f"attention_{k}"][-1]) for k in range(3))
      1.0
    """
    for name, optimizer in (
        ("client_optimizer", client_optimizer),
        ("identifier_optimizer", identifier_optimizer),
    ):
        kind = optax.GradientTransformation
        checks.instance(name, optimizer, kind, "write for example optax.adam(1e-3)")
    checks.instance("networks", networks, FADANetworks, "make them by fada_networks")
    checks.whole("n_features", networks.n_features, least=1)
    checks.whole("target", target, least=0)
    checks.whole("clusters", clusters, least=1)
    checks.whole("cluster_steps", cluster_steps, least=0)
    checks.real("temperature", temperature, above=0)
    checks.text("label", label)
    strengths = Strengths(
        alignment=checks.real("alignment", alignment, least=0),
        confusion=checks.real("confusion", confusion, least=0),
        separation=checks.real("separation", separation, least=0),
        reconstruction=checks.real("reconstruction", reconstruction, least=0),
    )
    method = FADAMethod(
        networks=networks,
        source=SourceStep(networks, client_optimizer, strengths),
        identifier_optimizer=identifier_optimizer,
        target=target,
        begin=checks.choice("begin", begin, get_args(Begin)),
        label=label,
        clusters=clusters,
        cluster_steps=cluster_steps,
        temperature=temperature,
        local_steps=local_steps,
        batches=Batches(batch_size, steps=local_steps).checked(),
    )
    return Algorithm(
        init=partial(_init, method),
        exchanges=exchanges_of(method),
        client_init=partial(_client_init, method),
    )


def _init(method: FADAMethod, delta, key, setting) -> FADAState:
    """Nothing seen yet."""
    missing = [name for name in PARTS if name not in delta]
    if missing:
        raise ValueError(
            f"fada needs the parts {', '.join(PARTS)} in its delta, as fada_networks "
            f"makes them; missing: {', '.join(missing)}"
        )
    n = setting.n_clients
    if method.target >= n:
        raise ValueError(
            f"expected target to be one of {n} clients, 0 to {n - 1}, got "
            f"target={method.target}"
        )
    check_trainable(delta)
    rows = (n, method.batches.batch_size)
    zeros = jnp.zeros((*rows, method.networks.n_features))

    def for_each(leaf):
        return jnp.stack([leaf] * n)

    identifiers = jax.tree.map(for_each, delta[DOMAIN_IDENTIFIER])
    return FADAState(
        delta=delta,
        identifiers=identifiers,
        optimizer=jax.vmap(method.identifier_optimizer.init)(identifiers),
        features=zeros,
        real=jnp.zeros(rows, bool),
        gradients=zeros,
        changes=jax.tree.map(
            lambda x: jnp.zeros((n, *x.shape), x.dtype), chosen(delta, OF_TARGET)
        ),
        present=jnp.zeros(n, bool),
        attention=jnp.zeros(n),
    )


def _client_init(method: FADAMethod, delta, key) -> FADAClient:
    parts = chosen(delta, OF_SOURCE)
    return FADAClient(
        parts=parts,
        start=chosen(parts, OF_TARGET),
        moments=method.source.first_moments(parts),
    )
