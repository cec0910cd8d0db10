"""Checkpoints as they lie on disk, of random weights and a vocabulary of words."""

import json
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as token_models

from fedjax_fm import models, peft

WORDS = [
    "red",
    "green",
    "blue",
    "one",
    "two",
    "three",
    "colour",
    "number",
    "name",
    "the",
    "say",
    "of",
    "a",
    "what",
    "is",
    "it",
    "good",
    "bad",
    "fine",
    "poor",
    "great",
    "awful",
    "yes",
    "no",
    "film",
    "was",
    "###",
    "Instruction:",
    "Response:",
    "Q:",
    "A:",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|user|> ' if m.role == 'user' else '<|assistant|> ' }}"
    "{{ m.content }}{{ ' </s> ' if m.role == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
}
VIT = {
    "model_type": "vit",
    "architectures": ["ViTModel"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
}


def tokenizer(pairs: bool = False) -> Tokenizer:
    """Splits at blanks; with `pairs`, [CLS] a [SEP] b [SEP]."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(token_models.WordLevel(vocabulary, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(SPECIAL)
    if pairs:
        ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=ends,
        )
    return made


def checkpoint(
    place: Path, fields: dict, chat_template: str | None = None, seed: int = 0
) -> Path:
    """Writes config.json, model.safetensors and, of texts, a tokenizer."""
    is_text = fields["model_type"] != "vit"
    if is_text:
        fields = {**fields, "vocab_size": len(SPECIAL) + len(WORDS)}
    model = models.from_config(fields, seed=seed)
    peft.save_merged(place, model, fields)
    if not is_text:
        return place
    tokenizer(pairs=fields["model_type"] == "bert").save(str(place / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
    }
    if chat_template is not None:
        described["chat_template"] = chat_template
    text = json.dumps(described)
    (place / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return place


def chats(n_clients: int = 8, each: int = 6) -> list[dict]:
    """Rows of questions that have one answer each, by user."""
    colours, numbers = ("red", "green", "blue"), ("one", "two", "three")
    rows = []
    for client in range(n_clients):
        for k in range(each):
            colour = colours[(client + k) % 3]
            number = numbers[(client + k) % 3]
            rows.append(
                {
                    "instruction": f"say the number of {colour} a {client} {k}",
                    "output": f"{number} it is",
                    "user_id": f"user {client}",
                }
            )
    return rows


def reviews(n: int = 64) -> list[dict]:
    """Rows of texts with a class that a word gives away."""
    good, bad = ("good", "fine", "great"), ("bad", "poor", "awful")
    rows = []
    for k in range(n):
        words = (good, bad)[k % 2]
        rows.append(
            {
                "text": f"the film was {words[k % 3]} {k}",
                "label": ("pos", "neg")[k % 2],
                "user": k % 8,
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """One object a line."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path
