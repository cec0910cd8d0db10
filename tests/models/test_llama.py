"""The decoder against transformers: tiny random models, and SmolLM2-135M with its real weights."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.models.weights import checkpoint_name
from fedjax_fm.trees import size

TINY = dict(
    vocab_size=101,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=5000.0,
)
SENTENCES = [
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 40))",
    "Hello!",
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer",
]


def random_batch(
    seed: int = 0, batch: int = 3, length: int = 11, left: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids, mask = (
        rng.integers(0, 101, (batch, length)).astype(np.int32),
        np.ones((batch, length), np.int32),
    )
    for row in range(1, batch):
        mask[row, slice(0, 2 * row) if left else slice(length - 2 * row, length)] = 0
    return ids, mask


@functools.cache
def compiled(graphdef, method: str):
    return jax.jit(
        lambda state, ids, mask: getattr(nnx.merge(graphdef, state), method)(ids, mask)
    )


def forward(model, ids, mask=None, method: str = "__call__") -> np.ndarray:
    """Logits, or what another method gives; compiled, which is much faster than op by op."""
    graphdef, state = nnx.split(model)
    return np.asarray(compiled(graphdef, method)(state, ids, mask))


def saved_tiny(folder, **changes):
    """A random model of transformers with its folder."""
    torch, transformers = (
        pytest.importorskip("torch"),
        pytest.importorskip("transformers"),
    )
    torch.manual_seed(0)
    fields = {**TINY, **changes}
    theta = fields.pop("rope_theta")
    config = transformers.LlamaConfig(
        **fields, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    reference = transformers.LlamaForCausalLM(config).eval()
    with (
        torch.no_grad()
    ):  # default norms are ones and biases zeros, which would hide a mistake
        for name, parameter in reference.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "layers" in name:
                parameter.mul_(6)
    reference.save_pretrained(folder)
    return reference


VARIANTS = {
    "grouped-tied": {"tie_word_embeddings": True},
    "untied-biases-wide-heads-one-kv-head": {
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 16,
        "num_key_value_heads": 1,
    },
}


@pytest.fixture(scope="module", params=VARIANTS, ids=list(VARIANTS))
def pair(request, tmp_path_factory):
    """(ours, transformers') of one tiny random model, ours read from the saved folder."""
    folder = tmp_path_factory.mktemp("tiny")
    reference = saved_tiny(folder, **VARIANTS[request.param])
    return models.from_pretrained(folder), reference


@pytest.fixture(scope="module")
def sentences(smollm2_chat) -> dict[str, np.ndarray]:
    rows = [smollm2_chat.tokenizer.encode(text).ids for text in SENTENCES]
    return models.pad_prompts(rows, smollm2_chat.pad_token_id)


@pytest.mark.parametrize("left", [True, False])
def test_hidden_states_and_logits_equal_transformers(pair, left: bool):
    import torch

    ours, reference = pair
    ids, mask = random_batch(left=left)
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    with torch.no_grad():
        expected = reference(
            torch.tensor(ids).long(),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions).long(),
            output_hidden_states=True,
        )
    real = mask.astype(bool)
    hidden, logits = forward(ours, ids, mask, "hidden"), forward(ours, ids, mask)
    assert np.abs(hidden - expected.hidden_states[-1].numpy())[real].max() < 1e-4
    assert np.abs(logits - expected.logits.numpy())[real].max() < 1e-4
    assert logits.dtype == np.float32
    assert np.abs(logits[0] - forward(ours, ids)[0]).max() < 1e-5  # no mask: all real


def test_gradients_of_every_parameter_equal_torch(pair):
    import torch

    ours, reference = pair
    ids, mask = random_batch(seed=1)
    labels = np.where(mask == 1, ids, -100)
    labels[
        np.arange(3), mask.argmax(-1)
    ] = -100  # the first real token of a row has no real predecessor
    reference.zero_grad()
    positions = torch.tensor(np.maximum(mask.cumsum(-1) - 1, 0)).long()
    logits = reference(
        torch.tensor(ids).long(),
        attention_mask=torch.tensor(mask),
        position_ids=positions,
    ).logits
    torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 101),
        torch.tensor(labels[:, 1:]).long().reshape(-1),
        reduction="sum",
    ).backward()
    expected = {
        name: parameter.grad.numpy() for name, parameter in reference.named_parameters()
    }

    graphdef, state = nnx.split(ours)

    def total(state):
        return models.next_token_losses(
            nnx.merge(graphdef, state), ids, mask, labels, chunk=4
        )[0].sum()

    gradient = jax.jit(jax.grad(total))(state)
    compared = 0
    for path, variable in nnx.to_flat_state(gradient):
        path = tuple(map(str, path))
        layers = (
            range(TINY["num_hidden_layers"])
            if path[:2] == ("model", "layers")
            else (None,)
        )
        for layer in layers:
            name, transposed = checkpoint_name(path, "model.layers", layer)
            found = np.asarray(variable[...] if layer is None else variable[...][layer])
            assert (
                np.abs((found.T if transposed else found) - expected[name]).max() < 1e-3
            ), name
            compared += 1
    assert compared == len(expected)


@pytest.fixture(scope="module")
def tiny(random_llama) -> models.LlamaForCausalLM:
    return random_llama(models.LlamaConfig(**TINY))


def test_padding_changes_nothing(tiny):
    ids, _ = random_batch(batch=1)
    alone = forward(tiny, ids)
    for before, after in [(5, 0), (0, 5), (3, 2)]:
        widths = ((0, 0), (before, after))
        padded = forward(
            tiny,
            np.pad(ids, widths, constant_values=7),
            np.pad(np.ones_like(ids), widths),
        )
        np.testing.assert_allclose(
            padded[:, before : before + ids.shape[1]], alone, atol=2e-5
        )


def test_lora_starts_at_the_base_model_and_names_modules_as_hugging_face_does(tiny):
    graphdef, delta, backbone = peft.apply(
        tiny, peft.lora(rank=4, targets=["q_proj", "v_proj"])
    )
    paths = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(delta)}
    stem = "model.layers.self_attn"
    assert paths == {f"{stem}.{p}_proj.lora_{ab}" for p in "qv" for ab in "ab"}
    assert size(delta) == 3 * 4 * ((32 + 32) + (32 + 16))  # layers * rank * (in + out)
    ids, mask = random_batch()
    adapted = nnx.merge(graphdef, delta, backbone)
    np.testing.assert_array_equal(forward(adapted, ids, mask), forward(tiny, ids, mask))
    every = peft.apply(tiny, peft.lora(rank=2, targets=r"_proj$|lm_head"))[1]
    assert len(jax.tree.leaves(every)) == 2 * 8


def test_vmap_over_deltas_equals_the_loop_and_a_row_of_padding_is_harmless(
    tiny, noisy_copies
):
    graphdef, delta, backbone = peft.apply(
        tiny, peft.lora(rank=4, targets="q_proj|v_proj")
    )
    deltas, (ids, mask) = noisy_copies(delta, 3, 0.3), random_batch()
    mask[1] = 0

    def loss(delta, backbone, ids, mask):
        losses, counted = models.next_token_losses(
            nnx.merge(graphdef, delta, backbone), ids, mask, chunk=4
        )
        return losses.sum() / jnp.maximum(counted.sum(), 1)

    step = jax.jit(jax.value_and_grad(loss))
    together = jax.jit(jax.vmap(step, (0, None, 0, 0)))(
        deltas, backbone, ids[:, None], mask[:, None]
    )
    for client in range(3):
        alone = step(
            jax.tree.map(lambda x: x[client], deltas),  # noqa: B023
            backbone,
            ids[client, None],
            mask[client, None],
        )
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[client], b, atol=1e-5, rtol=1e-5)
            largest = np.abs(b).max()
            assert largest == 0 if client == 1 else largest > 0


def test_bfloat16_keeps_its_dtype_through_the_layers(random_llama):
    model = random_llama(models.LlamaConfig(**TINY), "bfloat16")

    def dtypes(tree):
        return {jnp.dtype(leaf.dtype).name for leaf in jax.tree.leaves(tree)}

    assert dtypes(nnx.state(model)) == {"bfloat16"}
    ids, mask = random_batch()
    graphdef, delta, backbone = peft.apply(model, peft.lora(rank=2, targets="q_proj"))
    adapted = nnx.merge(graphdef, delta, backbone)
    assert dtypes(jax.eval_shape(adapted.hidden, ids, mask)) == {"bfloat16"}

    def total(delta):
        return models.next_token_losses(
            nnx.merge(graphdef, delta, backbone), ids, mask
        )[0].sum()

    assert (
        dtypes(delta) == dtypes(jax.eval_shape(jax.grad(total), delta)) == {"float32"}
    )
    found, expected = forward(adapted, ids, mask), forward(model, ids, mask)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_bfloat16_checkpoint_and_bfloat16_model(tmp_path):
    torch = pytest.importorskip("torch")
    reference = saved_tiny(tmp_path, tie_word_embeddings=True)
    expected = reference.model.norm.weight.detach().to(torch.bfloat16).float().numpy()
    reference.to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16"):
        model = models.from_pretrained(tmp_path, dtype=dtype)
        assert model.model.norm.scale.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(
            np.asarray(model.model.norm.scale[...], np.float32), expected
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_key_value_heads": 3},
            "num_attention_heads=4 is not a multiple of num_key_value_heads=3",
        ),
        ({"hidden_size": 34}, "hidden_size=34 is not a multiple"),
        ({"head_dim": 7}, "even head_dim, got 7"),
        ({"hidden_act": "gelu"}, "must be 'silu', got 'gelu'"),
    ],
)
def test_configurations_that_cannot_be_computed(changes, message):
    with pytest.raises(ValueError, match=message):
        models.LlamaConfig(**{**TINY, **changes})


def test_what_from_pretrained_refuses(tmp_path):
    saved_tiny(tmp_path)
    with pytest.raises(
        ValueError, match="expected a whole number num_labels >= 1, got num_labels=0"
    ):
        models.from_pretrained(tmp_path, num_labels=0)
    with pytest.raises(
        ValueError,
        match="expected pooling 'cls' for a model of type 'llama', got 'mean'",
    ):
        models.from_pretrained(tmp_path, num_labels=2, pooling="mean")
    with pytest.raises(ValueError, match=r"'q4_1' keeps the blocks of a \.gguf file"):
        models.from_pretrained(tmp_path, frozen="q4_1")
    with pytest.raises(
        ValueError,
        match=r"expected frozen to be one of 'dense', .*'nf4_double', got frozen='int3'",
    ):
        models.from_pretrained(tmp_path, frozen="int3")
    with pytest.raises(ValueError, match="got 'float16'"):
        models.from_pretrained(tmp_path, dtype="float16")
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for change, message in [
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 2}},
            "'llama3' needs low_freq_factor, high_freq_factor",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope type 'yarn' is not supported",
        ),
        (
            {"model_type": "mistral", "sliding_window": 0},
            "sliding_window >= 1, got sliding_window=0",
        ),
        (
            {"model_type": "mistral", "layer_types": ["full_attention"] * 3},
            "layer_types with .'full_attention'. is not",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 3},
            "there is no sliding_window",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention"]},
            "expected layer_types of num_hidden_layers=3",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["chunked_attention"] * 3},
            "got layer_types='chunked_attention'",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear"}},
            "rope type 'linear' needs factor",
        ),
        ({"rope_interleaved": True}, "interleaved"),
        ({"hidden_act": "relu"}, "got 'relu'"),
        (
            {"tie_word_embeddings": False, "num_hidden_layers": 4},
            "missing model.layers.3",
        ),
        ({"model_type": "qwen2"}, "missing model.layers.0.self_attn.q_proj.bias"),
        (
            {"model_type": "gpt_neox"},
            "type 'gpt_neox'; this version reads albert, bert, clip",
        ),
    ]:
        path.write_text(json.dumps({**fields, **change}))
        with pytest.raises(models.WeightError, match=message):
            models.from_pretrained(tmp_path)


def test_the_old_place_of_rope_theta_is_read(tmp_path):
    saved_tiny(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    assert models.from_pretrained(tmp_path).config.rope_theta == 5000.0
    del fields["rope_parameters"]
    path.write_text(json.dumps({**fields, "rope_theta": 123.0, "rope_scaling": None}))
    assert models.from_pretrained(tmp_path).config.rope_theta == 123.0


def test_more_tokens_than_the_context_are_refused(tiny):
    with pytest.raises(ValueError, match="65 tokens exceed the model's context of 64"):
        tiny.hidden(np.zeros((1, 65), np.int32))
    with pytest.raises(ValueError, match="got max_length=65"):
        tiny.empty_cache(1, 65)


def test_depth_does_not_grow_the_program():
    def lines(layers: int) -> int:
        config = models.LlamaConfig(**{**TINY, "num_hidden_layers": layers})
        model = nnx.eval_shape(lambda: models.LlamaForCausalLM(config, nnx.Rngs(0)))
        graphdef, state = nnx.split(model)
        ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        text = (
            jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids))
            .lower(state, ids)
            .as_text()
        )
        return len(text.splitlines())

    assert lines(2) == lines(9)


def test_real_logits_equal_transformers(smollm2, smollm2_reference, sentences):
    import torch

    ids, mask = sentences["input_ids"], sentences["attention_mask"]
    assert mask[:, 0].min() == 0  # some rows are padded on the left
    with torch.no_grad():
        expected = smollm2_reference(
            torch.tensor(ids).long(), attention_mask=torch.tensor(mask)
        ).logits.numpy()
        alone = smollm2_reference(
            torch.tensor(ids[2:3, -2:]).long()
        ).logits.numpy()  # a short row, without padding
    real = mask.astype(bool)
    found = forward(smollm2, ids, mask)
    difference = np.abs(found - expected)[real].max()
    print(
        f"largest logit difference {difference:.1e}, largest logit "
        f"{np.abs(expected[real]).max():.1f}"
    )
    assert difference < 1e-3
    assert np.abs(forward(smollm2, ids[2:3, -2:], mask[2:3, -2:]) - alone).max() < 1e-3


def test_real_model_has_the_published_size(smollm2):
    assert size(nnx.state(smollm2)) == 134_515_008
    found = dataclasses.asdict(smollm2.config)
    expected = dict(
        num_hidden_layers=30,
        hidden_size=576,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
    )
    expected |= dict(
        intermediate_size=1536,
        vocab_size=49152,
        rope_theta=1e5,
        tie_word_embeddings=True,
    )
    assert {name: found[name] for name in expected} == expected
    delta = peft.apply(smollm2, peft.lora(rank=8, targets=["q_proj", "v_proj"]))[1]
    assert size(delta) == 30 * 8 * ((576 + 576) + (576 + 192))


def test_real_model_in_bfloat16_reads_text_nearly_as_well(
    smollm2, smollm2_file, sentences
):
    losses = []
    for model in (smollm2, smollm2_file.model(jnp.bfloat16)):
        graphdef, state = nnx.split(model)

        def mean(state):
            return jnp.divide(
                *(
                    x.sum()
                    for x in models.next_token_losses(
                        nnx.merge(graphdef, state),  # noqa: B023
                        **sentences,
                    )
                )
            )

        losses.append(float(jax.jit(mean)(state)))
    assert losses[0] < 3.0  # real English: a uniform guess costs 10.8 nats
    assert abs(losses[0] - losses[1]) < 0.05
