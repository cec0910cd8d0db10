"""Neighbours and probe on data whose answer is known; pixels that are made fewer."""

import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models
from fedjax_fm.experiments.gate import features
from fedjax_fm.experiments.gate.features import Pictures

pytest.importorskip("sklearn")


def test_parts_keep_groups_together():
    groups = np.repeat(np.arange(30), 4)
    train, test = features.parts(groups, 0)
    assert sorted([*train, *test]) == list(range(120))
    assert not set(groups[train]) & set(groups[test])
    assert len(train) == 80


def test_pixels_are_means_of_squares():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    found = features.smaller(pixels, 2)
    assert found.shape == (2, 12)
    np.testing.assert_allclose(found[1, 3:6], pixels[1, :2, 2:].mean((0, 1)) / 255)
    with pytest.raises(ValueError, match="expected a multiple of 3 pixels, got 4"):
        features.smaller(pixels, 3)


def test_both_judges_find_what_is_there_and_nothing_in_noise():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    directions = random.normal(size=(4, 8))
    signal = directions[labels] + 0.1 * random.normal(size=(300, 8))
    noise = random.normal(size=(300, 8))
    pictures = Pictures(np.empty(0, np.uint8), labels, np.arange(300))
    for accuracies in features.judged(signal, pictures):
        assert len(accuracies) == features.SPLITS
        assert min(accuracies) > 99
    for accuracies in features.judged(noise, pictures):
        assert np.mean(accuracies) < 40


def test_features_are_of_the_tokens():
    config = models.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1,
        image_size=28, patch_size=14,
    )  # fmt: skip
    model = models.Dinov2Model(config, nnx.Rngs(0))
    pixels = np.random.default_rng(0).integers(0, 256, (13, 28, 28, 3), np.uint8)
    found = features.features(model, pixels)
    scaled = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    hidden = np.asarray(model(scaled.astype(np.float32)))
    np.testing.assert_allclose(found["class token"], hidden[:, 0], atol=1e-5)
    expected = hidden[:, 1:].mean(axis=1)
    np.testing.assert_allclose(found["mean of patches"], expected, atol=1e-5)
    assert found["both"].shape == (13, 16)
