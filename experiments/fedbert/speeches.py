"""Roles of Shakespeare, a client each, in word pieces, and the model that is cut in two."""

import functools
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import WordPiece

import fedjax_fm as ffm
from fedjax_fm.experiments.shared.plays import roles as all_roles
from fedjax_fm.models import BertConfig
from fedjax_fm.models.masked_lm import bert_split
from fedjax_fm.split import Split, unsplit

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Rows = dict[str, np.ndarray]  # {"input_ids", "attention_mask"}: i32[n, T]


def word_pieces(texts: list[str], vocabulary: int) -> Tokenizer:
    """A WordPiece tokenizer of these texts, the same in every process.

    The trainer numbers the letters within words in the order of a hash map, which every
    process seeds anew, and breaks ties between merges by these numbers. As its first
    tokens they have numbers of their own.

    Args:
      texts: what it is trained on.
      vocabulary: its size.
    """
    letters = sorted({c for text in texts for c in text.lower() if c.isalnum()})
    within = [f"##{letter}" for letter in letters]
    how = {"vocab_size": vocabulary, "show_progress": False}
    trainer = trainers.WordPieceTrainer(special_tokens=[*SPECIAL, *within], **how)
    trained = _of_words({})
    trained.train_from_iterator(texts, trainer)
    return _of_words(trained.get_vocab())


def _of_words(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def rows(tokenizer: Tokenizer, texts: list[str], length: int) -> Rows:
    """Rows of [CLS] and at most length - 1 tokens, each of one speech.

    Args:
      tokenizer: from `word_pieces`.
      texts: speeches.
      length: of a row.
    """
    step, pieces = length - 1, []
    for encoded in tokenizer.encode_batch(texts):
        some = encoded.ids
        pieces += [some[i : i + step] for i in range(0, len(some), step)]
    ids = np.zeros((len(pieces), length), np.int32)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece) + 1] = [SPECIAL.index("[CLS]"), *piece]
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int32)}


def without_context(part: Rows, seed: int) -> Rows:
    """The same words, permuted over the places of all rows.

    Args:
      part: rows of a role.
      seed: of the permutation.
    """
    ids = part["input_ids"].copy()
    words = ids >= len(SPECIAL)
    ids[words] = np.random.default_rng(seed).permutation(ids[words])
    return {**part, "input_ids": ids}


class Data(NamedTuple):
    """Training and held-out rows of every role, and the model before training."""

    train: list[Rows]
    test: list[Rows]
    split: Split
    task: ffm.Task  # of the model in one piece
    delta: Any


@functools.cache
def speeches(roles: int, vocabulary: int) -> tuple[list[list[str]], Tokenizer]:
    """The speeches of the roles that speak most, and a tokenizer from all other roles.

    Args:
      roles: of a split; twice as many are returned, the longest first.
      vocabulary: size of the tokenizer's.
    """
    found = [role.speeches for role in all_roles().values()]

    def n_words(speeches: list[str]) -> int:
        return sum(len(speech.split()) for speech in speeches)

    by_size = sorted(found, key=n_words, reverse=True)
    others = [one for some in by_size[2 * roles :] for one in some]
    return by_size[: 2 * roles], word_pieces(others, vocabulary)


def data(config: Any, seed: int, split: str) -> Data:
    """Holds out whole speeches; tuning has roles of its own."""
    texts, tokenizer = speeches(config.roles, config.vocabulary)
    mine = texts[config.roles :] if split == "tuning" else texts[: config.roles]
    train, test = [], []
    for number, some in enumerate(mine):
        random = np.random.default_rng([seed, number])
        order = random.permutation(len(some))
        n = round(config.held_out * len(order))
        for part, which in ((test, order[:n]), (train, order[n:])):
            part.append(rows(tokenizer, [some[i] for i in which], config.length))
    bert = BertConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * config.width,
        max_position_embeddings=config.length,
        hidden_act="gelu_new",
    )
    words = (len(SPECIAL), config.vocabulary)
    how = {"mask_id": SPECIAL.index("[MASK]"), "words": words, "seed": seed}
    cut, delta = bert_split(bert, config.length, **how)
    return Data(train=train, test=test, split=cut, task=unsplit(cut), delta=delta)
