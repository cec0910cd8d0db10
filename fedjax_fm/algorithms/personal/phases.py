"""Two trainings of a client in one round, one after the other."""

from collections.abc import Callable
from typing import Any

import jax

from fedjax_fm import checks
from fedjax_fm.algorithms.local import ClientOptimizer, LocalTraining
from fedjax_fm.engine.data import n_steps
from fedjax_fm.types import Batches, ClientData, Tree


def second_training(
    local: LocalTraining,
    optimizer: ClientOptimizer | None,
    *,
    epochs: int | None,
    steps: int | None,
) -> LocalTraining:
    """The training of what is personal, beside that of what is shared.

    Args:
      local: of what is shared.
      optimizer: `personal_optimizer`; None: that of `local`.
      epochs: `personal_epochs`; None, with `steps`: as many as those of `local`.
      steps: `personal_steps`.

    Returns:
      A training of the same task.

    Raises:
      TypeError, ValueError: one of them makes no sense, or one counts epochs and the
        other steps.
    """
    if optimizer is not None:
        checks.client_optimizer("personal_optimizer", optimizer)
        local = local._replace(optimizer=optimizer)
    for name, count in (("personal_epochs", epochs), ("personal_steps", steps)):
        if count is not None:
            checks.whole(name, count, least=1)
    if epochs is None and steps is None:
        return local
    shared = local.batches
    wanted = (shared.epochs is None, shared.steps is None)
    if (epochs is None, steps is None) != wanted:
        raise ValueError(
            "expected personal_epochs beside epochs, or personal_steps beside "
            f"local_steps, got personal_epochs={epochs}, personal_steps={steps}, "
            f"epochs={shared.epochs}, local_steps={shared.steps}"
        )
    return local._replace(batches=Batches(shared.batch_size, epochs, steps))


def both(first: Batches, second: Batches) -> Batches:
    """The work of two trainings.

    Args:
      first: of one.
      second: of the other; counts what the first counts, epochs or steps.
    """
    if first.epochs is None:
        return first._replace(steps=(first.steps or 0) + (second.steps or 0))
    return first._replace(epochs=first.epochs + (second.epochs or 0))


def in_turn(first: Batches, data: ClientData) -> tuple[ClientData, ClientData]:
    """What each of two trainings sees; both walk from the first batch on.

    A straggler's steps are those of the first training.

    Args:
      first: the work of the first one.
      data: the client's, with the steps of both.
    """
    n_first = n_steps(data.n_examples, first, data.n_steps)
    n_second = data.n_steps - n_first
    return data._replace(n_steps=n_first), data._replace(n_steps=n_second)


def towards(center: Tree, penalty: float) -> Callable[[Tree, Tree], Tree]:
    """The gradient of penalty / 2 ||w - center||^2, for `train(correct=...)`.

    Args:
      center: a tree like w.
      penalty: its strength.

    Returns:
      `(gradients, w) -> gradients`.
    """

    def correct(gradients, w):
        def one(g, x, c):
            return g + penalty * (x - c)

        return jax.tree.map(one, gradients, w, center)

    return correct


def named(metrics: dict, prefix: str = "personal_") -> dict:
    """The metrics of the personal training, told apart from those of the shared one.

    Args:
      metrics: of a training.
      prefix: of their names.
    """
    return {f"{prefix}{name}": pair for name, pair in metrics.items()}


def starts_as_server(delta: Tree, key: jax.Array) -> Tree:
    """`Algorithm.client_init` of a client whose state is a model of its own.

    Args:
      delta: where the server starts.
      key: the client's.
    """
    return delta


def own_model(server: Any, own: Tree | None, backbone: Tree) -> tuple[Tree, Tree]:
    """`Algorithm.model` of a method whose client states are models.

    Args:
      server: its state has `delta`.
      own: of a client; None for the server.
      backbone: what is frozen.
    """
    return (server.delta if own is None else own), backbone
