"""lora-minilm: what a PEFT user does first: LoRA and a classifier on a small BERT.

all-MiniLM-L6-v2's shapes (d = 384, 6 layers, 12 heads, vocabulary 30522, 22.7 M
parameters) with random weights, under Hugging Face's names; rank 8 on `query` and
`value`, classifier of two classes trained too; 64 clients x 2 steps x batch 8 x 32
tokens, of which 8 to 32 are real. Each client has 8 examples, so that both sides see
the same batches.
"""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import save_file

import fedjax_fm as ffm
from fedjax_fm.experiments.bench.workload import (
    Data,
    Workload,
    fedavg,
    normal,
    product_flop,
    seeded,
)

BATCH, ALPHA, CLASSES, TARGETS = 8, 16, 2, ("query", "value")


def make(
    n_clients: int,
    length: int,
    vocabulary: int,
    d: int,
    n_layers: int,
    n_heads: int,
    rank: int = 8,
) -> Data:
    """Random texts and weights.

    `start` holds the factors of all layers stacked, "bert.query.lora_a" is [L, d, r],
    and the classifier's kernel as [d, classes]; its names sort as the leaves of our
    tree do.
    """
    rng = seeded("lora-minilm")
    frozen = {"n_heads": np.int64(n_heads), "alpha": np.int64(ALPHA)}
    for name, rows in {
        "word": vocabulary,
        "position": max(length, 64),
        "token_type": 2,
    }.items():
        frozen[f"bert.embeddings.{name}_embeddings.weight"] = normal(
            rng, rows, d, scale=0.02
        )
    norms = ["bert.embeddings.LayerNorm"]
    linears = {"bert.pooler.dense": (d, d)}
    for layer in range(n_layers):
        at = f"bert.encoder.layer.{layer}"
        linears |= {
            f"{at}.attention.self.{name}": (d, d) for name in ("query", "key", "value")
        }
        linears |= {f"{at}.attention.output.dense": (d, d)}
        linears |= {
            f"{at}.intermediate.dense": (4 * d, d),
            f"{at}.output.dense": (d, 4 * d),
        }
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name, shape in linears.items():
        frozen |= {
            f"{name}.weight": normal(rng, *shape, scale=0.02),
            f"{name}.bias": np.zeros(shape[0], np.float32),
        }
    for name in norms:
        frozen |= {
            f"{name}.weight": np.ones(d, np.float32),
            f"{name}.bias": np.zeros(d, np.float32),
        }
    start = {
        "classifier.bias": np.zeros(CLASSES, np.float32),
        "classifier.kernel": normal(rng, d, CLASSES, scale=0.02),
    }
    for name in TARGETS:
        start[f"bert.{name}.lora_a"] = normal(rng, n_layers, d, rank, scale=d**-0.5)
        start[f"bert.{name}.lora_b"] = normal(
            rng, n_layers, rank, d, scale=0.02
        )  # else A's first gradient is zero
    n = n_clients * BATCH
    real = rng.integers(min(8, length), length + 1, (n, 1))
    examples = {
        "ids": rng.integers(0, vocabulary, (n, length), np.int32),
        "mask": (np.arange(length) < real).astype(np.int32),
        "y": rng.integers(0, CLASSES, n, np.int32),
    }
    return Data(
        examples,
        np.arange(n_clients + 1) * BATCH,
        start,
        frozen,
        epochs=2,
        batch_size=BATCH,
    )


def pretrained(data: Data) -> nnx.Module:
    """The classifier of the data's arrays, through a folder like any other checkpoint."""
    tensors = {name: array for name, array in data.frozen.items() if array.ndim}
    vocabulary, d = tensors["bert.embeddings.word_embeddings.weight"].shape
    config = {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": d,
        "intermediate_size": 4 * d,
        "num_hidden_layers": len(data.start["bert.query.lora_a"]),
        "num_attention_heads": int(data.frozen["n_heads"]),
        "max_position_embeddings": len(
            tensors["bert.embeddings.position_embeddings.weight"]
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(tensors, Path(folder) / "model.safetensors")
        return ffm.models.from_pretrained(folder, num_labels=CLASSES)


def simulator(data: Data):
    """Our side."""
    rank = data.start["bert.query.lora_a"].shape[-1]
    method = ffm.peft.lora(rank, float(data.frozen["alpha"]), targets=r"query|value")
    graphdef, delta, backbone = ffm.peft.apply(pretrained(data), method)

    def loss(delta, backbone, batch, key):
        logits = nnx.merge(graphdef, delta, backbone)(batch["ids"], batch["mask"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]), {}

    start = jax.tree.unflatten(
        jax.tree.structure(delta), [data.start[name] for name in sorted(data.start)]
    )
    return fedavg(loss, data, backbone=backbone), start


def flop(data: Data) -> float:
    """Frozen products forward and for the input's gradient, LoRA's three times.

    No gradient reaches the embedding.

    Attention: scores and values over all T positions, as both sides compute them, three
    products of each. The first layer's input needs no gradient, nor do its keys. The
    pooler and the classifier see one token a text.
    """
    n_layers, d, rank = data.start["bert.query.lora_a"].shape
    length = data.examples["ids"].shape[1]
    layer = (
        product_flop(d, 12 * d, products=2)
        + len(TARGETS) * 2 * product_flop(d, rank)
        + 2 * product_flop(d, length)
    )
    unneeded = product_flop(d, 3 * d + len(TARGETS) * rank, products=1) + product_flop(
        d, length, products=1
    )
    text = (
        length * (n_layers * layer - unneeded)
        + product_flop(d, d, products=2)
        + product_flop(d, CLASSES)
    )
    return float(data.offsets[-1]) * data.epochs * text


LORA_MINILM = Workload(
    name="lora-minilm",
    summary="MiniLM's shapes, 32 tokens; LoRA of rank 8 on query and value, and a "
    "classifier; 64 clients x 2 steps x batch 8",
    make=lambda smoke: (
        make(3, 8, 64, 32, 2, 2, 2) if smoke else make(64, 32, 30522, 384, 6, 12)
    ),
    simulator=simulator,
    flop=flop,
    peers=("peft",),
)
