"""A pretrained encoder that tells two classes of sentences apart, whole or with LoRA."""

from typing import Any

import jax

from fedjax_fm import models, peft


def classifier(name: str, seed: int, **how: Any) -> Any:
    """The encoder with a head of random values on the mean of the tokens.

    Args:
      name: of the model.
      seed: of the head.
      **how: more for `models.from_pretrained`.
    """
    return models.from_pretrained(name, num_labels=2, pooling="mean", seed=seed, **how)


def with_lora(
    model: Any, rank: int, seed: int, targets: str = r"query|value"
) -> peft.Adapted:
    """A model of which factors of a rank and the head are trained.

    Args:
      model: a classifier.
      rank: r; alpha is 2 r.
      seed: of the factors.
      targets: of LoRA.
    """
    method = peft.lora(rank, 2.0 * rank, targets=targets)
    return peft.apply(model, method, jax.random.key(seed))
