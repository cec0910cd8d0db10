"""A model split for training, as `peft.apply` gives it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from flax import nnx

from fedjax_fm.types import Tree


class Adapted(NamedTuple):
    """A model in three parts; it unpacks into `graphdef, delta, backbone`.

    Attributes:
      graphdef: the model's structure, without arrays.
      delta: what is trained and sent, at its initial values.
      backbone: all the rest, frozen.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import peft
      >>> adapted = peft.apply(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), peft.bitfit())
      >>> [leaf.shape for leaf in jax.tree.leaves(adapted.delta)]
      [(2,)]
      >>> adapted.model()(jnp.ones((3, 4))).shape
      (3, 2)
    """

    graphdef: nnx.GraphDef
    delta: nnx.State
    backbone: nnx.State

    def model(self, delta: Tree | None = None, backbone: Tree | None = None) -> Any:
        """The model with these parts in the place of the initial ones.

        Args:
          delta: such as `state.delta`; default: as it was before training.
          backbone: such as `simulator.model(state)` gives; default: as it came.

        Returns:
          The module, for example to call it or to generate text with it.
        """
        delta = self.delta if delta is None else delta
        backbone = self.backbone if backbone is None else backbone
        return nnx.merge(self.graphdef, delta, backbone)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        delta: Tree | None = None,
        *,
        base_model_name_or_path: str | None = None,
        task_type: str | None = None,
    ) -> None:
        """Writes the trained part in Hugging Face PEFT's format.

        Args:
          folder: appears whole or not at all.
          delta: such as `state.delta`; default: as it was before training.
          base_model_name_or_path, task_type: as for `peft.save_pretrained`.

        Raises:
          ValueError: what is trained has no place in the format.
        """
        from fedjax_fm.peft.folder import save_pretrained

        save_pretrained(
            folder,
            self.graphdef,
            self.delta if delta is None else delta,
            self.backbone,
            base_model_name_or_path=base_model_name_or_path,
            task_type=task_type,
        )
