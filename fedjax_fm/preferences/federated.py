"""Federated policy optimization: clients write answers and learn from them.

client:  w_k <- w;  for each batch of prompts:
             answers, rewards and advantages under w_k
             inner_epochs steps: w_k <- w_k - eta grad objective(w_k)
         sends w - w_k
server:  w <- w - server_optimizer(sum_k p_k (w - w_k)), as FedAvg
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import ClientOptimizer, optimizer_of, over_steps
from fedjax_fm.algorithms.losses import check_trainable
from fedjax_fm.preferences.objective import (
    PolicyObjective,
    Terms,
    checked_objective,
    on_policy,
)
from fedjax_fm.types import Algorithm, ClientOutput, Tree


def federated_policy(
    objective: PolicyObjective,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    inner_epochs: int = 1,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Algorithm:
    """FedAvg of clients that learn from each batch of answers several times.

    All answers of a batch are in each inner step. The loss of a batch is one sum over
    another, over its real rows: with a normalisation by tokens each token of the batch
    counts the same. Clients count by their prompts.

    Sends: as `fedavg`. Answers, rewards and prompts stay with the client.

    Args:
      objective: such as `grpo(...)` or `ppo(...)`.
      client_optimizer: starts afresh each round.
      server_optimizer: applied to the mean of (start - end); None means
        `optax.sgd(1.0)`.
      inner_epochs: steps of the optimizer with the answers of a batch, at least 1.
      epochs: full passes over a client's prompts; give this or `local_steps`.
      local_steps: batches of prompts.
      batch_size: prompts of a batch.

    Returns:
      An algorithm whose server state is `FedAvgState`. Metrics are those of the
      objective at the first inner step, and `last_clipped`, of the last one.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds.

    References:
      McMahan et al. 2017, arXiv 1602.05629, algorithm 1; Schulman et al. 2017, arXiv
      1707.06347, algorithm 1.

    Example:
      >>> import numpy as np, fedjax_fm as ffm
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft, preferences
      >>> config = models.LlamaConfig(
      ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
      ...     num_attention_heads=2,
      ... )
      >>> model = models.LlamaForCausalLM(config, rngs=nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> reward, how = preferences.length_reward, preferences.writing(3, eos_token_id=2)
      >>> objective = preferences.grpo(adapted, reward, how, group=2)
      >>> method = federated_policy(
      ...     objective, optax.sgd(0.1), inner_epochs=2, local_steps=1, batch_size=2
      ... )
    """
    objective = checked_objective(objective)
    checks.whole("inner_epochs", inner_epochs, least=1)
    plain = fedavg(
        on_policy(objective),
        client_optimizer,
        server_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    (exchange,) = plain.exchanges

    def client(backbone, message):
        def one(start, state, data, key):
            check_trainable(start)
            optimizer = optimizer_of(client_optimizer, data.round)
            learns = _Learner(objective, optimizer, backbone, inner_epochs)

            def step(i, carry):
                batch, mask = data.batch(i)
                step_key = jax.random.fold_in(key, i)
                return learns.step(carry, batch, mask, step_key)

            carry = (start, optimizer.init(start))
            shapes = jax.eval_shape(step, jnp.int32(0), carry)[1]
            (trained, _), sums = over_steps(data, step, carry, shapes)
            return ClientOutput(
                upload=trees.subtract(start, trained),
                weight=data.n_examples.astype(jnp.float32),
                state=state,
                metrics=sums,
            )

        return one

    return plain._replace(exchanges=(exchange._replace(client=client),))


class _Learner:
    """One local step: answers, and several steps of the optimizer with them."""

    def __init__(
        self,
        objective: PolicyObjective,
        optimizer: optax.GradientTransformation,
        backbone: Tree,
        inner_epochs: int,
    ):
        self.objective, self.optimizer = objective, optimizer
        self.backbone, self.inner_epochs = backbone, inner_epochs

    def step(self, carry: Any, batch: dict[str, jax.Array], mask: jax.Array, key: Any):
        """(carry, metrics as sums and counts)."""
        drawn, dropped = jax.random.split(key)
        delta = carry[0]
        collect = self.objective.collect
        experience = collect(delta, self.backbone, batch, mask, drawn)
        experience = jax.lax.stop_gradient(experience)

        def inner(carry, number):
            own = dropped if self.inner_epochs == 1 else _folded(dropped, number)
            return self._improve(carry, experience, mask, own)

        carry, metrics = jax.lax.scan(inner, carry, jnp.arange(self.inner_epochs))
        sums = jax.tree.map(lambda x: x[0], metrics)
        if "clipped" in metrics:
            sums["last_clipped"] = jax.tree.map(lambda x: x[-1], metrics["clipped"])
        return carry, sums

    def _improve(self, carry: Any, experience: Tree, mask: jax.Array, key: Any):
        """One step of the optimizer."""
        delta, moments = carry

        def loss(delta: Tree):
            learn = self.objective.learn
            terms = learn(delta, self.backbone, experience, key)
            return _batch_loss(terms, mask)

        gradients, sums = jax.grad(loss, has_aux=True)(delta)
        updates, moments = self.optimizer.update(gradients, moments, delta)
        return (optax.apply_updates(delta, updates), moments), sums


def _folded(key: jax.Array, number: jax.Array) -> jax.Array:
    """The key of an inner step."""
    return jax.random.fold_in(key, number)


def _batch_loss(terms: Terms, mask: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """The loss of a batch's real rows, and metrics as (sum, count)."""
    total = jnp.sum(terms.total, where=mask)
    count = jnp.sum(terms.count, where=mask)
    n_rows = jnp.sum(mask, dtype=jnp.float32)
    loss = total / jnp.maximum(count, 1)
    sums = {
        name: (jnp.sum(values, where=mask, dtype=jnp.float32), n_rows)
        for name, values in terms.metrics.items()
    }
    return loss, {"loss": (loss * n_rows, n_rows), **sums}
