"""Rows of a batch over the devices that share a backbone."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft, tasks
from fedjax_fm.aot.report import report

CONFIG = models.LlamaConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
)
# q, k, v, o and the three matrices of the units, in f32
LAYER_BYTES = 4 * (4 * 16 * 16 + 3 * 16 * 32)


def simulator(rows, model_parallel=2, batch_size=4):
    model = models.LlamaForCausalLM(CONFIG, rngs=nnx.Rngs(0))
    adapted = peft.apply(model, peft.lora(2, targets=["q_proj", "down_proj"]))
    task = tasks.language_modeling(adapted)
    ids = np.random.default_rng(0).integers(1, 31, (4, 6, 7)).astype(np.int32)
    clients = [
        {"input_ids": x, "attention_mask": np.ones_like(x), "labels": x} for x in ids
    ]
    method = ffm.fedavg(
        tasks.rows_over_model(task) if rows else task,
        optax.sgd(0.5),
        local_steps=2,
        batch_size=batch_size,
    )
    made = ffm.Simulator(
        method,
        ffm.Population.from_clients(clients),
        backbone=adapted.backbone,
        cohort_size=4,
        devices=4 if model_parallel > 1 else 1,
        model_parallel=model_parallel,
    )
    return made, adapted.delta


def sent_in_layers(made, delta):
    """(gathered, added up): bytes that a device sends along `model` in each layer."""
    found = report(made.compile(delta)).collectives
    inside = [one for one in found if one.axis == "model" and one.level == "layer"]

    def of(op):
        return sum(one.bytes for one in inside if one.op == op)

    return of("all-gather"), of("all-reduce")


def test_the_same_rounds_with_whole_layers_gathered():
    plain, delta = simulator(rows=False, model_parallel=1)
    split, _ = simulator(rows=True)
    gathered, added = sent_in_layers(split, delta)
    # forward and backward; no activation is added up
    assert LAYER_BYTES <= gathered <= 2 * LAYER_BYTES
    assert added < sent_in_layers(simulator(rows=False)[0], delta)[1] / 4
    expected, _ = plain.run(plain.init(delta), 2)
    found, _ = split.run(split.init(delta), 2)
    for a, b in zip(
        jax.tree.leaves(found.delta), jax.tree.leaves(expected.delta), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_batch_that_does_not_divide_is_refused():
    made, delta = simulator(rows=True, batch_size=3)
    with pytest.raises(ValueError, match=r"model_parallel=2 divides .* got 3 rows"):
        made.run(made.init(delta), 1)


def test_a_backbone_on_one_device_needs_no_rows():
    made, delta = simulator(rows=True, model_parallel=1, batch_size=3)
    assert np.isfinite(made.run(made.init(delta), 1)[1]["loss"]).all()
