"""What clients do who pass their texts through frozen layers once, before any round."""

import numpy as np
import pytest
from tiny_encoder import BERT

from fedjax_fm import models
from fedjax_fm.experiments.shared import features, tail

MODEL = models.from_config(BERT, num_labels=2, pooling="mean", seed=0)


def test_features_of_frozen_layers_by_hand():
    """Products of BERT's layers for each token, counted from its sizes."""
    config = MODEL.config
    tokens, d, wide = 6, config.hidden_size, config.intermediate_size
    linear = 2 * tokens * (4 * d * d + 2 * d * wide)
    attention = 2 * 2 * tokens * tokens * d
    layer = linear + attention
    frozen = tail.frozen_layers(MODEL, 1)
    n = config.num_hidden_layers
    found = tail.preparation_of(frozen, tokens, rows=10, batch_size=4)
    assert found.passes == 2.5
    assert found.flop == pytest.approx(10 * (n - 1) * layer)
    ids = np.ones((5, tokens), np.int32)
    client = {"input_ids": ids, "label": np.zeros(5, np.int32)}
    every = features.preparation(MODEL, [client, client], batch_size=4)
    assert every.flop == pytest.approx(10 * n * layer, rel=0.02)
    assert every.model_bytes > found.model_bytes
