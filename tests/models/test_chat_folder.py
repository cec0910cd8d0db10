"""Tokenizer, special tokens, templates and ends as published folders hold them, against
transformers.
"""

import json

import chat_families as families
import pytest

from fedjax_fm import models
from fedjax_fm.models.weights import WeightError

CHATML = families.untagged("chatml")
ALL = (
    "{{ bos_token }}{{ eos_token }}{{ sep_token }}{{ unk_token }}{{ image_token }}{{ "
    "messages[0].content }}"
)
MESSAGES = families.said("Grüße <|im_end|> x</s>y", "Hello!")


def write(folder, config, **files):
    """A folder with tokenizer.json, tokenizer_config.json and other files by name
    ('a__b' is a/b).
    """
    families.new_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"PreTrainedTokenizerFast": {"tokenizer_class": "PreTrainedTokenizerFast"}}
    config = {**names["PreTrainedTokenizerFast"], **config}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, ensure_ascii=False), encoding="utf-8"
    )
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        text = (
            content
            if isinstance(content, str)
            else json.dumps(content, ensure_ascii=False)
        )
        path.write_text(text, encoding="utf-8")
    return folder


# The longest word of the vocabulary that is no added token.
WORD = max(
    (
        word
        for word in families.new_tokenizer().get_vocab()
        if word.isascii() and word.isalpha()
    ),
    key=len,
)
TOKENS = {"eos_token": "</s>", "pad_token": "<pad>"}
FORMS = {
    "words": ({**TOKENS, "bos_token": "<s>", "unk_token": "<unk>", "chat_template": ALL}, {}),
    "added tokens as mappings": (
        {"eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False}, "bos_token": None,
         "pad_token": {"__type": "AddedToken", "content": "<pad>"}, "chat_template": ALL}, {},
    ),
    "tokens of special_tokens_map.json alone": (
        {"chat_template": ALL},
        {"special_tokens_map.json": {**TOKENS, "bos_token": {"content": "<s>", "lstrip": False, "normalized": False,
         "rstrip": False, "single_word": False}, "sep_token": "<|im_end|>", "additional_special_tokens": ["<|user|>"]}},
    ),
    "special_tokens_map.json wins": (
        {**TOKENS, "bos_token": "<pad>", "chat_template": ALL}, {"special_tokens_map.json": {"bos_token": "<s>"}},
    ),
    "special_tokens_map.json beside added_tokens_decoder": (
        {**TOKENS, "chat_template": ALL, "added_tokens_decoder": {}}, {"special_tokens_map.json": {"bos_token": "<s>"}},
    ),
    "a token of the model's own": ({**TOKENS, "image_token": "<|user|>", "chat_template": ALL}, {}),
    "named extra tokens": ({**TOKENS, "extra_special_tokens": {"image_token": "<|user|>"}, "chat_template": ALL}, {}),
    "a list of extra tokens": ({**TOKENS, "additional_special_tokens": ["<|user|>"], "chat_template": ALL}, {}),
    "a list of templates": (
        {**TOKENS, "chat_template": [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "t"}]}, {},
    ),
    "a mapping of templates": ({**TOKENS, "chat_template": {"default": CHATML, "tool_use": "{{ tools | tojson }}"}}, {}),
    "chat_template.jinja": ({**TOKENS, "chat_template": "old"}, {"chat_template.jinja": "é{{ messages[0].content }}\n"}),
    "additional_chat_templates": (
        {**TOKENS, "chat_template": "old"},
        {"chat_template.jinja": CHATML, "additional_chat_templates__tool_use.jinja": "{{ tools | tojson }}"},
    ),
    "Windows' line breaks": ({**TOKENS}, {"chat_template.jinja": CHATML.replace("{% for", "a\r\n{% for")}),
    "a special token that is not an added one": (
        {**TOKENS, "sep_token": WORD, "chat_template": "{{ messages[0].content }} a" + WORD + "b{{ sep_token }}"}, {},
    ),
    "added_tokens_decoder beyond tokenizer.json": (
        {**TOKENS, "chat_template": "{{ messages[0].content }}<|more|>!"}, {"more": True},
    ),
}  # fmt: skip


@pytest.mark.compatibility
@pytest.mark.parametrize("form", FORMS)
def test_folders_read_as_by_transformers(tmp_path, form, compatibility):
    transformers = pytest.importorskip("transformers")
    config, files = FORMS[form]
    files = dict(files)
    if files.pop("more", False):
        n = families.new_tokenizer().get_vocab_size()
        fields = {
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        config = {
            **config,
            "added_tokens_decoder": {str(n): {"content": "<|more|>", **fields}},
        }
    write(tmp_path, config, **files)
    theirs, ours = (
        transformers.AutoTokenizer.from_pretrained(tmp_path),
        models.load_chat(tmp_path),
    )
    for tools in (None, [families.WEATHER]):
        if tools and not isinstance(theirs.chat_template, dict):
            continue
        for prompt in (False, True):
            options = {"add_generation_prompt": prompt, "tools": tools}
            assert ours.text(MESSAGES, **options) == theirs.apply_chat_template(
                MESSAGES, tokenize=False, **options
            )
        ids = theirs.apply_chat_template(
            MESSAGES, add_generation_prompt=True, return_dict=False, tools=tools
        )
        assert ours.prompt_ids(MESSAGES, tools=tools) == ids
    assert dict(ours.variables) == theirs.special_tokens_map
    assert (ours.eos_token_id, ours.pad_token_id) == (
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    compatibility.works("Template constructs", form, "folder")


@pytest.mark.compatibility
def test_chat_template_json_is_read_where_nothing_else_is(tmp_path, compatibility):
    """The older file of processors, which transformers' tokenizers leave to them."""
    write(tmp_path, TOKENS, **{"chat_template.json": {"chat_template": CHATML}})
    chat = models.load_chat(tmp_path)
    assert chat.template == CHATML
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(
        MESSAGES, tokenize=False, chat_template=CHATML
    )
    assert chat.text(MESSAGES) == expected
    write(tmp_path, {**TOKENS, "chat_template": "{{ messages[0].content }}"})
    assert models.load_chat(tmp_path).text(MESSAGES) == MESSAGES[0]["content"]
    compatibility.works("Template constructs", "chat_template.json", "folder")


@pytest.mark.parametrize(
    ("config", "files", "words"),
    [
        ({**TOKENS}, {}, "has no chat template; it is a base model"),
        (
            {**TOKENS, "chat_template": {"tool_use": "x"}},
            {},
            r"templates \['tool_use'\] and no default",
        ),
        ({**TOKENS, "chat_template": 3}, {}, "chat_template"),
        (
            {**TOKENS, "eos_token": "<|none|>", "chat_template": "x"},
            {},
            r"eos_token '<\|none\|>'.*tokenizer.json does not",
        ),
        (
            {**TOKENS, "sep_token": "<|none|>", "chat_template": "{{ sep_token }}"},
            {},
            r"sep_token '<\|none\|>'",
        ),
        ({**TOKENS, "eos_token": 5, "chat_template": "x"}, {}, "eos_token"),
        ({"chat_template": "x"}, {}, "neither a padding nor an end token"),
        ({**TOKENS}, {"chat_template.json": "[1]"}, "chat_template.json"),
        (
            {**TOKENS},
            {"special_tokens_map.json": "["},
            r"special_tokens_map.json is not JSON",
        ),
        (
            {
                **TOKENS,
                "chat_template": "x",
                "added_tokens_decoder": {"9999": {"content": "<|more|>"}},
            },
            {},
            "9999",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path, config, files, words):
    write(tmp_path, config, **files)
    with pytest.raises(WeightError, match=words):
        models.load_chat(tmp_path)


ENDS = {
    "several": ({"generation_config.json": {"eos_token_id": [1, 7, 9]}}, (1, 7, 9)),
    "one": ({"generation_config.json": {"eos_token_id": 7}}, (7,)),
    "the configuration's": (
        {"config.json": {"model_type": "llama", "eos_token_id": [5, 6]}},
        (5, 6),
    ),
    "both": (
        {
            "config.json": {"model_type": "llama", "eos_token_id": 5},
            "generation_config.json": {"eos_token_id": [8, 9]},
        },
        (8, 9),
    ),
    "a generation configuration without": (
        {
            "config.json": {"model_type": "llama", "eos_token_id": 5},
            "generation_config.json": {"temperature": 0.7},
        },
        (5,),
    ),
    "the text model's": (
        {"config.json": {"model_type": "llama", "text_config": {"eos_token_id": 4}}},
        (4,),
    ),
    "none": ({}, (families.new_tokenizer().token_to_id("</s>"),)),
}


@pytest.mark.parametrize("name", ENDS)
def test_ends_are_those_that_generation_knows(tmp_path, name):
    files, expected = ENDS[name]
    write(tmp_path, {**TOKENS, "chat_template": CHATML}, **files)
    assert models.load_chat(tmp_path).eos_token_ids == expected
    assert models.end_tokens(tmp_path) == expected


@pytest.mark.parametrize("bad", ["</s>", True, -1, 1.5, [1, None], {"a": 1}])
def test_bad_ends(tmp_path, bad):
    write(
        tmp_path,
        {**TOKENS, "chat_template": CHATML},
        **{"generation_config.json": {"eos_token_id": bad}},
    )
    with pytest.raises(WeightError, match="eos_token_id"):
        models.load_chat(tmp_path)


@pytest.mark.compatibility
def test_a_gguf_file_names_its_templates_tokens_and_ends(tmp_path, compatibility):
    gguf = pytest.importorskip("gguf")
    from tokenizers import pre_tokenizers

    words = [
        "<s>",
        "</s>",
        "<|eot|>",
        "<|eom|>",
        "<unk>",
        "ab",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
    ]
    named = [
        {
            "name": "default",
            "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ unk_token }}",
        },
        {"name": "tool_use", "template": "{{ tools | length }}"},
    ]
    for ends, expected in (((2, 3), (1, 2, 3)), ((), (1,)), ((1, None), (1,))):
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(words)
        writer.add_token_types([3] * 5 + [1] * (len(words) - 5))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(4)
        for name, end in zip(("eot", "eom"), ends, strict=False):
            if end is not None:
                writer.add_uint32(f"tokenizer.ggml.{name}_token_id", end)
        writer.add_chat_template(named)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        chat = models.load_chat(tmp_path / "a.gguf")
        assert chat.eos_token_ids == models.end_tokens(tmp_path / "a.gguf") == expected
        assert chat.text(families.said("Hi")) == "<s>Hi</s><unk>"
        assert chat.text(families.said("Hi"), tools=[families.WEATHER]) == "1"
    compatibility.works("Template constructs", "named templates and ends", "GGUF file")
