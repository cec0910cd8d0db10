"""Packed rows give every text the losses that it has alone; nothing is lost, nothing leaks."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_fm import models
from fedjax_fm.models.rotary import count_positions


def texts(sizes, seed=0, width=16):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 37, (len(sizes), width)).astype(np.int32)
    mask = (np.arange(width) < np.array(sizes)[:, None]).astype(np.int32)
    labels = np.where(mask == 1, ids, -100)
    labels[:, :2] = -100  # prompts
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.astype(np.int32)}


def unpacked(packed, name):
    """The texts' stretches, in the order of rows."""
    found = []
    for row, segments in enumerate(packed["attention_mask"]):
        found += [
            tuple(packed[name][row][segments == text])
            for text in range(1, segments.max() + 1)
        ]
    return found


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=30), st.integers(16, 40))
def test_every_text_is_there_once_and_rows_are_not_overfull(sizes, length):
    arrays = texts(sizes)
    packed = models.pack(arrays, length)
    for name in ("input_ids", "labels"):
        assert sorted(unpacked(packed, name)) == sorted(
            tuple(row[:n]) for row, n in zip(arrays[name], sizes, strict=True)
        )
    used = (packed["attention_mask"] > 0).sum(axis=1)
    # First fit: no two rows are less than half full, else the later one's texts would
    # lie in the earlier.
    assert (used <= length / 2).sum() <= 1


def test_losses_and_gradients_of_packed_texts_equal_those_of_single_ones(random_llama):
    config = models.LlamaConfig(
        vocab_size=37,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = random_llama(config)
    arrays = texts([9, 4, 16, 7, 3, 11])
    packed = models.pack(arrays, 24)
    assert len(packed["labels"]) == 3
    score = jax.jit(lambda batch: models.next_token_losses(model, **batch, chunk=5))
    alone, counted = map(np.asarray, score(arrays))
    together, packed_counted = map(np.asarray, score(packed))
    expected = sorted(
        tuple(np.round(row[mask], 4)) for row, mask in zip(alone, counted, strict=True)
    )
    found = unpacked(
        {
            "x": np.pad(together, ((0, 0), (1, 0))),
            "attention_mask": packed["attention_mask"],
        },
        "x",
    )
    np.testing.assert_allclose(
        np.concatenate(sorted(tuple(np.round(row[2:], 4)) for row in found)),
        np.concatenate(expected),
        atol=2e-4,
    )
    assert packed_counted.sum() == counted.sum()
    # The same without masks between texts is another number: the check can fail.
    leaking = score(
        {**packed, "attention_mask": (packed["attention_mask"] > 0).astype(np.int32)}
    )[0]
    assert abs(float(leaking.sum()) - float(alone.sum())) > 0.05


def test_mean_over_texts_weighs_texts_alike():
    losses = np.array([[2.0, 4.0, 9.0, 0.0, 5.0]], np.float32)
    mask = np.array([[True, True, True, False, True]])
    segments = np.array([[1, 1, 2, 2, 3]])
    assert float(models.mean_over_texts(losses, mask, segments)[0]) == pytest.approx(
        (3 + 9 + 5) / 3
    )
    assert float(models.mean_over_texts(losses, np.zeros_like(mask), segments)[0]) == 0


def test_positions_restart_at_every_text_and_skip_padding():
    rows = np.array(
        [[0, 0, 1, 1, 1, 0, 0], [1, 1, 2, 2, 2, 3, 0], [1, 0, 1, 1, 0, 1, 1]]
    )
    expected = [[0, 1, 2], [0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4]]
    found = np.asarray(count_positions(rows))
    for row, segments, positions in zip(found, rows, expected, strict=True):
        np.testing.assert_array_equal(row[segments > 0], positions)


def test_what_cannot_be_packed():
    with pytest.raises(ValueError, match="text 1 has 12 tokens, a packed row has 10"):
        models.pack(texts([3, 12]), 10)
    with pytest.raises(ValueError, match="nothing to pack"):
        models.pack(texts([3]) | {"attention_mask": np.zeros((0, 16), np.int32)}, 16)
    left = texts([3])
    left["attention_mask"] = left["attention_mask"][:, ::-1]
    with pytest.raises(ValueError, match="padding on the right"):
        models.pack(left, 16)
