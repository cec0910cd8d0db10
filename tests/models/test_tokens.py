"""`tokenize`: against transformers, and what is no text is refused by row."""

import chat_families as families
import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as token_models

from fedjax_fm import models


def word_tokenizer(**words) -> Tokenizer:
    """[CLS] and [SEP] around words."""
    vocabulary = {
        word: i
        for i, word in enumerate(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film"]
        )
    }
    tokenizer = Tokenizer(token_models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


TEXTS = ["good film", "bad " * 9, "", "a\n🙂 film"]
BAD = {
    "None": (None, "NoneType"),
    "bytes": (b"good", "bytes"),
    "NaN": (float("nan"), "float"),
    "int": (3, "int"),
    "bool": (True, "bool"),
    "list": (["good"], "list"),
    "dict": ({"text": "good"}, "dict"),
    "array": (np.array(["good", "bad"]), "ndarray"),
    "bytes of numpy": (np.bytes_(b"good"), "bytes_"),
    "lone surrogate": ("good \ud83d", r"lone surrogate '\\ud83d' at position 5"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_is_refused_by_row(name):
    value, words = BAD[name]
    with pytest.raises((TypeError, ValueError), match=rf"text 2.*{words}"):
        models.tokenize(word_tokenizer(), ["good", "bad", value, None], 8)


@pytest.mark.parametrize(
    "bad", ["good film", b"good", None, 3, {"text": ["good"]}, np.str_("good")]
)
def test_what_is_no_list_of_texts(bad):
    with pytest.raises(
        TypeError, match=rf"expected a list of texts, got .*{type(bad).__name__}"
    ):
        models.tokenize(word_tokenizer(), bad, 8)


def test_columns_are_taken():
    expected = models.tokenize(word_tokenizer(), TEXTS, 6)
    for texts in (tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object), iter(TEXTS)):
        for name, array in models.tokenize(word_tokenizer(), texts, 6).items():
            np.testing.assert_array_equal(array, expected[name])
    assert models.tokenize(word_tokenizer(), [], 6)["input_ids"].shape == (0, 6)


@pytest.mark.parametrize("value", [2, 0, 2.5, True, "8", None])
def test_lengths(value):
    with pytest.raises((TypeError, ValueError), match=f"max_length={value!r}"):
        models.tokenize(word_tokenizer(), TEXTS, value)


@pytest.mark.parametrize("value", [-1, 0.5, True, "0"])
def test_padding_ids(value):
    with pytest.raises((TypeError, ValueError), match=f"pad_id={value!r}"):
        models.tokenize(word_tokenizer(), TEXTS, 8, value)


def test_padding_is_the_tokenizers_own():
    assert models.tokenize(word_tokenizer(), ["good"], 6)["input_ids"].tolist() == [
        [2, 4, 3, 0, 0, 0]
    ]
    roberta = word_tokenizer()
    roberta.enable_padding(pad_id=1, pad_token="<pad>")
    assert models.tokenize(roberta, ["good"], 6)["input_ids"].tolist() == [
        [2, 4, 3, 1, 1, 1]
    ]
    assert models.tokenize(roberta, ["good"], 5, pad_id=6)["input_ids"].tolist() == [
        [2, 4, 3, 6, 6]
    ]
    names = Tokenizer(
        token_models.WordLevel({"good": 0, "<unk>": 1, "<pad>": 2}, "<unk>")
    )
    names.add_special_tokens(["<pad>"])
    assert models.tokenize(names, ["good"], 4)["input_ids"].tolist() == [[0, 2, 2, 2]]


def test_the_tokenizer_is_left_as_it_was():
    tokenizer = word_tokenizer()
    models.tokenize(tokenizer, TEXTS, 4)
    assert len(tokenizer.encode("bad " * 9).ids) == 11
    tokenizer.enable_truncation(5, stride=1)
    tokenizer.enable_padding(length=7, pad_id=0)
    before = tokenizer.truncation, tokenizer.padding
    expected = tokenizer.encode("good").ids
    models.tokenize(tokenizer, TEXTS, 4)
    with pytest.raises(ValueError, match="text 0"):
        models.tokenize(tokenizer, ["\ud800"], 4)
    assert (tokenizer.truncation, tokenizer.padding) == before
    assert tokenizer.encode("good").ids == expected
    chat = models.Chat(
        tokenizer=tokenizer,
        template="{{ messages[0].content }}",
        variables={},
        eos_token_id=3,
        pad_token_id=0,
    )
    assert len(chat.prompt_ids([{"role": "user", "content": "bad " * 9}])) == 9
    assert (tokenizer.truncation, tokenizer.padding) == before


def test_a_tokenizer_of_transformers_is_taken():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=6)
    found = models.tokenize(theirs, TEXTS, 6)
    for name in ("input_ids", "attention_mask"):
        assert found[name].tolist() == expected[name]
    again = theirs(TEXTS)  # its own settings are untouched
    assert max(map(len, again["input_ids"])) == 11
    with pytest.raises(
        TypeError, match=r"expected a tokenizer of `tokenizers`.*CharacterTokenizer"
    ):
        models.tokenize(type("CharacterTokenizer", (), {})(), TEXTS, 6)
    for bad in ("bert-base-uncased", None, families.WEATHER):
        with pytest.raises(TypeError, match="expected a tokenizer of `tokenizers`"):
            models.tokenize(bad, TEXTS, 6)


def test_added_tokens_of_the_configuration_are_known(tmp_path):
    """tokenizer_config.json may hold tokens that tokenizer.json lacks."""
    tokenizer = word_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    plain = models.load_tokenizer(tmp_path)
    assert plain.encode("<e> good").ids == tokenizer.encode("<e> good").ids
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"7": {"content": "<é>", '
        '"lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true}}}',
        encoding="utf-8",
    )
    found = models.load_tokenizer(tmp_path)
    assert found.encode("<é> good").ids == [2, 7, 4, 3]
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("<é> good")["input_ids"] == [2, 7, 4, 3]


def test_pairs_of_texts_are_what_transformers_makes_of_them():
    transformers = pytest.importorskip("transformers")
    from small_checkpoints import tokenizer

    own = tokenizer(pairs=True)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(pairs=True), pad_token="[PAD]"
    )
    first, second = ["red green", "one"], ["blue", "the film was good and fine"]
    expected = theirs(
        first,
        second,
        padding="max_length",
        truncation=True,
        max_length=7,
        return_token_type_ids=True,
    )
    found = models.tokenize(own, first, 7, pairs=second)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert found[name].tolist() == expected[name], name
    assert "token_type_ids" not in models.tokenize(own, first, 7)
    with pytest.raises(ValueError, match="a second text for each of 2 texts, got 1"):
        models.tokenize(own, first, 7, pairs=["one"])
    with pytest.raises(TypeError, match="second text 1"):
        models.tokenize(own, first, 7, pairs=["one", None])
