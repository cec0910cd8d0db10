"""Tokens per second of one federated round, and of the same steps in Hugging Face PEFT.

    pip install torch transformers peft          (not needed by anything else here)
    python -m fedjax_fm.experiments.generate.compare_peft [--rounds 3]

Both sides are timed in turn, on this machine. They train rank-8 LoRA on q_proj and
v_proj of the same weights in f32: `cohort` clients, each from the same start,
`local_steps` steps of clipped Adam on rows of `row_length` tokens, loss on the same
labels; then the mean of the adapters. Compilation is apart. PEFT's losses at the first
step are compared with ours, so that the same thing is timed.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

import fedjax_fm as ffm
from fedjax_fm import channels, models
from fedjax_fm.experiments import generate
from fedjax_fm.experiments.shared.conversations import Rows, Texts
from fedjax_fm.experiments.shared.language import Config, averaging
from fedjax_fm.study.judged import joined

LEARNING_RATE = 1e-2


def unmasked_rows(config: Config, texts: Texts) -> list[Rows]:
    """Packed rows that both sides can read.

    PEFT's model takes no masks between texts, so a row is one text here, and the little
    padding of the fullest rows is read like the rest.

    Args:
      config: of the study.
      texts: of the study.

    Returns:
      The rows of each client.
    """
    rows = joined(texts.train)
    full = (rows["attention_mask"] > 0).sum(axis=1)
    n = config.local_steps * config.batch_size
    best = np.argsort(-full, kind="stable")[: config.cohort * n]
    chosen = {name: array[best] for name, array in rows.items()}
    chosen["attention_mask"] = np.ones_like(chosen["attention_mask"])
    return [
        {name: array[k * n : (k + 1) * n] for name, array in chosen.items()}
        for k in range(config.cohort)
    ]


def ours(config: Config, texts: Texts, clients: list[Rows]):
    """Prepares our side.

    Args:
      config: of the study.
      texts: of the study.
      clients: their rows.

    Returns:
      (a function that runs a round and returns its seconds, seconds of the first round,
      the first loss).
    """
    adapted = texts.adapted
    simulator = ffm.Simulator(
        averaging(config, texts.task, LEARNING_RATE, config.rounds),
        ffm.Population.from_clients(clients),
        backbone=adapted.backbone,
        cohort_size=config.cohort,
        uplink=channels.quantize(config.bits),
    )
    state = simulator.init(adapted.delta)

    def one_round() -> float:
        started = time.perf_counter()
        after, _ = simulator.run(state, 1)
        jax.block_until_ready(after.carry)
        return time.perf_counter() - started

    first = one_round()
    batch = {name: array[:1] for name, array in clients[0].items()}
    loss, _ = jax.jit(texts.task.loss)(adapted.delta, adapted.backbone, batch, None)
    return one_round, first, float(loss[0])


def theirs(config: Config, clients: list[Rows]):
    """Prepares the loop that a PEFT user writes.

    Args:
      config: of the study.
      clients: their rows.

    Returns:
      As `ours`.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    weights = models.locate(config.model).weights
    loaded = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    )
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank,
        target_modules=["q_proj", "v_proj"],
        lora_dropout=0.0,
    )
    model = get_peft_model(loaded, lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    tensors = [
        {name: torch.tensor(array, dtype=torch.long) for name, array in rows.items()}
        for rows in clients
    ]

    def one_round() -> float:
        started = time.perf_counter()
        total = [torch.zeros_like(p) for p in start]
        for rows in tensors:
            with torch.no_grad():
                for p, s in zip(trained, start, strict=True):
                    p.copy_(s)
            optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
            for step in range(config.local_steps):
                first = step * config.batch_size
                part = slice(first, first + config.batch_size)
                batch = {name: x[part] for name, x in rows.items()}
                optimizer.zero_grad()
                model(**batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
                optimizer.step()
            for t, p in zip(total, trained, strict=True):
                t += p.detach() / len(tensors)
        return time.perf_counter() - started

    with torch.no_grad():
        row = {name: x[:1] for name, x in tensors[0].items()}
        loss = float(model(**row).loss)
    return one_round, one_round(), loss


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    config = Config()
    texts = generate.STUDY.data(config, 0, "final")
    clients = unmasked_rows(config, texts)
    mine, compile_and_first, our_loss = ours(config, texts, clients)
    other, other_first, their_loss = theirs(config, clients)
    if abs(our_loss - their_loss) > 1e-2:
        raise RuntimeError(
            f"the two sides compute different losses: {our_loss} and {their_loss}"
        )
    pairs = [(mine(), other()) for _ in range(rounds)]
    tokens = config.cohort * config.local_steps * config.batch_size * config.row_length
    seconds, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    found = {
        "name": "generate-round",
        "seconds": seconds,
        "peer": "HF PEFT",
        "peer_seconds": peer,
        "ratio": peer / seconds,
        "tokens_per_second": tokens / seconds,
        "peer_tokens_per_second": tokens / peer,
        "losses": [our_loss, their_loss],
        "first_call_seconds": compile_and_first,
        "peer_first_seconds": other_first,
        "rounds": rounds,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
