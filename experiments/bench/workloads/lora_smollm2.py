"""lora-smollm2: LoRA on a decoder of SmolLM2-135M's shapes.

Random weights (d = 576, 30 layers, 9 query and 3 key heads, vocabulary 49152, 134.5 M
parameters), rank 8 on `q_proj` and `v_proj`; 4 clients x 2 rows of 256 tokens, the loss
on every token. Beside HF PEFT it is timed on the real weights, by
`python -m fedjax_fm.experiments.generate.compare_peft`.
"""

import jax
import numpy as np
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm.experiments.bench.workload import (
    Data,
    Workload,
    fedavg,
    product_flop,
    seeded,
)

RANK = 8
FULL = ffm.models.LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
SMALL = ffm.models.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=True,
)


def made(smoke: bool) -> Data:
    """Random rows, and the factors' first values.

    Args:
      smoke: tiny sizes.
    """
    config = SMALL if smoke else FULL
    n_clients, length = (2, 16) if smoke else (4, 256)
    adapted = _adapted(config)
    rng = seeded("lora-smollm2")
    shape = (2 * n_clients, length)
    rows = rng.integers(0, config.vocab_size, shape, np.int32)
    return Data(
        examples={
            "input_ids": rows,
            "attention_mask": np.ones_like(rows),
            "labels": rows,
        },
        offsets=np.arange(n_clients + 1) * 2,
        start={
            jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(adapted.delta)
        },
        batch_size=1,
    )


def _adapted(config: ffm.models.LlamaConfig) -> ffm.peft.Adapted:
    model = ffm.models.LlamaForCausalLM(config, nnx.Rngs(0))
    method = ffm.peft.lora(RANK, 2.0 * RANK, targets=r"q_proj|v_proj")
    return ffm.peft.apply(model, method)


def simulator(data: Data):
    """Our side."""
    length = data.examples["input_ids"].shape[1]
    adapted = _adapted(SMALL if length < 256 else FULL)
    task = ffm.tasks.language_modeling(adapted)
    return fedavg(task.loss, data, backbone=adapted.backbone), adapted.delta


def flop(data: Data) -> float:
    """FLOP of all rows: frozen products twice, LoRA's three times, the head three.

    The head's logits are computed once more in the backward pass, chunk by chunk.
    Attention: scores and values over all positions, three products of each.
    """
    n_rows, length = data.examples["input_ids"].shape
    config = SMALL if length < 256 else FULL
    d, inner = config.hidden_size, config.intermediate_size
    kv = d * config.num_key_value_heads // config.num_attention_heads
    layer = product_flop(d, 2 * d + 2 * kv + 3 * inner, products=2)
    factors = product_flop(2 * d, RANK) + product_flop(RANK, d + kv)
    attention = 2 * product_flop(d, length)
    token = config.num_hidden_layers * (layer + factors + attention)
    token += product_flop(d, config.vocab_size, products=3)
    return float(n_rows * length * data.epochs * token)


LORA_SMOLLM2 = Workload(
    name="lora-smollm2",
    summary="SmolLM2-135M's shapes, rows of 256 tokens; LoRA of rank 8 on q_proj and "
    "v_proj; 4 clients x 2 steps",
    make=made,
    simulator=simulator,
    flop=flop,
)
