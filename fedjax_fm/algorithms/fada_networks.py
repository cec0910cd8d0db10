"""The networks of FADA: what they compute, and small ones to begin with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.types import Tree

# Parts of the delta. The target has the first three, a source the first six.
EXTRACTOR, DISENTANGLER, CLASSIFIER = "extractor", "disentangler", "classifier"
CLASS_IDENTIFIER, ESTIMATOR, REBUILDER = "class_identifier", "estimator", "rebuilder"
DOMAIN_IDENTIFIER = "domain_identifier"
OF_TARGET = (EXTRACTOR, DISENTANGLER, CLASSIFIER)
OF_SOURCE = (*OF_TARGET, CLASS_IDENTIFIER, ESTIMATOR, REBUILDER)
PARTS = (*OF_SOURCE, DOMAIN_IDENTIFIER)


class FADANetworks(NamedTuple):
    """Functions of the parts of the delta, each of its own part.

    Attributes:
      extract: `(extractor, backbone, batch, key) -> f32[B, h]`, the features; the batch
        has no label.
      disentangle: `(disentangler, features f32[..., h]) -> (f32[..., d], f32[..., d])`,
        what all domains share, and what is the domain's own.
      classify: `(classifier, shared f32[..., d]) -> logits f32[..., K]`.
      identify_class: `(class_identifier, own f32[..., d]) -> logits f32[..., K]`.
      relate: `(estimator, shared f32[..., d], own f32[..., d]) -> f32[...]`, of the bound
        on their mutual information.
      rebuild: `(rebuilder, shared f32[..., d], own f32[..., d]) -> f32[..., h]`.
      identify_domain: `(domain_identifier, features f32[..., h]) -> f32[...]`, the logit
        of "from the source".
      n_features: h.
    """

    extract: Callable[[Tree, Tree, dict[str, jax.Array], Any], jax.Array]
    disentangle: Callable[[Tree, jax.Array], tuple[jax.Array, jax.Array]]
    classify: Callable[[Tree, jax.Array], jax.Array]
    identify_class: Callable[[Tree, jax.Array], jax.Array]
    relate: Callable[[Tree, jax.Array, jax.Array], jax.Array]
    rebuild: Callable[[Tree, jax.Array, jax.Array], jax.Array]
    identify_domain: Callable[[Tree, jax.Array], jax.Array]
    n_features: int

    def logits(
        self, delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any
    ) -> jax.Array:
        """The target's answers, for `tasks.from_logits`.

        Args:
          delta: with the parts of the target.
          backbone: what is frozen.
          batch: {column: [B, ...]}.
          key: for dropout; None: none.

        Returns:
          f32[B, K].
        """
        features = self.extract(delta[EXTRACTOR], backbone, batch, key)
        shared, _ = self.disentangle(delta[DISENTANGLER], features)
        return self.classify(delta[CLASSIFIER], shared)


def fada_networks(
    extract: Callable[[Tree, Tree, dict[str, jax.Array], Any], jax.Array],
    extractor: Tree,
    key: jax.Array,
    *,
    features: int,
    classes: int,
    width: int = 32,
) -> tuple[FADANetworks, dict[str, Tree]]:
    """Small networks behind an extractor: one hidden layer each, or none.

    The disentangler is two rectified layers, both classifiers are linear, estimator and
    domain identifier have a hidden layer of `width`, the rebuilder is linear.

    Args:
      extract: as `FADANetworks.extract`.
      extractor: its parameters, at their initial values.
      key: of the other initial values, N(0, 1 / inputs) and biases 0.
      features: h.
      classes: K.
      width: d, of shared and own features and of hidden layers.

    Returns:
      (networks, delta), for `fada` and `simulator.init`.

    Raises:
      TypeError, ValueError: a size is no whole number of at least 1.

    Example:
      >>> def extract(w, backbone, batch, key):
      ...     return batch["x"] @ w
      >>> w = jnp.ones((5, 4))
      >>> sizes = {"features": 4, "classes": 3}
      >>> networks, delta = fada_networks(extract, w, jax.random.key(0), **sizes)
      >>> networks.logits(delta, (), {"x": jnp.ones((2, 5))}, None).shape
      (2, 3)
    """
    checks.whole("features", features, least=1)
    checks.whole("classes", classes, least=1)
    checks.whole("width", width, least=1)
    keys = iter(jax.random.split(key, 9))

    def layer(n_in: int, n_out: int) -> dict[str, jax.Array]:
        kernel = jax.random.normal(next(keys), (n_in, n_out)) * n_in**-0.5
        return {"kernel": kernel, "bias": jnp.zeros(n_out)}

    delta = {
        EXTRACTOR: extractor,
        DISENTANGLER: {"shared": layer(features, width), "own": layer(features, width)},
        CLASSIFIER: layer(width, classes),
        CLASS_IDENTIFIER: layer(width, classes),
        ESTIMATOR: {"hidden": layer(2 * width, width), "out": layer(width, 1)},
        REBUILDER: layer(2 * width, features),
        DOMAIN_IDENTIFIER: {"hidden": layer(features, width), "out": layer(width, 1)},
    }
    networks = FADANetworks(
        extract=extract,
        disentangle=_disentangled,
        classify=_linear,
        identify_class=_linear,
        relate=_related,
        rebuild=_rebuilt,
        identify_domain=_one_hidden_layer,
        n_features=features,
    )
    return networks, delta


def _linear(layer: Tree, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]


def _one_hidden_layer(layers: Tree, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(_linear(layers["hidden"], x))
    return _linear(layers["out"], hidden)[..., 0]


def _disentangled(layers: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    shared = jax.nn.relu(_linear(layers["shared"], x))
    own = jax.nn.relu(_linear(layers["own"], x))
    return shared, own


def _related(layers: Tree, shared: jax.Array, own: jax.Array) -> jax.Array:
    return _one_hidden_layer(layers, jnp.concatenate([shared, own], axis=-1))


def _rebuilt(layer: Tree, shared: jax.Array, own: jax.Array) -> jax.Array:
    return _linear(layer, jnp.concatenate([shared, own], axis=-1))
