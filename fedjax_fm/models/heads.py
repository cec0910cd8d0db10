"""Whether a language model's head is its table of tokens.

config.json says one thing; the files may hold another.
"""

import contextlib
from pathlib import Path
from typing import Any

from fedjax_fm.models.weights import Naming, Tensors, WeightError, weight_files

HEAD = "lm_head.weight"


def with_its_head(
    fields: dict[str, Any], folder: Path, naming: Naming, tied: bool
) -> dict[str, Any]:
    """The fields of config.json with `tie_word_embeddings` as the files have it.

    transformers decides it in the same way. Many tied checkpoints store the head all
    the same (Qwen3-0.6B does). Where it equals the table, it is the table. Where it
    differs, the configuration is wrong and the model has a head of its own.

    Args:
      fields: of config.json.
      folder: with the files.
      naming: the model's, with the path of its table.
      tied: whether the configuration says so.

    Raises:
      WeightError: no head, neither of its own nor tied. transformers would draw a
        random one with a warning.
    """
    with contextlib.ExitStack() as stack:
        tensors = Tensors(weight_files(folder), stack)
        stored = HEAD in tensors.source
        if not stored and not tied:
            raise WeightError(
                f"{folder} has no {HEAD}, and its config.json does not tie the "
                "head to the embedding (tie_word_embeddings is false, or left "
                "out where that means false). It is a model without a head. Take "
                "the checkpoint of the language model; or set "
                "tie_word_embeddings to true in config.json, if the head is the "
                "embedding; or give num_labels=N for a classifier, which needs "
                "none."
            )
        if stored and tied:
            tied = _same(tensors, naming)
    return {**fields, "tie_word_embeddings": tied}


def _same(tensors: Tensors, naming: Naming) -> bool:
    """Whether the stored head is the table, or is stored in the table's place."""
    name = naming.tensor(naming.embedding, None)[0]
    spellings = [
        spelling
        for prefix in naming.prefixes
        for spelling in (prefix + name, name.removeprefix(prefix))
    ]
    tables = [
        spelling
        for spelling in (*spellings, *naming.copies)
        if spelling in tensors.source
    ]
    return not tables or tensors.equal(tables[0], HEAD)
