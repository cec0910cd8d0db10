"""A source's own step in FADA: classes, and features apart from each other."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm.algorithms.fada_losses import (
    masked_mean,
    mutual_information,
    negative_entropy,
)
from fedjax_fm.algorithms.fada_networks import (
    CLASS_IDENTIFIER,
    CLASSIFIER,
    DISENTANGLER,
    ESTIMATOR,
    EXTRACTOR,
    REBUILDER,
    FADANetworks,
)
from fedjax_fm.tasks.classification import cross_entropy
from fedjax_fm.types import Tree

# Which parts each of the paper's updates moves.
ALIGN = "align"
UPDATES = {
    ALIGN: (EXTRACTOR,),
    "classify": (EXTRACTOR, DISENTANGLER, CLASSIFIER, CLASS_IDENTIFIER),
    "confuse": (EXTRACTOR, DISENTANGLER),
    "separate": (DISENTANGLER, ESTIMATOR, REBUILDER),
}


class Strengths(NamedTuple):
    """What the terms of the loss count, beside the classes' cross-entropy."""

    alignment: float
    confusion: float
    separation: float
    reconstruction: float


class Rows(NamedTuple):
    """The rows of one step.

    Attributes:
      inputs: {column: [B, ...]}, without the label.
      labels: i32[B].
      mask: bool[B], the real rows.
      key: of the step.
    """

    inputs: dict[str, jax.Array]
    labels: jax.Array
    mask: jax.Array
    key: jax.Array


class SourceStep(NamedTuple):
    """The updates of a source that need nobody else."""

    networks: FADANetworks
    optimizer: optax.GradientTransformation
    strengths: Strengths

    def first_moments(self, parts: dict[str, Tree]) -> dict[str, Any]:
        """The optimizer's states, one for each update."""
        return {
            name: self.optimizer.init(chosen(parts, names))
            for name, names in UPDATES.items()
        }

    def features(self, extractor: Tree, backbone: Tree, rows: Rows) -> jax.Array:
        """f32[B, h] of the rows' inputs."""
        return self.networks.extract(extractor, backbone, rows.inputs, rows.key)

    def updated(
        self, name: str, parts: Tree, moments: Tree, gradients: Tree
    ) -> tuple[Tree, Tree]:
        """Parts and moments after one of the updates."""
        own = chosen(parts, UPDATES[name])
        changes, after = self.optimizer.update(gradients, moments[name], own)
        moved: Any = optax.apply_updates(own, changes)
        return {**parts, **moved}, {**moments, name: after}

    def run(
        self, parts: Tree, moments: Tree, backbone: Tree, rows: Rows
    ) -> tuple[Tree, Tree, jax.Array]:
        """Classes, then their confusion, then separation, one after the other.

        Returns:
          (parts, moments, the cross-entropy of the rows before).
        """

        def classify(own):
            return self._classes(own, backbone, rows)

        own = chosen(parts, UPDATES["classify"])
        gradients, loss = jax.grad(classify, has_aux=True)(own)
        parts, moments = self.updated("classify", parts, moments, gradients)

        def confuse(own):
            return self._confusion({**parts, **own}, backbone, rows)

        gradients = jax.grad(confuse)(chosen(parts, UPDATES["confuse"]))
        parts, moments = self.updated("confuse", parts, moments, gradients)
        gradients = self._separation(parts, backbone, rows)
        parts, moments = self.updated("separate", parts, moments, gradients)
        return parts, moments, loss

    def _classes(self, own: Tree, backbone: Tree, rows: Rows):
        """Equation 6: both features are to tell the class."""
        shared, apart = self._both(own, backbone, rows)
        by_shared = self.networks.classify(own[CLASSIFIER], shared)
        by_own = self.networks.identify_class(own[CLASS_IDENTIFIER], apart)
        losses = cross_entropy(by_shared, rows.labels)
        loss = masked_mean(losses, rows.mask)
        beside = masked_mean(cross_entropy(by_own, rows.labels), rows.mask)
        return loss + beside, loss

    def _confusion(self, parts: Tree, backbone: Tree, rows: Rows) -> jax.Array:
        """Equation 7: the domain's own feature is to say nothing of the class."""
        _, apart = self._both(parts, backbone, rows)
        logits = self.networks.identify_class(parts[CLASS_IDENTIFIER], apart)
        return self.strengths.confusion * negative_entropy(logits, rows.mask)

    def _separation(self, parts: Tree, backbone: Tree, rows: Rows) -> Tree:
        """Equation 8, for the bound's estimator upwards; and the reconstruction."""
        features = self.features(parts[EXTRACTOR], backbone, rows)

        def information(own):
            shared, apart = self.networks.disentangle(own[DISENTANGLER], features)
            scores = self.networks.relate(own[ESTIMATOR], *_pairs(shared, apart))
            bound = mutual_information(scores, rows.mask)
            return self.strengths.separation * bound

        def distance(own):
            both = self.networks.disentangle(own[DISENTANGLER], features)
            rebuilt = self.networks.rebuild(own[REBUILDER], *both)
            squares = ((rebuilt - features) ** 2).mean(axis=-1)
            return self.strengths.reconstruction * masked_mean(squares, rows.mask)

        own = chosen(parts, UPDATES["separate"])
        down = jax.grad(information)(own)
        up = jax.tree.map(lambda x: -x, down[ESTIMATOR])
        return jax.tree.map(
            lambda a, b: a + b, {**down, ESTIMATOR: up}, jax.grad(distance)(own)
        )

    def _both(self, parts: Tree, backbone: Tree, rows: Rows):
        """The two features of the rows."""
        features = self.features(parts[EXTRACTOR], backbone, rows)
        return self.networks.disentangle(parts[DISENTANGLER], features)


def chosen(parts: dict[str, Tree], names: tuple[str, ...]) -> dict[str, Tree]:
    """Some of the parts, by their names.

    Args:
      parts: of the delta.
      names: of those to take.
    """
    return {name: parts[name] for name in names}


def _pairs(shared: jax.Array, apart: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every row of one beside every row of the other, both f32[B, B, d]."""
    square = (len(shared), len(shared))
    rows = jnp.broadcast_to(shared[:, None], (*square, shared.shape[-1]))
    columns = jnp.broadcast_to(apart[None], (*square, apart.shape[-1]))
    return rows, columns
