"""What no number of the package, of distillation and of emulators may be."""

import jax.numpy as jnp
import pytest
from bad_values import Row, cases, is_refused, unlisted
from flax import nnx

from fedjax_fm import models, peft, sparsity, tasks


def model(delta, backbone, batch, key):
    return tasks.Outputs(batch["x"])


BERT = models.BertModel(
    models.BertConfig(
        vocab_size=9,
        hidden_size=4,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=4,
    ),
    nnx.Rngs(0),
)
X = {"x": jnp.ones((2, 4)), "n": 2, "m": 4}
ROWS = (
    Row(sparsity.cubic, {"final_sparsity": 0.5, "first": 0, "last": 4}, {
        "final_sparsity": "real", "initial_sparsity": "real", "first": "whole", "last": "whole", "every": "whole",
    }),
    Row(sparsity.cosine_share, {"share": 0.15, "last": 4}, {"share": "real", "last": "whole"}),
    Row(sparsity.kept_count, {"density": 0.5, "n": 4}, {"density": "real", "n": "whole"}),
    Row(sparsity.iterated_counts, {"rate": 0.2, "n": 4, "times": 2}, {"rate": "real", "n": "whole", "times": "whole"}),
    Row(sparsity.top_masks, {"scores": {"w": jnp.ones(3)}, "density": 0.5}, {"density": "real", "scope": "choice"}),
    Row(sparsity.sigmoid_masks, {"scores": {"w": jnp.ones(3)}, "threshold": 0.5}, {"threshold": "real"}),
    Row(sparsity.vector_wise_mask, X, {"n": "whole", "m": "whole"}),
    Row(sparsity.pack_vector_wise, X, {"n": "whole", "m": "whole"}),
    Row(tasks.soft_targets, {"student": jnp.ones(3), "teacher": jnp.ones(3)}, {"temperature": "real"}),
    Row(tasks.mutual_information, {}, {"alpha": "real", "temperature": "real"}),
    Row(tasks.distilled, {"student": model, "teacher": model}, {
        "share": "real", "temperature": "real", "features": "real",
    }),
    Row(peft.emulated, {"model": BERT, "first": 1, "last": 1}, {
        "first": "whole", "last": "whole", "dropped": "real", "rounding": "choice",
    }),
    Row(models.shrunk, {"model": BERT, "masks": {}}, {"filled": "flag"}),
)  # fmt: skip


@pytest.mark.parametrize(("row", "parameter", "value"), cases(ROWS))
def test_a_bad_value_is_refused_by_its_name(row, parameter, value):
    is_refused(row, parameter, value)


def test_none_is_forgotten():
    known = {row.make for row in ROWS}
    missing = unlisted(known, ROWS)
    # Axes are numbers of numpy's, which says what is wrong with them.
    assert [name for name in missing if "axis" not in name] == []
