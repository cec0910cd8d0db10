"""Hugging Face's BERT classifier with the weights of the data file."""

import torch
from transformers import BertConfig, BertForSequenceClassification


def pretrained(data):
    """BertForSequenceClassification, dropout off, from arrays under its own names."""
    tensors = {
        name: torch.from_numpy(array)
        for name, array in data.frozen.items()
        if array.ndim
    }
    vocabulary, d = tensors["bert.embeddings.word_embeddings.weight"].shape
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=d,
        intermediate_size=4 * d,
        num_hidden_layers=len(data.start["bert.query.lora_a"]),
        num_attention_heads=int(data.frozen["n_heads"]),
        max_position_embeddings=len(
            tensors["bert.embeddings.position_embeddings.weight"]
        ),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = len(data.start["classifier.bias"])
    model = BertForSequenceClassification(config)
    tensors["classifier.weight"] = torch.from_numpy(
        data.start["classifier.kernel"].T.copy()
    )
    tensors["classifier.bias"] = torch.from_numpy(data.start["classifier.bias"])
    model.load_state_dict(tensors)
    return model
