"""Tokens a second of generation inside clients, and of transformers' `generate`.

    pip install torch transformers peft          (not needed by anything else here)
    python -m fedjax_fm.experiments.bench.generation [--repeats 3] [--small]

Every client has prompts and a LoRA adapter of its own. Ours is `preferences.roll_out`
under `vmap` over clients, a scan of fixed length with a key-value cache. The peer
generates with its cache, too, (i) all prompts of all clients as one batch, by one
adapter that is merged into the weights, which is less than what clients do, and (ii)
client by client, each by its own adapter. All three take turns in one run, medians are
reported, the first call of each, which compiles, is apart. Both sides are greedy, in f32,
with the same weights, adapters and prompts, and have to write the same tokens; no token
ends an answer.

The floor is the longer of two times: the program's products at the best rate that this
machine shows for a product of its rows, and the weights, read once for each token of an
answer, at the rate at which memory is read.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import models, peft, preferences, systems, trees
from fedjax_fm.experiments.bench import floor
from fedjax_fm.experiments.bench.evaluation import SIZES

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY = {**SIZES["tiny"], "tie_word_embeddings": True}
TARGETS = ("q_proj", "v_proj")
ADAPTERS = 0.02  # deviation of the adapters' values: each client says something else
LEAST_EQUAL = 0.95  # of all answers: floats of two libraries differ in the last bits
READ = 2**26  # numbers that are read to see how fast memory is


class Setup(NamedTuple):
    """Sizes of a call.

    Attributes:
      clients: each with an adapter of its own.
      prompts: of a client.
      prompt_tokens: of a prompt.
      new_tokens: of an answer.
      rank: of LoRA.
    """

    clients: int = 8
    prompts: int = 4
    prompt_tokens: int = 32
    new_tokens: int = 32
    rank: int = 8

    @property
    def rows(self) -> int:
        """Prompts of all clients."""
        return self.clients * self.prompts


SMALL = Setup(clients=3, prompts=2, prompt_tokens=5, new_tokens=6, rank=2)


class Problem(NamedTuple):
    """What both sides compute.

    Attributes:
      adapted: the model, with the places of adapters.
      deltas: of the clients, stacked.
      prompts: i32[clients, prompts, tokens].
    """

    adapted: peft.Adapted
    deltas: Any
    prompts: np.ndarray


def problem(model: Any, setup: Setup, seed: int = 0) -> Problem:
    """Random adapters and prompts for a model.

    Args:
      model: of Llama's family.
      setup: sizes.
      seed: of both.
    """
    adapted = peft.apply(model, peft.lora(setup.rank, targets=list(TARGETS)))
    random = np.random.default_rng(seed)

    def drawn(leaf: Any) -> jax.Array:
        shape = (setup.clients, *leaf.shape)
        return jnp.asarray(random.normal(0, ADAPTERS, shape), leaf.dtype)

    shape = (setup.clients, setup.prompts, setup.prompt_tokens)
    prompts = random.integers(3, model.config.vocab_size, shape)
    return Problem(
        adapted=adapted,
        deltas=jax.tree.map(drawn, adapted.delta),
        prompts=prompts.astype(np.int32),
    )


def program(adapted: peft.Adapted, new_tokens: int) -> Callable[..., jax.Array]:
    """Answers of all clients side by side: i32[clients, prompts, new_tokens].

    Args:
      adapted: the model.
      new_tokens: of an answer.

    Returns:
      A function of stacked deltas, the backbone and prompts.
    """
    how = preferences.writing(new_tokens)

    def client(delta: Any, backbone: Any, ids: jax.Array) -> jax.Array:
        model = adapted.model(delta, backbone)
        return preferences.roll_out(model, ids, jnp.ones_like(ids), how, None).tokens

    return jax.vmap(client, (0, None, 0))


def peers(found: Problem, setup: Setup) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The peer's two calls, which return int[clients, prompts, new_tokens].

    Args:
      found: the problem, whose weights and adapters are handed over in files.
      setup: sizes.

    Returns:
      (all at once by the first client's adapter, client by client).
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    shape = (setup.clients, setup.prompts, setup.new_tokens)
    ids = torch.tensor(found.prompts, dtype=torch.long)

    def write(model: Any, rows: Any) -> np.ndarray:
        model.generation_config.eos_token_id = None
        how = {
            "max_new_tokens": setup.new_tokens,
            "do_sample": False,
            "pad_token_id": 0,
        }
        whole = model.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=True, **how
        )
        return whole[:, setup.prompt_tokens :].numpy()

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        saved(found, place)

        def opened() -> Any:
            base = AutoModelForCausalLM.from_pretrained(
                place / "base", dtype=torch.float32
            )
            return PeftModel.from_pretrained(base, place / "0", adapter_name="0").eval()

        merged, each = opened().merge_and_unload(), opened()
        for k in range(1, setup.clients):
            each.load_adapter(place / str(k), adapter_name=str(k))

    def at_once() -> np.ndarray:
        with torch.inference_mode():
            return write(merged, ids.flatten(0, 1)).reshape(shape)

    def in_turn() -> np.ndarray:
        answers = []
        for k, rows in enumerate(ids):
            each.set_adapter(str(k))
            with torch.inference_mode():
                answers.append(write(each, rows))
        return np.stack(answers)

    return at_once, in_turn


def saved(found: Problem, place: Path) -> None:
    """Writes the base model and each client's adapter, as Hugging Face reads them.

    Args:
      found: the problem.
      place: of the folders "base", "0", "1" and so on.
    """
    model: Any = peft.merge(found.adapted.model())  # a new adapter changes nothing
    fields = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **dataclasses.asdict(model.config),
    }
    peft.save_merged(place / "base", model, fields)
    for k in range(len(found.prompts)):
        found.adapted.save_pretrained(
            place / str(k), one_of(found.deltas, k), base_model_name_or_path=MODEL
        )


def one_of(deltas: Any, client: int) -> Any:
    """A client's delta.

    Args:
      deltas: stacked.
      client: whose.
    """
    return jax.tree.map(lambda leaf: leaf[client], deltas)


def compared(model: Any, setup: Setup, repeats: int) -> dict[str, Any]:
    """Times ours and both ways of the peer in turn.

    Args:
      model: of Llama's family, f32.
      setup: sizes.
      repeats: calls of each, after one that compiles.

    Returns:
      Medians, tokens a second and the floor, which JSON can hold.

    Raises:
      RuntimeError: both sides do not write the same tokens.
    """
    found = problem(model, setup)
    backbone, prompts = found.adapted.backbone, jnp.asarray(found.prompts)
    write = jax.jit(program(found.adapted, setup.new_tokens))

    def ours(deltas: Any = found.deltas) -> np.ndarray:
        return np.asarray(write(deltas, backbone, prompts))

    calls = dict(zip(NAMES, (ours, *peers(found, setup)), strict=True))
    first = {}
    for name, call in calls.items():
        first[name] = seconds_of(call)
        told(f"{name}, first call: {first[name]:.1f} s")
    shared = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), found.deltas)
    equal = {
        "at_once": equal_share(ours(shared), calls["at_once"]()),
        "in_turn": equal_share(ours(), calls["in_turn"]()),
    }
    turns = []
    for n in range(repeats):
        turns.append([seconds_of(call) for call in calls.values()])
        told(f"turn {n + 1} of {repeats}: {sum(turns[-1]):.1f} s")
    medians = map(statistics.median, zip(*turns, strict=True))
    seconds = dict(zip(calls, medians, strict=True))
    n_tokens = setup.rows * setup.new_tokens
    return {
        **setup._asdict(),
        "processor": floor.processor(),
        "seconds": seconds,
        "tokens_per_second": {name: n_tokens / one for name, one in seconds.items()},
        "times_ours": {name: one / seconds["ours"] for name, one in seconds.items()},
        "first_call_seconds": first,
        "equal_answers": equal,
        **floor_of(found, setup),
        "repeats": repeats,
    }


NAMES = ("ours", "at_once", "in_turn")


def told(text: str) -> None:
    """Shows how far it is, beside the JSON.

    Args:
      text: a line.
    """
    print(text, file=sys.stderr, flush=True)


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of a call that returns when all is computed.

    Args:
      call: without arguments.
    """
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def equal_share(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of answers that are the same, token by token.

    Args:
      ours: int[clients, prompts, tokens].
      theirs: of the same shape.

    Raises:
      RuntimeError: too few are.
    """
    same = (ours == theirs).all(axis=-1)
    share = float(same.mean())
    if share < LEAST_EQUAL:
        raise RuntimeError(
            f"{share:.0%} of the answers are the same on both sides, expected "
            f"{LEAST_EQUAL:.0%}: they do not compute the same"
        )
    return share


def floor_of(found: Problem, setup: Setup) -> dict[str, float]:
    """Seconds below which no program gets here, by operations and by bytes.

    Args:
      found: the problem.
      setup: sizes.
    """
    operands = trees.shapes((found.deltas, found.adapted.backbone))
    rows = jax.ShapeDtypeStruct(found.prompts.shape, jnp.int32)
    flop = systems.flop_of(program(found.adapted, setup.new_tokens), *operands, rows)
    config = found.adapted.model().config
    shape = (setup.rows, config.hidden_size, config.intermediate_size)
    rate = floor.best_rate(Counter({shape: 1}))
    by_operations = flop / rate.flop_per_second
    read = setup.new_tokens * trees.nbytes(found.adapted.backbone)
    by_bytes = read / memory_rate()
    return {
        "floor_seconds": max(by_operations, by_bytes),
        "floor_by_operations": by_operations,
        "floor_by_bytes": by_bytes,
        "flop": flop,
        "bytes_read": read,
    }


def memory_rate() -> float:
    """Bytes a second at which a long array is read, on all cores."""
    import torch

    numbers = torch.ones(READ)
    return 4 * READ / floor.fastest(lambda: numbers.sum())


def main(given: Sequence[str] | None = None) -> None:
    """Prints one JSON object.

    Args:
      given: words of the command line; default: the process's.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tiny random model")
    options = parser.parse_args(given)
    if options.small:
        config = models.LlamaConfig(**TINY)
        model, setup = models.LlamaForCausalLM(config, nnx.Rngs(0)), SMALL
    else:
        model, setup = models.from_pretrained(MODEL, dtype="float32"), Setup()
    print(json.dumps(compared(model, setup, options.repeats)))


if __name__ == "__main__":
    main()
