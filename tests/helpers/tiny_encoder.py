"""A tiny random encoder and its tokens, in the place of the pretrained one that studies
of sentences load.
"""

from typing import Any

import numpy as np

from fedjax_fm import models

BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 50,
    "num_hidden_layers": 2,
}
BERT |= {"num_attention_heads": 2, "max_position_embeddings": 8}


def tokens(tokenizer: Any, texts: list[str], max_length: int) -> dict[str, np.ndarray]:
    """A number for each word, the same in every process."""
    ids = [
        [1 + sum(map(ord, word)) % 49 for word in text.split()][:max_length] or [1]
        for text in texts
    ]
    padded = np.array([row + [0] * (max_length - len(row)) for row in ids], np.int32)
    return {"input_ids": padded, "attention_mask": (padded > 0).astype(np.int32)}


def install(monkeypatch: Any, *, hidden_size: int, intermediate_size: int) -> None:
    """Lets `models` load it whatever is asked for."""
    config = {
        **BERT,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
    }

    def from_pretrained(name: str, num_labels: int, pooling: str, seed: int) -> Any:
        return models.from_config(
            config, num_labels=num_labels, pooling=pooling, seed=seed
        )

    monkeypatch.setattr(models, "from_pretrained", from_pretrained)
    monkeypatch.setattr(models, "load_tokenizer", lambda name: None)
    monkeypatch.setattr(models, "tokenize", tokens)
