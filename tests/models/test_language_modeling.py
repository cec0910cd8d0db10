"""Losses in chunks against the plain formula and torch, and a federated run of a language model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft

VOCABULARY = 37


@pytest.fixture(scope="module")
def problem() -> tuple[jax.Array, jax.Array, np.ndarray]:
    """(hidden [3, 10, 8], embedding [V, 8], labels with ignored places)."""
    keys = jax.random.split(jax.random.key(0), 2)
    labels = np.random.default_rng(0).integers(0, VOCABULARY, (3, 10)).astype(np.int32)
    labels[0, :4] = labels[2, 7] = -100
    return (
        jax.random.normal(keys[0], (3, 10, 8)),
        jax.random.normal(keys[1], (VOCABULARY, 8)),
        labels,
    )


@jax.jit
def plain(hidden, embedding, labels):
    log_p = jax.nn.log_softmax(hidden @ embedding.T)
    chosen = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    return jnp.where(labels == -100, 0.0, -chosen)


@functools.partial(jax.jit, static_argnums=3)
def chunked(hidden, embedding, labels, chunk):
    return models.token_losses(hidden, lambda h: h @ embedding.T, labels, chunk)


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_values_and_gradients_equal_the_plain_formula(problem, chunk):
    hidden, embedding, labels = problem
    np.testing.assert_allclose(chunked(*problem, chunk), plain(*problem), atol=1e-5)
    weights = jnp.arange(30.0).reshape(3, 10)

    def total(f, *more):
        return jax.grad(lambda h, e: (weights * f(h, e, labels, *more)).sum(), (0, 1))(
            hidden, embedding
        )

    for found, expected in zip(total(chunked, chunk), total(plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_values_and_gradients_equal_torch(problem):
    torch = pytest.importorskip("torch")
    hidden, embedding, labels = problem
    h, e = (
        torch.tensor(np.asarray(x), requires_grad=True) for x in (hidden, embedding)
    )
    flat = (h @ e.T).reshape(-1, VOCABULARY), torch.tensor(labels).long().reshape(-1)
    each = torch.nn.functional.cross_entropy(
        *flat, ignore_index=-100, reduction="none"
    ).reshape(3, 10)
    np.testing.assert_allclose(chunked(*problem, 4), each.detach().numpy(), atol=1e-5)
    mean = torch.nn.functional.cross_entropy(*flat, ignore_index=-100)
    mean.backward()

    def our_mean(h, e):
        return chunked(h, e, labels, 4).sum() / (labels != -100).sum()

    value, gradients = jax.value_and_grad(our_mean, (0, 1))(hidden, embedding)
    assert float(value) == pytest.approx(float(mean.detach()), abs=1e-5)
    for found, expected in zip(gradients, (h.grad, e.grad), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_all_ignored_is_zero_with_a_zero_gradient(problem):
    hidden, embedding, labels = problem
    none = np.full_like(labels, -100)
    loss, gradient = jax.value_and_grad(lambda h: chunked(h, embedding, none, 4).sum())(
        hidden
    )
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("label", [VOCABULARY, -1, -99])
def test_labels_outside_of_the_vocabulary_are_loud(problem, label):
    hidden, embedding, labels = problem
    bad = labels.copy()
    bad[1, 2] = label
    losses = np.asarray(chunked(hidden, embedding, bad, 4))
    assert np.isnan(losses[1, 2])
    assert np.isnan(losses).sum() == 1


def test_logits_of_all_positions_never_exist():
    vocabulary, length, chunk = 5000, 256, 16
    embedding, hidden = jnp.ones((vocabulary, 4)), jnp.ones((1, length, 4))
    labels = jnp.zeros((1, length), jnp.int32)
    step = (
        jax.jit(jax.grad(lambda h: chunked(h, embedding, labels, chunk).sum()))
        .lower(hidden)
        .compile()
    )
    assert step.memory_analysis().temp_size_in_bytes < 0.5 * 4 * vocabulary * length
    assert step.memory_analysis().temp_size_in_bytes > 4 * vocabulary * chunk


def loss_of_a_scaled_hidden_state(scale, hidden, embedding, labels):
    """A trained scale before a frozen head, the smallest form of an adapter below it."""
    return models.token_losses(hidden * scale, lambda h: h @ embedding.T, labels).sum()


@functools.cache
def temporary_bytes(
    vocabulary, width, n_positions, *, dtype=jnp.float32, lanes=None, trained=0
):
    """Temporary memory of the compiled loss and gradient, by its shapes alone."""
    shape = jax.ShapeDtypeStruct
    of_a_client = () if lanes is None else (lanes,)
    operands = (
        shape((*of_a_client, width), jnp.float32),
        shape((*of_a_client, 8, n_positions // 8, width), jnp.float32),
        shape((vocabulary, width), dtype),
        shape((*of_a_client, 8, n_positions // 8), jnp.int32),
    )
    step = jax.value_and_grad(loss_of_a_scaled_hidden_state, trained)
    if lanes is not None:
        step = jax.vmap(step, in_axes=(0, 0, None, 0))
    return jax.jit(step).lower(*operands).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "how",
    [{}, {"dtype": jnp.bfloat16}, {"lanes": 2}, {"trained": (0, 2)}],
    ids=["frozen", "bfloat16", "two clients", "trained"],
)
def test_no_chunk_keeps_a_copy_of_the_head(how):
    vocabulary, width = 8000, 64
    few, many = (temporary_bytes(vocabulary, width, 128 * n, **how) for n in (4, 20))
    head = vocabulary * width * jnp.dtype(how.get("dtype", jnp.float32)).itemsize
    assert (many - few) / 16 < 0.5 * head * how.get("lanes", 1)


def test_memory_at_the_shapes_of_smollm2():
    """8 texts of 256 tokens: the head is 113 MB, and a copy for each of the 16 chunks
    would be 1.8 GB.
    """
    assert temporary_bytes(49152, 576, 8 * 256) < 400e6


def test_clients_side_by_side_get_the_gradients_of_each_alone():
    """Under vmap, with chunks that count for some clients only, and for none."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, embedding = (
        jax.random.normal(keys[0], (3, 2, 200, 8)),
        jax.random.normal(keys[1], (VOCABULARY, 8)),
    )
    scale = 1 + 0.1 * jax.random.normal(keys[2], (3, 8))
    labels = (
        np.random.default_rng(0).integers(0, VOCABULARY, (3, 2, 200)).astype(np.int32)
    )
    labels[1, :, 40:] = -100
    labels[2] = -100

    def reference(scale, hidden, embedding, labels):
        return plain(hidden * scale, embedding, labels).sum()

    found = jax.vmap(
        jax.value_and_grad(loss_of_a_scaled_hidden_state, (0, 2)), (0, 0, None, 0)
    )
    expected = jax.vmap(jax.value_and_grad(reference, (0, 2)), (0, 0, None, 0))
    pairs = zip(
        jax.tree.leaves(jax.jit(found)(scale, hidden, embedding, labels)),
        jax.tree.leaves(jax.jit(expected)(scale, hidden, embedding, labels)),
        strict=True,
    )
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_shapes_and_sizes_that_make_no_sense(problem):
    hidden, embedding, labels = problem
    with pytest.raises(ValueError, match="chunk >= 1, got chunk=0"):
        chunked(hidden, embedding, labels, 0)
    with pytest.raises(TypeError, match=r"whole number chunk >= 1, got chunk=128\.0"):
        chunked(hidden, embedding, labels, 128.0)
    with pytest.raises(ValueError, match=r"hidden \[3, 10, 8\] and labels \[3, 9\]"):
        chunked(hidden, embedding, labels[:, 1:], 4)
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        models.next_token_losses(None, np.zeros((1, 1), np.int32))


@pytest.fixture(scope="module")
def model(random_llama) -> models.LlamaForCausalLM:
    config = models.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return random_llama(config)


def test_next_token_losses_shift_mask_and_count(model):
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (3, 8)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, :3] = mask[2, 5:] = 0
    labels = ids.copy()
    labels[0, :4] = -100
    losses, counted = jax.jit(
        lambda *batch: models.next_token_losses(model, *batch, chunk=3)
    )(ids, mask, labels)
    assert losses.shape == counted.shape == (3, 7)
    # row 0: labels 4..7; row 1: real from 3, so targets 4..7; row 2: real up to 4, so targets 1..4
    expected = [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(counted, np.array(expected, bool))
    log_p = jax.nn.log_softmax(jax.jit(model)(ids, mask)[:, :-1])
    nll = -np.take_along_axis(np.asarray(log_p), ids[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(losses, np.where(counted, nll, 0), atol=1e-5)
    everything, all_counted = jax.jit(lambda ids: models.next_token_losses(model, ids))(
        ids
    )
    assert all_counted.all()
    assert (np.asarray(everything) > 0).all()


def test_a_federated_run_lowers_the_loss(model):
    """LoRA on a frozen decoder through the engine: the delta is batched over clients,
    the backbone is not.
    """
    graphdef, delta, backbone = peft.apply(
        model, peft.lora(rank=8, targets=["q_proj", "v_proj", "lm_head"])
    )

    def loss(delta, backbone, batch, key):
        adapted = nnx.merge(graphdef, delta, backbone)
        losses, counted = models.next_token_losses(
            adapted, batch["input_ids"], labels=batch["labels"], chunk=4
        )
        return losses.sum(-1) / jnp.maximum(counted.sum(-1), 1), {}

    def client(n: int) -> dict[str, np.ndarray]:
        ids = (np.arange(10)[None] * 3 + np.arange(n)[:, None]).astype(
            np.int32
        ) % VOCABULARY
        labels = ids.copy()
        labels[:, :3] = -100
        return {"input_ids": ids, "labels": labels}

    algorithm = ffm.fedavg(
        ffm.Task(loss),
        client_optimizer=optax.adam(3e-2),
        server_optimizer=optax.sgd(1.0),
        local_steps=4,
        batch_size=4,
    )
    population = ffm.Population.from_clients([client(n) for n in (4, 9, 6, 5)])
    simulator = ffm.Simulator(
        algorithm,
        population,
        backbone=backbone,
        cohort_size=4,
        seed=0,
        devices=1,
        block_size=2,
    )
    _, metrics = simulator.run(simulator.init(delta), rounds=4)
    assert np.isfinite(metrics["loss"]).all()
    assert metrics["loss"][-1] < metrics["loss"][0] - 0.2


def test_answer_only_loss_is_that_of_the_answers_tokens_and_knows_no_padding(model):
    """Equal to the plain cross entropy of the answer's tokens; the same for left
    padding, right padding and none; the gradient with respect to what the head says of
    the prompt is zero. Labels on the prompt are another loss."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, VOCABULARY, 9).astype(np.int32)
    prompt = 4
    labels = np.where(np.arange(9) < prompt, -100, ids).astype(np.int32)

    def padded(left: int, right: int):
        def place(row, fill):
            return np.pad(row, (left, right), constant_values=fill)[None]

        return place(ids, 5), place(np.ones(9, np.int32), 0), place(labels, -100)

    score = jax.jit(lambda *batch: models.next_token_losses(model, *batch, chunk=4))
    log_p = jax.nn.log_softmax(jax.jit(model)(ids[None])[0])
    expected = -sum(float(log_p[t - 1, ids[t]]) for t in range(prompt, 9))
    for left, right in ((0, 0), (5, 0), (0, 3), (2, 6)):
        losses, counted = score(*padded(left, right))
        assert float(losses.sum()) == pytest.approx(expected, abs=1e-4)
        assert int(counted.sum()) == 9 - prompt
    everything, _ = score(
        padded(5, 0)[0], padded(5, 0)[1], padded(5, 0)[0]
    )  # labels on the prompt as well
    assert float(everything.sum()) > expected + 0.5

    hidden = jax.random.normal(jax.random.key(0), (1, 9, 16))

    def head(h):
        return h @ jnp.ones((16, VOCABULARY)) * jnp.arange(VOCABULARY)

    gradient = jax.grad(lambda h: models.token_losses(h, head, labels[None], 4).sum())(
        hidden
    )[0]
    assert not np.asarray(gradient[:prompt]).any()
    assert np.asarray(gradient[prompt:]).any(axis=-1).all()


def test_layouts_agree_on_a_lora_transformer(model):
    """loop == vmap == blocks == two devices == eight devices == one round at a time,
    with error feedback.
    """
    graphdef, delta, backbone = peft.apply(
        model, peft.lora(rank=2, targets=["q_proj", "v_proj"])
    )

    def loss(delta, backbone, batch, key):
        losses, counted = models.next_token_losses(
            nnx.merge(graphdef, delta, backbone), batch["input_ids"], chunk=8
        )
        return losses.sum(-1) / counted.sum(-1), {}

    rng = np.random.default_rng(0)
    clients = [
        {"input_ids": rng.integers(0, VOCABULARY, (n, 10)).astype(np.int32)}
        for n in (5, 2, 7, 3, 4)
    ]
    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(0.5), epochs=1, batch_size=2)
    population = ffm.Population.from_clients(clients)

    def run(**how):
        simulator = ffm.Simulator(
            algorithm,
            population,
            backbone=backbone,
            cohort_size=5,
            uplink=ffm.channels.error_feedback(ffm.channels.top_k(0.5)),
            **how,
        )
        state = simulator.init(delta)
        for _ in range(2):
            state, metrics = simulator.run(state, 1)
        return state.delta, metrics["loss"]

    reference, loss_of_last = run(devices=1, block_size=1)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), reference, delta)
    assert max(jax.tree.leaves(moved)) > 1e-3
    for how in (
        {"devices": 1, "block_size": 5},
        {"devices": 2, "block_size": 2},
        {"devices": 8},
        {"data": "host", "states": "host"},
    ):
        found, last = run(**how)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            reference,
            found,
        )
        np.testing.assert_allclose(last, loss_of_last, rtol=1e-5)
