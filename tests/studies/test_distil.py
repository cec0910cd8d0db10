"""The study on distillation, with a random DINOv2 of three layers on made-up pictures."""

import dataclasses

import jax
import numpy as np
import pytest
from made_up import made_up_pictures
from small_runs import check_scores, run_arms

from fedjax_fm import models, peft
from fedjax_fm.experiments.distil import STUDY, Config, data, pictures
from fedjax_fm.experiments.gate.tasks import Rows

pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    fields = {
        "model_type": "dinov2", "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
        "mlp_ratio": 1, "image_size": 56, "patch_size": 28,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("dinov2")
    peft.save_merged(folder, models.from_config(fields), fields)
    return dataclasses.replace(Config().smoke(), model=str(folder), teacher_layers=2)


@pytest.fixture(autouse=True, scope="module")
def made_up():
    order = np.random.default_rng(0).permutation(120)
    rows = Rows(
        table=made_up_pictures(120),
        classes=2,
        train=order[:80],
        validation=order[80:100],
        test=order[100:],
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(pictures, "read", lambda name: rows)
    yield rows
    patch.undo()


@pytest.fixture(scope="module")
def found(config, made_up):
    return run_arms(STUDY, config)


def test_arms_give_their_scores(found):
    check_scores(STUDY, found)
    for name in ("plain_central", "soft_central", "teacher"):
        assert found[name].run.bytes == {"uplink_bytes": 0, "downlink_bytes": 0}
    assert found["soft"].run.bytes == found["plain"].run.bytes


def test_the_parts_are_the_whole_model(config):
    """The layers that are frozen, then the teacher's: the classifier itself."""
    made = data(config, 0, "final")
    whole = models.from_pretrained(config.model, num_labels=2, seed=0)
    kind = pictures.KINDS["image"]
    rows = pictures.read("emoji")
    shown = np.random.default_rng(0).permutation(rows.test)[: config.test]
    pixels = kind.encode(rows.table.select(shown), config.model, 0)["pixel_values"]
    logits = made.teacher(made.test["deep"])
    np.testing.assert_allclose(logits, whole(pixels), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        made.test["shallow"], whole.dinov2.embeddings(pixels), rtol=1e-5, atol=1e-6
    )
    hidden = made.student.outputs(made.test["shallow"]).hidden
    assert len(hidden) == config.student_layers
    first = jax.tree.map(lambda x: x[0], models.stacked.nnx.state(whole.dinov2.encoder.layer))  # fmt: skip
    own = jax.tree.map(lambda x: x[0], models.stacked.nnx.state(made.student.layer))
    jax.tree.map(np.testing.assert_array_equal, first, own)


def test_too_few_pictures_are_refused(config):
    greedy = dataclasses.replace(config, taught=100)
    with pytest.raises(ValueError, match=r"final has 60 pictures, expected 108"):
        data(greedy, 0, "final")
