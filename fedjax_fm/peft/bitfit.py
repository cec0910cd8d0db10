"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models.

Ben Zaken, Ravfogel, Goldberg, 2021, arXiv 2106.10199. Only bias vectors are trained: of
query, key, value, output, feed-forward and normalisation; or only those of the query
and of the widening half of the feed-forward network.
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
    """Trains the biases, and the modules of `modules_to_save`.

    By default the head, where the model has one.

    Args:
      which: "all", or "query-ffn" for the query's and the widening feed-forward layer's
        (section 4 of the paper).

    Raises:
      ValueError: by `apply`, on a model that has no such bias (LLaMA, T5).
    """
    choice("which", which, ("all", "query-ffn"))
    check_names("modules_to_save", modules_to_save)

    def install(model: nnx.Module, key: jax.Array) -> set[tuple]:
        plain, heads = plain_names(model), head_paths(model, modules_to_save)
        biases = {path for path in parameter_paths(model) if path[-1] == "bias"} - heads
        if which == "query-ffn":
            biases = {
                path
                for path in biases
                if matches(plain(".".join(path[:-1])), QUERY_AND_WIDENING)
            }
        if not biases:
            kinds = sorted({path[-1] for path in parameter_paths(model)})
            raise ValueError(
                f"{type(model).__name__} has no bias to train ({which!r}) outside "
                f"of its head; its parameters are {', '.join(kinds)}"
            )
        return biases | heads

    return Method("bitfit", install)
