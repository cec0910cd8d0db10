"""lora-minilm: LoRA and a classifier on a small BERT.

all-MiniLM-L6-v2's shapes (d = 384, 6 layers, 12 heads, vocabulary 30522, 22.7 M
parameters) with random weights, under Hugging Face's names; rank 8 on `query` and
`value`, classifier of two classes trained too; 64 clients x 2 steps x batch 8 x 32
tokens, of which 8 to 32 are real. Each client has 8 examples, so that both sides see
the same batches.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

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
    *,
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

    Args:
      n_clients: how many, of one batch each.
      length: of a text.
      vocabulary: tokens.
      d: width.
      n_layers: how many layers.
      n_heads: attention heads.
      rank: of LoRA.
    """
    rng = seeded("lora-minilm")
    frozen: dict[str, Any] = {"n_heads": np.int64(n_heads), "alpha": np.int64(ALPHA)}
    embeddings = {"word": vocabulary, "position": max(length, 64), "token_type": 2}
    for name, rows in embeddings.items():
        weight = normal(rng, rows, d, scale=0.02)
        frozen[f"bert.embeddings.{name}_embeddings.weight"] = weight
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
        frozen[f"{name}.weight"] = normal(rng, *shape, scale=0.02)
        frozen[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    for name in norms:
        frozen[f"{name}.weight"] = np.ones(d, np.float32)
        frozen[f"{name}.bias"] = np.zeros(d, np.float32)
    start = {
        "classifier.bias": np.zeros(CLASSES, np.float32),
        "classifier.kernel": normal(rng, d, CLASSES, scale=0.02),
    }
    for name in TARGETS:
        start[f"bert.{name}.lora_a"] = normal(rng, n_layers, d, rank, scale=d**-0.5)
        # Not zero, or A's first gradient would be.
        start[f"bert.{name}.lora_b"] = normal(rng, n_layers, rank, d, scale=0.02)
    n = n_clients * BATCH
    real = rng.integers(min(8, length), length + 1, (n, 1))
    examples = {
        "ids": rng.integers(0, vocabulary, (n, length), np.int32),
        "mask": (np.arange(length) < real).astype(np.int32),
        "y": rng.integers(0, CLASSES, n, np.int32),
    }
    return Data(
        examples=examples,
        offsets=np.arange(n_clients + 1) * BATCH,
        start=start,
        frozen=frozen,
        epochs=2,
        batch_size=BATCH,
    )


def pretrained(data: Data) -> nnx.Module:
    """The classifier with the weights of the data, read from a checkpoint's folder."""
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
        place, text = Path(folder), json.dumps(config)
        (place / "config.json").write_text(text, encoding="utf-8")
        save_file(tensors, place / "model.safetensors")
        return ffm.models.from_pretrained(folder, num_labels=CLASSES)


def simulator(data: Data):
    """Our side."""
    rank = data.start["bert.query.lora_a"].shape[-1]
    method = ffm.peft.lora(rank, float(data.frozen["alpha"]), targets=r"query|value")
    graphdef, delta, backbone = ffm.peft.apply(pretrained(data), method)

    def loss(delta, backbone, batch, key):
        logits = nnx.merge(graphdef, delta, backbone)(batch["ids"], batch["mask"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]), {}

    leaves = [data.start[name] for name in sorted(data.start)]
    start = jax.tree.unflatten(jax.tree.structure(delta), leaves)
    return fedavg(loss, data, backbone=backbone), start


def flop(data: Data) -> float:
    """FLOP of all epochs: frozen products twice, LoRA's three times.

    Frozen products run forward and for the input's gradient, which does not reach the
    embedding. Attention: scores and values over all T positions, as both sides compute
    them, three products of each. The first layer's input needs no gradient, nor do its
    keys. The pooler and the classifier read one token a text.
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


def made(smoke: bool) -> Data:
    """The workload's sizes, or tiny ones."""
    if smoke:
        sizes = {"length": 8, "vocabulary": 64, "d": 32, "n_layers": 2, "n_heads": 2}
        return make(n_clients=3, **sizes, rank=2)
    sizes = {"length": 32, "vocabulary": 30522, "d": 384, "n_layers": 6, "n_heads": 12}
    return make(n_clients=64, **sizes)


LORA_MINILM = Workload(
    name="lora-minilm",
    summary="MiniLM's shapes, 32 tokens; LoRA of rank 8 on query and value, and a "
    "classifier; 64 clients x 2 steps x batch 8",
    make=made,
    simulator=simulator,
    flop=flop,
    peers=("peft",),
)
