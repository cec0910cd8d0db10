"""Which leaves of the trainable tree stay with their client, by their paths."""

from typing import NamedTuple, cast

import jax

from fedjax_fm import trees
from fedjax_fm.algorithms.local import LocalTraining, Sums
from fedjax_fm.peft.patterns import (
    Targets,
    check_targets,
    entries,
    matches,
    refuse_unmatched,
)
from fedjax_fm.types import ClientData, Task, Tree

Leaves = dict[str, jax.Array]  # {dotted path: leaf}


class PersonalPart(NamedTuple):
    """The leaves that `personal` names, and the others.

    Attributes:
      targets: a regular expression that is searched in a leaf's dotted path, a list of
        endings of paths, or a function of the path.
    """

    targets: Targets

    def own(self, tree: Tree) -> Leaves:
        """The leaves that are personal.

        Args:
          tree: the trainable tree.
        """
        return {
            path: leaf
            for path, leaf in _by_path(tree).items()
            if matches(path, self.targets)
        }

    def shared(self, tree: Tree) -> Leaves:
        """The leaves that all clients share.

        Args:
          tree: the trainable tree.
        """
        own = self.own(tree)
        return {path: x for path, x in _by_path(tree).items() if path not in own}

    def check(self, delta: Tree, *, all_may_be: bool = False) -> None:
        """Refuses names that divide this tree in no two parts.

        Args:
          delta: the trainable tree.
          all_may_be: whether the names may be those of all leaves.

        Raises:
          ValueError: a name of no leaf, or the names of all.
        """
        leaves = _by_path(delta)
        paths = list(leaves)
        if len(paths) != len(jax.tree.leaves(delta)):
            raise ValueError(
                "expected a delta whose leaves have paths of their own, got "
                f"{trees.described(delta, most=12)}"
            )
        unmatched = [
            entry
            for entry in entries(self.targets)
            if not any(matches(path, entry) for path in paths)
        ]
        hint = " (without personal leaves it is fedavg)."
        refuse_unmatched("personal", unmatched, "leaf of the delta", paths, hint)
        if not all_may_be and not self.shared(delta):
            raise ValueError(
                f"personal={self.targets!r} names all leaves of the delta, "
                f"{trees.described(delta, most=12)}: nothing would be shared; that is "
                "local_only"
            )


def personal_part(personal: Targets) -> PersonalPart:
    """The part of that name, if it can be one.

    Args:
      personal: a regular expression that is searched in a leaf's dotted path, a list of
        endings of paths, or a function of the path.

    Returns:
      The part.

    Raises:
      TypeError, ValueError: it names nothing, whatever the delta.

    Example:
      >>> import numpy as np
      >>> part = personal_part(r"^head")
      >>> delta = {"body": {"w": np.ones(2)}, "head": {"w": np.ones(3)}}
      >>> list(part.own(delta)), list(part.shared(delta))
      (['head.w'], ['body.w'])
    """
    targets = cast(Targets, check_targets("personal", personal))
    if not callable(targets) and not targets:
        raise ValueError(
            f"expected personal to name leaves of the delta, got personal={personal!r}"
        )
    return PersonalPart(targets)


def put(tree: Tree, leaves: Leaves) -> Tree:
    """The tree with these leaves in the place of its own.

    Args:
      tree: any.
      leaves: by dotted path.
    """

    def one(path, leaf):
        return leaves.get(trees.path_of(path), leaf)

    return jax.tree.map_with_path(one, tree)


def train_leaves(
    local: LocalTraining,
    tree: Tree,
    leaves: Leaves,
    backbone: Tree,
    data: ClientData,
    *,
    key: jax.Array,
) -> tuple[Leaves, Sums]:
    """Local steps on some leaves of a tree; the others are not differentiated.

    Args:
      local: task of the whole tree, optimizer.
      tree: the trainable tree.
      leaves: of it, where they start.
      backbone: what is frozen.
      data: the client's, as the engine gives it.
      key: the client's.

    Returns:
      (leaves, metrics), as `train`.
    """
    task = local.task

    def loss(leaves, backbone, batch, key):
        return task.loss(put(tree, leaves), backbone, batch, key)

    part = local._replace(task=Task(loss, task.weight))
    return part.run(leaves, backbone, data, key)


def _by_path(tree: Tree) -> Leaves:
    return {trees.path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
