"""lora-gpt: LoRA of a GPT-2 whose backbone all clients share.

GPT-2 with d = 256, 4 layers, 4 heads, vocabulary 1024, 32 tokens, random weights; rank
8 on `c_attn` (fused query, key, value); 32 clients x 4 steps x batch 4. Each client has
4 examples, so that both sides see the same batches.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm.experiments.bench.workload import (
    Data,
    Workload,
    fedavg,
    normal,
    product_flop,
    seeded,
)
from fedjax_fm.models.stacked import run_stacked, stack

BATCH, ALPHA = 4, 16


class Attention(nnx.Module):
    """Causal self-attention, GPT-2's names."""

    def __init__(self, d: int, n_heads: int, rngs: nnx.Rngs):
        self.n_heads = n_heads
        self.c_attn = nnx.Linear(d, 3 * d, rngs=rngs)
        self.c_proj = nnx.Linear(d, d, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, T, d] from f32[B, T, d]."""

        def split(y):
            return y.reshape(*y.shape[:-1], self.n_heads, -1)  # [B, T, H, d / H]

        parts = jnp.split(self.c_attn(x), 3, axis=-1)
        query, key, value = (split(y) for y in parts)
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.c_proj(attended.reshape(x.shape))


class FeedForward(nnx.Module):
    """Widen four times, GELU, narrow."""

    def __init__(self, d: int, rngs: nnx.Rngs):
        self.c_fc = nnx.Linear(d, 4 * d, rngs=rngs)
        self.c_proj = nnx.Linear(4 * d, d, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, T, d] from f32[B, T, d]."""
        wide = jax.nn.gelu(self.c_fc(x), approximate=True)
        return self.c_proj(wide)


class Block(nnx.Module):
    """One pre-norm layer."""

    def __init__(self, d: int, n_heads: int, rngs: nnx.Rngs):
        self.ln_1 = nnx.LayerNorm(d, epsilon=1e-5, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(d, epsilon=1e-5, rngs=rngs)
        self.attn = Attention(d, n_heads, rngs)
        self.mlp = FeedForward(d, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, T, d] from f32[B, T, d]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nnx.Module):
    """GPT-2, whose head is tied to the embedding.

    Args:
      vocabulary: tokens.
      length: positions.
      d: width.
      n_layers: how many layers.
      n_heads: attention heads.
      rngs: of the weights.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        d: int,
        n_layers: int,
        n_heads: int,
        rngs: nnx.Rngs,
    ):
        self.wte = nnx.Embed(vocabulary, d, rngs=rngs)
        self.wpe = nnx.Embed(length, d, rngs=rngs)
        self.h = stack(lambda rngs: Block(d, n_heads, rngs), n_layers, rngs)
        self.ln_f = nnx.LayerNorm(d, epsilon=1e-5, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Logits f32[B, T, vocabulary] from i32[B, T]."""
        places = jnp.arange(ids.shape[-1])
        x = run_stacked(self.h, self.wte(ids) + self.wpe(places))
        return self.wte.attend(self.ln_f(x))


def make(
    *,
    n_clients: int,
    length: int,
    vocabulary: int,
    d: int,
    n_layers: int,
    rank: int = 8,
) -> Data:
    """Random tokens and weights under GPT-2's names, layers stacked.

    Args:
      n_clients: how many, of one batch each.
      length: of a text.
      vocabulary: tokens.
      d: width.
      n_layers: how many layers.
      rank: of LoRA.
    """
    rng = seeded("lora-gpt")
    shapes = {
        "attn.c_attn": (d, 3 * d),
        "attn.c_proj": (d, d),
        "mlp.c_fc": (d, 4 * d),
        "mlp.c_proj": (4 * d, d),
    }
    frozen = {
        "wte": normal(rng, vocabulary, d, scale=0.02),
        "wpe": normal(rng, length, d, scale=0.02),
    }
    for name, shape in shapes.items():
        frozen[f"{name}.weight"] = normal(rng, n_layers, *shape, scale=shape[0] ** -0.5)
        frozen[f"{name}.bias"] = np.zeros((n_layers, shape[1]), np.float32)
    norms = {"ln_1": (n_layers, d), "ln_2": (n_layers, d), "ln_f": (d,)}
    for name, shape in norms.items():
        frozen[f"{name}.weight"] = np.ones(shape, np.float32)
        frozen[f"{name}.bias"] = np.zeros(shape, np.float32)
    start = {
        "lora_a": normal(rng, n_layers, d, rank, scale=d**-0.5),
        "lora_b": np.zeros((n_layers, rank, 3 * d), np.float32),
    }
    x = rng.integers(0, vocabulary, (n_clients * BATCH, length), np.int32)
    return Data(
        examples={"x": x},
        offsets=np.arange(n_clients + 1) * BATCH,
        start=start,
        frozen=frozen | {"n_heads": np.int64(4), "alpha": np.int64(ALPHA)},
        epochs=4,
        batch_size=BATCH,
    )


def pretrained(frozen: dict[str, np.ndarray]) -> GPT:
    """The model with the weights of the data.

    Args:
      frozen: {name: array} of `Data`.
    """
    vocabulary, d = frozen["wte"].shape

    def build() -> GPT:
        return GPT(
            vocabulary=vocabulary,
            length=len(frozen["wpe"]),
            d=d,
            n_layers=len(frozen["attn.c_attn.weight"]),
            n_heads=int(frozen["n_heads"]),
            rngs=nnx.Rngs(0),
        )

    graphdef, state = nnx.split(nnx.eval_shape(build))
    flat = dict(nnx.to_flat_state(state))
    for path, leaf in flat.items():
        *parents, kind = (str(part) for part in path if part != "h")
        if kind == "embedding":
            name = parents[0]
        else:
            last = "weight" if kind in ("kernel", "scale") else kind
            name = ".".join([*parents, last])
        flat[path] = leaf.replace(jnp.asarray(frozen[name]))
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def simulator(data: Data):
    """Our side."""
    rank = data.start["lora_a"].shape[-1]
    method = ffm.peft.lora(rank, float(data.frozen["alpha"]), targets=r"c_attn")
    graphdef, delta, backbone = ffm.peft.apply(pretrained(data.frozen), method)

    def loss(delta, backbone, batch, key):
        logits = nnx.merge(graphdef, delta, backbone)(batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], batch["x"][:, 1:]
        )
        return losses.mean(axis=-1), {}

    factors = [data.start["lora_a"], data.start["lora_b"]]
    start = jax.tree.unflatten(jax.tree.structure(delta), factors)
    return fedavg(loss, data, backbone=backbone), start


def flop(data: Data) -> float:
    """FLOP of all epochs: frozen products twice, LoRA's three times.

    Frozen products run forward and for the input's gradient, which does not reach the
    embedding. Attention: scores and values over all T positions, as both sides compute
    them, three products of each.
    """
    (vocabulary, d), length = data.frozen["wte"].shape, data.examples["x"].shape[1]
    n_layers, _, rank = data.start["lora_a"].shape
    layer = (
        product_flop(d, 12 * d, products=2)
        + product_flop(d, rank)
        + product_flop(rank, 3 * d)
    )
    attention = 2 * product_flop(d, length)
    head = product_flop(d, vocabulary, products=2)
    # The first layer's input needs no gradient.
    unneeded = product_flop(d, 3 * d + rank, products=1)
    token = n_layers * (layer + attention) + head - unneeded
    return float(data.offsets[-1]) * data.epochs * length * token


def made(smoke: bool) -> Data:
    """The workload's sizes, or tiny ones."""
    if smoke:
        return make(n_clients=3, length=8, vocabulary=64, d=32, n_layers=2, rank=2)
    return make(n_clients=32, length=32, vocabulary=1024, d=256, n_layers=4)


LORA_GPT = Workload(
    name="lora-gpt",
    summary="GPT-2 of 4 layers, d = 256, 32 tokens; LoRA of rank 8 on c_attn; 32 clients "
    "x 4 steps x batch 4",
    make=made,
    simulator=simulator,
    flop=flop,
    peers=("peft",),
)
