"""A decoder that is read only, in every format of its weights."""

from typing import Any

import numpy as np

import fedjax_fm as ffm
from fedjax_fm import datasets, models, peft, study, tasks, trees
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.shared.sentences import Arrays


def decoder(run: study.Run, form: dict[str, Any]) -> dict[str, float]:
    """Nats a token of the decoder, untrained, on both kinds of text, and its size.

    Args:
      run: of the arm.
      form: of the frozen weights, as arguments of `from_pretrained`.
    """
    config = run.config
    if not config.decoder_rows:
        return {}
    model: Any = models.from_pretrained(config.decoder, **form)
    no_effect = peft.lora(1, targets="q_proj")  # before training
    own = peft.apply(model, no_effect)
    task = tasks.language_modeling(own)
    found = {"decoder_megabytes": trees.nbytes(own.backbone) / 1e6}
    of_both = run.once("texts", lambda: texts(config, run.seed))
    for name, rows in of_both.items():
        scores = ffm.evaluate(task, own.delta, own.backbone, rows, batch_size=8)
        found[name] = means(scores)["loss"]
    return found


def texts(config: Any, seed: int) -> dict[str, Arrays]:
    """Rows of both kinds of text, of at least 16 tokens."""
    tokenizer = models.load_tokenizer(config.decoder)
    lines = {
        "shakespeare": datasets.load_shakespeare()["speech"],
        "sentences": datasets.load_sentiment()["text"],
    }
    found = {}
    for name, some in lines.items():
        long, random = [], np.random.default_rng(seed)
        for i in random.permutation(len(some)):
            if len(long) == config.decoder_rows:
                break
            ids = tokenizer.encode(str(some[i])).ids[: config.decoder_length]
            if len(ids) >= 16:
                long.append(ids)
        rows = models.pad_prompts(long, 0, config.decoder_length)
        found[name] = {**rows, "labels": rows["input_ids"]}
    return found
