"""The study on a pretrained start: what a model of fewer layers has of the whole one."""

import dataclasses

import numpy as np
from flax import nnx

from fedjax_fm import models
from fedjax_fm.experiments.start import STUDY, Config
from fedjax_fm.experiments.start.training import first_layers

TINY = models.BertConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=8,
)


def model(config, seed):
    return models.BertForTokenClassification(config, 4, nnx.Rngs(seed))


def test_the_first_layers_are_those_of_the_whole_model():
    whole = model(TINY, 0)
    few = model(dataclasses.replace(TINY, num_hidden_layers=2), 1)
    nnx.update(few, first_layers(nnx.state(whole), nnx.state(few)))
    of_whole = dict(nnx.to_flat_state(nnx.state(whole)))
    for path, leaf in nnx.to_flat_state(nnx.state(few)):
        value = np.asarray(of_whole[path][...])
        stacked = "layer" in path
        expected = value[:2] if stacked else value
        np.testing.assert_array_equal(leaf[...], expected)
        assert not stacked or len(leaf[...]) == 2


def test_budgets_are_equal_and_both_starts_have_the_same_rates():
    STUDY.check_budgets(Config())
    STUDY.check_budgets(Config().smoke())
    assert Config().pretrained_rates == Config().random_rates
