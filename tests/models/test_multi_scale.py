"""The multi-scale transformer beside one of torch's layers, what it may not see, and what
clients learn of made sound.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_models as reference
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft, tasks

CONFIG = models.MultiScaleConfig(
    n_codes=7,
    n_books=3,
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=24,
    global_layers=2,
    local_layers=2,
    max_frames=6,
)
CODES = np.random.default_rng(0).integers(0, 7, (2, 5, 3)).astype(np.int32)


@functools.cache
def noisy_model():
    """Nothing of it at its initial value."""
    model = models.MultiScaleLM(CONFIG, nnx.Rngs(0))
    random = np.random.default_rng(1)

    def move(x):
        return x + jnp.asarray(0.2 * random.normal(size=x.shape), x.dtype)

    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(move, state))


@functools.cache
def logits_of():
    return reference.quick_jit(noisy_model())


def torch_model(model):
    """The same weights in `torch.nn.TransformerEncoderLayer`, and loops over frames."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)

    def tensor(x):
        return torch.tensor(np.asarray(x[...]))

    def layers_of(encoder, n):
        stacked, made = encoder.layers, []
        for i in range(n):
            layer = torch.nn.TransformerEncoderLayer(
                CONFIG.hidden_size,
                CONFIG.num_attention_heads,
                CONFIG.intermediate_size,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            attention = stacked.self_attn
            three = (attention.q_proj, attention.k_proj, attention.v_proj)
            pairs = {
                "self_attn.in_proj_weight": torch.cat(
                    [tensor(one.kernel)[i].T for one in three]
                ),
                "self_attn.in_proj_bias": torch.cat(
                    [tensor(one.bias)[i] for one in three]
                ),
            }
            for name, linear in (
                ("self_attn.out_proj", attention.out_proj),
                ("linear1", stacked.mlp.fc1),
                ("linear2", stacked.mlp.fc2),
            ):
                pairs[f"{name}.weight"] = tensor(linear.kernel)[i].T
                pairs[f"{name}.bias"] = tensor(linear.bias)[i]
            for name, norm in (
                ("norm1", stacked.layer_norm1),
                ("norm2", stacked.layer_norm2),
            ):
                pairs[f"{name}.weight"] = tensor(norm.scale)[i]
                pairs[f"{name}.bias"] = tensor(norm.bias)[i]
            layer.load_state_dict(pairs)
            made.append(layer)
        return made

    def normed(norm, x):
        shape = (CONFIG.hidden_size,)
        return torch.nn.functional.layer_norm(
            x, shape, tensor(norm.scale), tensor(norm.bias), CONFIG.layer_norm_eps
        )

    def run(layers, norm, x):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for layer in layers:
            x = layer(x, src_mask=mask)
        return normed(norm, x)

    table = tensor(model.embed_codes.embedding).reshape(3, 7, -1).requires_grad_(True)
    frames, books = (
        tensor(t.embedding) for t in (model.embed_frames, model.embed_books)
    )
    start = tensor(model.start)
    globals_ = layers_of(model.global_encoder, CONFIG.global_layers)
    locals_ = layers_of(model.local_encoder, CONFIG.local_layers)

    def forward(codes):
        rows = []
        for sound in codes:
            read = [start] + [
                sum(table[q, frame[q]] for q in range(3)) for frame in sound[:-1]
            ]
            read = torch.stack(read) + frames[: len(sound)]
            said = run(globals_, model.global_norm, read[None])[0]
            logits = []
            for t, frame in enumerate(sound):
                inside = [said[t] + books[0]]
                inside += [
                    said[t] + books[q] + table[q - 1, frame[q - 1]] for q in (1, 2)
                ]
                hidden = run(locals_, model.local_norm, torch.stack(inside)[None])[0]
                logits.append(torch.stack([table[q] @ hidden[q] for q in range(3)]))
            rows.append(torch.stack(logits))
        return torch.stack(rows)

    return forward, table


def test_logits_and_gradients_equal_torch_s_layers():
    model = noisy_model()
    forward, table = torch_model(model)
    expected = forward(CODES)
    np.testing.assert_allclose(logits_of()(CODES), expected.detach().numpy(), atol=1e-4)
    probe = np.random.default_rng(3).normal(size=expected.shape).astype("f4")
    (expected * expected.new_tensor(probe)).sum().backward()
    graphdef, state = nnx.split(model)

    def total(state):
        return (nnx.merge(graphdef, state)(CODES) * probe).sum()

    gradient = reference.quick_jit(jax.grad(total))(state)
    found = np.asarray(gradient["embed_codes"]["embedding"][...])
    np.testing.assert_allclose(
        found, table.grad.reshape(21, -1).numpy(), atol=2e-3, rtol=1e-3
    )


@pytest.mark.parametrize(("frame", "book"), [(0, 0), (2, 1), (4, 2), (3, 0)])
def test_a_code_changes_nothing_before_itself(frame, book):
    other = CODES.copy()
    other[:, frame, book] = (other[:, frame, book] + 1) % 7
    before, after = (np.asarray(logits_of()(codes)) for codes in (CODES, other))
    changed = (before != after).any(axis=(0, -1))  # [T, Q]
    seen = np.arange(5 * 3).reshape(5, 3) > 3 * frame + book
    assert not changed[~seen].any()
    # All that comes behind it does see it.
    assert changed[seen].all()


def test_books_do_not_share_their_rows():
    """The same number in two books is two codes."""
    model = noisy_model()
    embedded = np.asarray(model.embed(np.full((1, 1, 3), 2, np.int32)))[0, 0]
    assert np.abs(embedded[0] - embedded[1]).max() > 0.1
    table = np.asarray(model.embed_codes.embedding[...])
    np.testing.assert_array_equal(embedded, table[[2, 9, 16]])


def test_the_loss_is_a_mean_over_codes_that_count():
    adapted = peft.apply(noisy_model(), peft.lora(2, targets=["q_proj", "v_proj"]))
    task = tasks.code_modeling(adapted)
    codes = CODES.copy()
    codes[1, 3:] = -100
    loss, _ = task.loss(adapted.delta, adapted.backbone, {"codes": codes}, None)
    logits = np.asarray(logits_of()(CODES)).astype("f8")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(log_p, CODES[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss, [each[0].mean(), each[1, :3].mean()], rtol=1e-4)
    np.testing.assert_array_equal(task.weight({"codes": codes}), [15, 9])
    codes[0, 0, 0] = 7
    loss, _ = task.loss(adapted.delta, adapted.backbone, {"codes": codes}, None)
    assert np.isnan(loss[0])
    assert np.isfinite(loss[1])
    with pytest.raises(ValueError, match="the task needs the columns codes"):
        task.loss(adapted.delta, adapted.backbone, {"x": codes}, None)


def test_what_is_refused():
    model = noisy_model()
    for shape in ((2, 5), (2, 5, 2), (2, 7, 3), (2, 0, 3)):
        with pytest.raises(ValueError, match=r"expected codes \[B, T, 3\], T at most"):
            model(np.zeros(shape, np.int32))
    with pytest.raises(ValueError, match="is not a multiple of"):
        models.MultiScaleConfig(hidden_size=10, num_attention_heads=3)
    with pytest.raises(ValueError, match="n_books"):
        models.MultiScaleConfig(n_books=0)


FRAME = 20  # samples


def sounds(n, seed):
    """Sines of any pitch and phase, f32[n, 12 frames, FRAME]."""
    random = np.random.default_rng(seed)
    pitch, phase = random.uniform(0.02, 0.12, (n, 1)), random.uniform(0, 1, (n, 1))
    waves = np.sin(2 * np.pi * (pitch * np.arange(12 * FRAME) + phase))
    return waves.reshape(n, 12, FRAME).astype("f4")


def unigram_entropy(codes, n_codes):
    """Of what follows each book's own frequencies, in nats a code."""
    found = []
    for book in range(codes.shape[-1]):
        p = (
            np.bincount(codes[..., book].reshape(-1), minlength=n_codes)
            / codes[..., 0].size
        )
        found.append(-(p[p > 0] * np.log(p[p > 0])).sum())
    return float(np.mean(found))


def test_clients_learn_more_of_sound_than_how_often_codes_occur():
    """On sounds that no client has; the entropy is that of those sounds themselves."""
    train, test = sounds(600, seed=0), sounds(60, seed=1)
    tables = models.fit_rvq(train.reshape(-1, FRAME), 2, 16, jax.random.key(0))
    codes, held = (np.asarray(models.rvq_encode(tables, x)) for x in (train, test))
    decoded = np.asarray(models.rvq_decode(tables, held))
    assert np.square(test - decoded).mean() < 0.3 * np.square(test).mean()
    config = models.MultiScaleConfig(
        n_codes=16,
        n_books=2,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        global_layers=2,
        local_layers=1,
        max_frames=12,
    )
    model = models.MultiScaleLM(config, nnx.Rngs(0))
    adapted = peft.apply(model, peft.full())
    task = tasks.code_modeling(adapted)
    population = ffm.Population.from_clients([{"codes": codes[k::4]} for k in range(4)])
    algorithm = ffm.fedavg(task, optax.adam(3e-3), local_steps=5, batch_size=30)
    simulator = ffm.Simulator(
        algorithm, population, backbone=adapted.backbone, cohort_size=4
    )
    state, metrics = simulator.run(simulator.init(adapted.delta), 25)
    loss = ffm.evaluate(task, state.delta, adapted.backbone, {"codes": held})["loss"]
    entropy = unigram_entropy(held, 16)
    assert metrics["loss"][0] > entropy
    assert loss.mean() < 0.85 * entropy
