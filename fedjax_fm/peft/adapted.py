"""A model that is split for training, as `peft.apply` returns it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from flax import nnx

from fedjax_fm.types import Tree


class Adapted(NamedTuple):
    """A model in three parts; it unpacks into `graphdef, delta, backbone`.

    Attributes:
      graphdef: the model's structure, without arrays.
      delta: the trainable part, at its initial values.
      backbone: the frozen part.

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
        """Puts the model together again.

        Args:
          delta: for example `state.delta`; default: the values before training.
          backbone: for example that of `simulator.model(state)`; default: the model's.

        Returns:
          The module, which can be called or can generate text.
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
          folder: where it is written; it appears whole or not at all.
          delta: for example `state.delta`; default: the values before training.
          base_model_name_or_path: as for `peft.save_pretrained`.
          task_type: as for `peft.save_pretrained`.

        Raises:
          ValueError: the format cannot hold what is trained.
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
