"""The tokenizer that the metadata of a GGUF file describe.

Either it is SentencePiece's (`tokenizer.ggml.model` is "llama", see `scored_pieces`),
or byte-level BPE ("gpt2", see `byte_level_bpe`). For the latter a file names its
pre-tokenizer, the rule that cuts text into words before merges are applied, in one
word; the rule itself is in the reader's code. Each is here as the model's own
tokenizer.json has it:

    gpt-2      GPT-2's words
    smollm     every digit alone, then GPT-2's words
    llama-bpe  Llama 3: up to three digits together; a word that is a token is one,
               whatever the merges say
    qwen2      Qwen 2 to 3: every digit alone, text in Unicode's normal form C

transformers 5.23 ignores the field: with `gguf_file=` its ids differ from SmolLM2's
where two or more blanks or line breaks come before a digit, and at signs such as the
fraction one half.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

# llama.cpp's token types
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_BLANK = "▁"  # SentencePiece's sign of a blank
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


class _Kind(NamedTuple):
    """What a pre-tokenizer's name stands for."""

    words: Callable[[], Any]  # makes the rule that cuts text into words
    composed: bool = False  # text is brought into normal form C
    ignore_merges: bool = False  # a word that is a token is that token
    begins: bool = False  # texts begin with a special token where the file does not say


def _gpt2() -> Any:
    """GPT-2's words."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> Any:
    """Every digit alone, then GPT-2's words."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _gpt2()]
    )


def _by_regex(digits: str) -> Any:
    """Words by Llama 3's expression, with this one for digits."""
    words = Regex(_WORDS.replace("DIGITS", digits))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="isolated"), to_bytes]
    )


def _llama3() -> Any:
    """Up to three digits together."""
    return _by_regex(r"\p{N}{1,3}")


def _qwen2() -> Any:
    """Every digit alone."""
    return _by_regex(r"\p{N}")


_LLAMA3 = _Kind(words=_llama3, ignore_merges=True, begins=True)
KINDS = {
    "gpt-2": _Kind(words=_gpt2),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _Kind(words=_qwen2, composed=True),
    "smollm": _Kind(words=_smollm),
}


def byte_level_bpe(field: Callable[..., Any]) -> Tokenizer:
    """The tokenizer of a file.

    Args:
      field: `(name, default=None) -> a metadata value`, see `GGUFFile.field`.

    Raises:
      ValueError: a tokenizer or a pre-tokenizer of another kind, or metadata that are
        missing.

    Example:
      >>> metadata = {
      ...     "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"],
      ...     "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.token_type": [1, 1, 1],
      ... }
      >>> byte_level_bpe(metadata.get).encode("abb").tokens
      ['ab', 'b']
    """
    family, pre = _required(field, "model"), field("tokenizer.ggml.pre", "gpt-2")
    if family != "gpt2" or pre not in KINDS:
        raise ValueError(
            f"tokenizer {family!r} with pre-tokenizer {pre!r} is not supported; "
            f"expected 'gpt2' with one of {list(KINDS)}, or 'llama'"
        )
    kind, tokens = KINDS[pre], _required(field, "tokens")
    merged = _required(field, "merges")
    merges = [tuple(merge.split(" ", 1)) for merge in merged]
    numbers = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(numbers, merges, ignore_merges=kind.ignore_merges))
    if kind.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = kind.words()
    tokenizer.decoder = decoders.ByteLevel()
    types = _required(field, "token_type")
    tokenizer.add_tokens(_added(tokens, types))
    ends = _ends(field, tokens, kind.begins)
    if ends is not None:
        tokenizer.post_processor = ends
    return tokenizer


def tokenizer_of(field: Callable[..., Any]) -> Tokenizer:
    """The tokenizer of a file, of either kind.

    Args:
      field: `(name, default=None) -> a metadata value`, see `GGUFFile.field`.

    Raises:
      ValueError: a tokenizer of another kind, or metadata that are missing.
    """
    sentence_piece = _required(field, "model") == "llama"
    return scored_pieces(field) if sentence_piece else byte_level_bpe(field)


def scored_pieces(field: Callable[..., Any]) -> Tokenizer:
    """SentencePiece's BPE: of all neighbours that are a piece, the best are merged.

    A file holds the pieces with their scores, and no merges: those are all ways to make
    a piece of two others, best pieces first. Characters that are no piece become their
    bytes. Texts begin with a blank unless the file says otherwise.

    Args:
      field: `(name, default=None) -> a metadata value`, see `GGUFFile.field`.

    Raises:
      ValueError: metadata that are missing.

    References:
      Kudo and Richardson, 2018, arXiv 1808.06226, section 3.1; Sennrich et al., 2016,
      arXiv 1508.07909.

    Example:
      >>> metadata = {
      ...     "tokenizer.ggml.tokens": ["<unk>", "▁", "a", "b", "ab", "▁a"],
      ...     "tokenizer.ggml.scores": [0.0, -9.0, -9.0, -9.0, -1.0, -2.0],
      ...     "tokenizer.ggml.token_type": [2, 1, 1, 1, 1, 1],
      ... }
      >>> scored_pieces(metadata.get).encode("ab a").tokens
      ['▁', 'ab', '▁a']
    """
    tokens, scores = _required(field, "tokens"), _required(field, "scores")
    types = _required(field, "token_type")
    numbers = {token: number for number, token in enumerate(tokens)}
    made = [
        (-score, token)
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind in (_NORMAL, _UNUSED)
    ]
    pieces = {token for _, token in made}
    merges = [
        (token[:cut], token[cut:])
        for _, token in sorted(made, key=_cost)
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    unknown = field("tokenizer.ggml.unknown_token_id", 0)
    bpe = models.BPE(
        numbers, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    blanks: list[Any] = [normalizers.Replace(" ", _BLANK)]
    back: list[Any] = [
        decoders.Replace(_BLANK, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if field("tokenizer.ggml.add_space_prefix", True):
        blanks.insert(0, normalizers.Prepend(_BLANK))
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(blanks)
    tokenizer.decoder = decoders.Sequence(back)
    tokenizer.add_tokens(_added(tokens, types))
    ends = _ends(field, tokens, begins=True)
    if ends is not None:
        tokenizer.post_processor = ends
    return tokenizer


def _cost(scored: tuple[float, str]) -> float:
    """The first of a pair: equal ones stay in the order of their ids."""
    return scored[0]


def _required(field: Callable[..., Any], name: str) -> Any:
    """A metadata value of the tokenizer that must be there."""
    value = field(f"tokenizer.ggml.{name}")
    if value is None:
        raise ValueError(
            f"lacks the metadata field 'tokenizer.ggml.{name}'; convert the model "
            "again with llama.cpp"
        )
    return value


def _added(tokens: list[str], types: list[int]) -> list[AddedToken]:
    """Tokens that are never made of merges; control tokens are special."""
    return [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _ends(field: Callable[..., Any], tokens: list[str], begins: bool) -> Any:
    """The processor that puts special tokens around a text, or None."""
    bos = eos = None
    if field("tokenizer.ggml.add_bos_token", begins):
        bos = field("tokenizer.ggml.bos_token_id")
    if field("tokenizer.ggml.add_eos_token", False):
        eos = field("tokenizer.ggml.eos_token_id")
    special = [(tokens[number], number) for number in (bos, eos) if number is not None]
    if not special:
        return None
    before = "" if bos is None else f"{tokens[bos]} "
    behind = "" if eos is None else f" {tokens[eos]}"
    return processors.TemplateProcessing(
        single=f"{before}$A{behind}", special_tokens=special
    )
