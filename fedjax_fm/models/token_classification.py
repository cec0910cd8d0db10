"""BERT with a label for each token, and labels of words as labels of their tokens.

References:
  Devlin et al., 2018, arXiv 1810.04805, section 5.3 (the first piece of a word has its
  label).
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from fedjax_fm import checks
from fedjax_fm.models.bert import BertConfig, BertModel
from fedjax_fm.models.classifier import classifier
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.models.tokens import backend, padding_id, without_padding
from fedjax_fm.models.weights import Naming


class BertForTokenClassification(nnx.Module):
    """BERT with a linear classifier on every token: logits f32[B, T, num_labels].

    Args:
      config: sizes.
      num_labels: classes.
      rngs: draws the initial weights.
      dtype: of the encoder's weights and activations; the classifier stays f32.

    Raises:
      ValueError: no label.

    Example:
      >>> from fedjax_fm import models
      >>> config = models.BertConfig(
      ...     vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=16,
      ... )
      >>> def run(inputs):
      ...     return models.BertForTokenClassification(config, 4, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 5), jnp.int32)).shape  # traced, not computed
      (3, 5, 4)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layer",),
        prefixes=("", "bert."),
        new=("classifier",),
        # As in Hugging Face this model has no pooler, which a checkpoint may have.
        ignored=(r"position_ids$", r"^cls\.", r"^qa_outputs\.", r"^(bert\.)?pooler\."),
    )

    def __init__(
        self,
        config: BertConfig,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.bert = BertModel(config, rngs, dtype, pooler=False)
        self.classifier = classifier(config.hidden_size, num_labels, rngs)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits f32[B, T, num_labels].

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.
          token_type_ids: i32[B, T], the segment of each token; None: all 0.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        hidden = self.bert(input_ids, attention_mask, token_type_ids, key)
        return self.classifier(hidden.astype(jnp.float32))


def tokenize_words(
    tokenizer: Tokenizer,
    sentences: Iterable[Sequence[str]],
    labels: Iterable[Sequence[int]],
    max_length: int,
) -> dict[str, np.ndarray]:
    """Sentences of labelled words as rows of token ids, each word's label on its first.

    A word may be several tokens: the first one has its label, the others -100, as have
    special tokens and padding. Words beyond `max_length` are cut off with their labels;
    a word of which the tokenizer leaves nothing has none.

    Args:
      tokenizer: of `load_tokenizer`, or a fast one of transformers. One that writes a
        word at the beginning of a text in another way (byte-level without
        `add_prefix_space`) is refused.
      sentences: n lists of words.
      labels: n lists of class numbers, one a word.
      max_length: tokens of a row, special ones included; at least 3.

    Returns:
      {"input_ids", "attention_mask", "labels"}: int32[n, max_length], padded on the
      right.

    Raises:
      TypeError, ValueError: no tokenizer, or one that reads single words in another
        way; a sentence that is one text; labels that do not fit the words; names the
        sentence.

    References:
      Devlin et al., 2018, arXiv 1810.04805, section 5.3.

    Example:
      >>> from tokenizers import Tokenizer, models, pre_tokenizers
      >>> vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "##b": 3, "<pad>": 4}
      >>> tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
      >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
      >>> found = tokenize_words(tokenizer, [["ab", "b"]], [[7, 8]], 4)
      >>> found["input_ids"].tolist(), found["labels"].tolist()
      ([[1, 3, 2, 4]], [[7, -100, 8, -100]])
    """
    tokenizer = backend(tokenizer)
    checks.whole("max_length", max_length, least=3)
    pairs = _checked(list(sentences), list(labels))
    ids = np.full((len(pairs), max_length), padding_id(tokenizer), np.int32)
    mask, found = np.zeros_like(ids), np.full_like(ids, IGNORED)
    with without_padding(tokenizer, max_length):
        _check_single_words(tokenizer)
        words = [list(sentence) for sentence, _ in pairs]
        encodings = tokenizer.encode_batch(words, is_pretokenized=True)
    for row, encoding in enumerate(encodings):
        n = len(encoding.ids)
        ids[row, :n], mask[row, :n] = encoding.ids, 1
        found[row, :n] = _of_first_pieces(encoding.word_ids, pairs[row][1])
    return {"input_ids": ids, "attention_mask": mask, "labels": found}


def _of_first_pieces(words: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """The label of each token: its word's where the word begins, else -100."""
    before = [None, *words[:-1]]
    return [
        IGNORED if word is None or word == last else int(labels[word])
        for word, last in zip(words, before, strict=True)
    ]


def _checked(
    sentences: list[Sequence[str]], labels: list[Sequence[int]]
) -> list[tuple[Sequence[str], Sequence[int]]]:
    """(words, labels) of each sentence; raises where they do not fit."""
    if len(sentences) != len(labels):
        raise ValueError(
            f"expected labels of {len(sentences)} sentences, got {len(labels)}"
        )
    pairs = list(zip(sentences, labels, strict=True))
    for number, (words, own) in enumerate(pairs):
        if isinstance(words, (str, bytes)):
            raise TypeError(
                f"expected sentence {number} as a list of words, got {words!r:.60}"
            )
        for word in words:
            checks.text(f"a word of sentence {number}", word)
        if len(words) != len(own):
            raise ValueError(
                f"expected a label for each of the {len(words)} words of sentence "
                f"{number}, got {len(own)}"
            )
    return pairs


def _check_single_words(tokenizer: Tokenizer) -> None:
    """Raises ValueError where a word by itself has other tokens than inside a text."""
    alone = tokenizer.encode(["a", "b"], is_pretokenized=True)
    if alone.ids != tokenizer.encode("a b").ids:
        raise ValueError(
            "the tokenizer writes the words 'a', 'b' in another way than the text "
            "'a b', so that the model would read what it was not trained on; set "
            "add_prefix_space of its pre-tokenizer"
        )
