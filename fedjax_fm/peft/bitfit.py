"""BitFit: trains the bias vectors only.

References:
  Ben Zaken, Ravfogel, Goldberg (2021). BitFit: Simple Parameter-efficient Fine-tuning
  for Transformer-based Masked Language-models. arXiv 2106.10199.
"""

from typing import Literal

import jax
from flax import nnx

from fedjax_fm.checks import choice
from fedjax_fm.peft.method import Method, head_paths, parameter_paths
from fedjax_fm.peft.patterns import HEADS, check_names, matches
from fedjax_fm.peft.targets import plain_names

# Query projections and first feed-forward matrices, as Hugging Face names them.
QUERY_AND_WIDENING = (
    *("query", "q_proj", "q_lin", "q", "c_attn"),
    *(
        "intermediate.dense",
        "gate_proj",
        "up_proj",
        "ffn.lin1",
        "ffn",
        "wi",
        "wi_0",
        "wi_1",
        "c_fc",
        "fc1",
    ),
)


def bitfit(
    which: Literal["all", "query-ffn"] = "all",
    *,
    modules_to_save: tuple[str, ...] | list[str] = HEADS,
) -> Method:
    """BitFit: trains the biases of all layers, and the head.

    Args:
      which: "all" trains every bias: of query, key, value, output, feed-forward network
        and normalisation. "query-ffn" trains those of the query and of the widening
        layer of the feed-forward network (section 4 of the paper).
      modules_to_save: modules that are trained in full; by default the head, where the
        model has one.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: an argument makes no sense; by `apply`, for a model that
        has no such bias (LLaMA, T5).

    References:
      Ben Zaken, Ravfogel, Goldberg (2021), arXiv 2106.10199.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_fm import peft
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Dict(
      ...     body=nnx.Linear(4, 8, rngs=rngs), score=nnx.Linear(8, 2, rngs=rngs)
      ... )
      >>> adapted = peft.apply(model, bitfit())
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(adapted.delta))
      {'body': {'bias': (8,)}, 'score': {'bias': (2,), 'kernel': (8, 2)}}
    """
    choice("which", which, ("all", "query-ffn"))
    check_names("modules_to_save", modules_to_save)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        plain, heads = plain_names(model), head_paths(model, modules_to_save)
        biases = {path for path in parameter_paths(model) if path[-1] == "bias"} - heads
        if which == "query-ffn":
            owners = {path: plain(".".join(path[:-1])) for path in biases}
            biases = {
                path
                for path, owner in owners.items()
                if matches(owner, QUERY_AND_WIDENING)
            }
        if not biases:
            kinds = sorted({path[-1] for path in parameter_paths(model)})
            raise ValueError(
                f"{type(model).__name__} has no bias to train ({which!r}) outside "
                f"of its head; its parameters are {', '.join(kinds)}"
            )
        return biases | heads

    return Method("bitfit", install)
