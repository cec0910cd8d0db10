"""The study on formats of frozen weights, with a random BERT and a random llama of two layers."""

import functools

import pytest
from small_runs import check_scores, run_arms, texts

from fedjax_fm.experiments.frozen_formats import STUDY, Config, data
from fedjax_fm.models import low_bits, pretrained

FORMATS = ("f32", "bf16", "int8", "nf4", "nf4_double")


@pytest.fixture(scope="module")
def config(tiny_bert, tiny_llama):
    return Config(
        model=str(tiny_bert),
        decoder=str(tiny_llama),
        decoder_rows=2,
        decoder_length=24,
        max_length=40,
        rank=2,
        per_domain=1,
        train=8,
        test=4,
        cohort=2,
        rounds=2,
        local_steps=1,
        batch_size=4,
    )


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # these models have fewer inputs than a block
        patch.setattr(
            pretrained, "quantize", functools.partial(low_bits.quantize, block_size=8)
        )
        yield


@pytest.fixture(scope="module")
def found(config):
    return run_arms(STUDY, config)


def test_all_arms_give_their_scores(found):
    check_scores(STUDY, found)
    assert set(found) == {*FORMATS, "shuffled", "permuted"}
    known = {score.name for score in STUDY.all_scores}
    assert all(set(found[name].scores) == known for name in FORMATS)


def test_formats_differ_in_their_frozen_weights_alone(found):
    assert len({tuple(found[name].run.bytes.values()) for name in found}) == 1
    assert found["f32"].scores["largest"] == 0
    for name in FORMATS[1:]:
        assert 0 < found[name].scores["last"] <= found[name].scores["largest"] < 0.5
    for size in ("megabytes", "decoder_megabytes"):
        assert found["bf16"].scores[size] == found["f32"].scores[size] / 2
        assert (
            found["nf4"].scores[size]
            < found["int8"].scores[size]
            < found["f32"].scores[size]
        )


def test_the_run_over_f32_counts_for_no_other_arm(config, found):
    assert all(ran.run.curve[-1]["round"] == config.rounds for ran in found.values())
    alone = run_arms(
        STUDY, config, leave_out=[name for name in found if name != "int8"]
    )["int8"]
    assert alone.run.curve == found["int8"].run.curve
    assert alone.run.bytes == found["int8"].run.bytes
    assert alone.scores == found["int8"].scores


def test_no_text_is_in_two_places(config):
    final, tuning = data(config, 0, "final"), data(config, 0, "tuning")
    assert texts(*final.train).isdisjoint(texts(final.test))
    assert texts(*final.train, final.test).isdisjoint(texts(*tuning.train, tuning.test))
