"""GGUF files of Llama 3, Qwen 2 and 3, Gemma 3 and with biases or windows, against transformers;
their tokenizers.
"""

import math
import re

import numpy as np
import published
import pytest
from tokenizers import AddedToken

from fedjax_fm import models
from fedjax_fm.models import GGUFFile, WeightError

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TYPES = "GGUF types"
IDS = {"input_ids": np.random.default_rng(0).integers(5, 99, (2, 40)).astype(np.int32)}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{word}_proj": f"attn_{word}" for word in "qkv"},
    **{f"self_attn.{word}_norm": f"attn_{word}_norm" for word in "qk"},
    **{f"mlp.{word}_proj": f"ffn_{word}" for word in ("gate", "up", "down")},
}
IN_GEMMA3 = {
    **IN_LAYER,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def permute(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """llama.cpp's own order, as its converter writes it."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def name_of(tensor: str, architecture: str) -> str:
    """GGUF's name of one of Hugging Face's tensors."""
    in_layer = IN_GEMMA3 if architecture == "gemma3" else IN_LAYER
    module, _, word = tensor.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", module)
    if layer is None:
        return f"{OUTSIDE[module]}.{word}"
    return f"blk.{layer[1]}.{in_layer[layer[2]]}.{word}"


def converted(
    path, model, architecture: str, *, factors=None, fields=None, quantisation="F32"
):
    """What llama.cpp's converter makes of a model of transformers; `fields` are more
    {key: (adder, value)}.
    """
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if architecture in ("qwen3", "gemma3"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for key, (adder, value) in (fields or {}).items():
        getattr(writer, adder)(f"{architecture}.{key}", value)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    kind = gguf.GGMLQuantizationType[quantisation]
    for tensor, array in model.state_dict().items():
        name = name_of(tensor, architecture)
        if name.startswith("output.") and config.tie_word_embeddings:
            continue
        rows, module = array.detach().numpy(), name.split(".")[-2]
        if architecture == "llama" and module in heads:
            rows = permute(rows, heads[module])
        if architecture == "gemma3" and name.endswith("norm.weight"):
            rows = rows + 1  # as llama.cpp's converter does
        rows = np.ascontiguousarray(rows)
        if quantisation == "F32" or rows.ndim == 1:
            writer.add_tensor(name, rows)
        else:
            writer.add_tensor(name, gguf.quants.quantize(rows, kind), raw_dtype=kind)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(model, given=IDS) -> np.ndarray:
    with torch.no_grad():
        return published.reference.logits_of(
            published.reference.run(model, given)
        ).numpy()


def llama3_factors(rope: dict, head_dim: int) -> np.ndarray:
    """`generate_extra_tensors` of llama.cpp's convert_hf_to_gguf.py."""
    base, factor = rope["rope_theta"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    found = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * base ** (i / head_dim)
        if wavelength < context / high:
            found.append(1.0)
        elif wavelength > context / low:
            found.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found)


# Of six layers the last sees all, which no field of the file says.
SIX = {"num_hidden_layers": 6, "layer_types": None, "sliding_window": 7}
# (class, architecture, changes of the configuration, whether transformers' own reader
# of the file agrees, too)
ARCHITECTURES = [
    ("LlamaForCausalLM", "llama", {}, True),
    ("LlamaForCausalLM", "llama", {"tie_word_embeddings": False}, True),
    ("LlamaForCausalLM", "llama", {"attention_bias": True, "mlp_bias": True}, False),
    ("MistralForCausalLM", "llama", {"sliding_window": None}, True),
    ("Qwen2ForCausalLM", "qwen2", {}, True),
    ("Qwen2ForCausalLM", "qwen2", {"tie_word_embeddings": False}, True),
    ("Qwen3ForCausalLM", "qwen3", {"head_dim": 128}, True),
    ("Qwen3ForCausalLM", "qwen3", {"head_dim": 6}, False),
    ("Gemma3ForCausalLM", "gemma3", {"head_dim": 256, **SIX}, True),
    ("Gemma3ForCausalLM", "gemma3", {"head_dim": 6, **SIX}, False),
]


@pytest.mark.compatibility
@pytest.mark.parametrize(("kind", "architecture", "changes", "both"), ARCHITECTURES)
def test_files_of_every_architecture(
    tmp_path, kind, architecture, changes, both, compatibility
):
    import transformers

    fields = {}
    if architecture == "gemma3":
        # llama.cpp scales scores by the width of a head.
        changes = {**changes, "query_pre_attn_scalar": changes["head_dim"]}
        fields = {"attention.sliding_window": ("add_uint32", 7)}
    model = published.made(kind, **changes)
    path = converted(tmp_path / "a.gguf", model, architecture, fields=fields)
    found = published.ours(models.from_pretrained(path), IDS)
    np.testing.assert_allclose(found, logits_of(model), atol=2e-4)
    if both:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="a.gguf"
        ).eval()
        np.testing.assert_allclose(found, logits_of(theirs), atol=2e-4)
    compatibility.works(
        TYPES,
        f"architecture {architecture}",
        f"{published.family_of(kind)} {changes or ''}".strip(),
    )


@pytest.mark.compatibility
@pytest.mark.parametrize("quantisation", ["Q8_0", "Q4_1", "BF16"])
def test_quantised_qwen2(tmp_path, quantisation: str, compatibility):
    import transformers

    model = published.made("Qwen2ForCausalLM", intermediate_size=64)
    converted(tmp_path / "a.gguf", model, "qwen2", quantisation=quantisation)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32
    )
    found = published.ours(models.from_pretrained(tmp_path / "a.gguf"), IDS)
    np.testing.assert_allclose(found, logits_of(theirs.eval()), atol=2e-4)
    compatibility.works(TYPES, quantisation, "qwen2")


def test_blocks_that_are_kept_have_no_place_for_biases(tmp_path):
    model = published.made("Qwen2ForCausalLM", intermediate_size=64)
    path = converted(tmp_path / "a.gguf", model, "qwen2", quantisation="Q4_1")
    with pytest.raises(
        WeightError, match=r"frozen='q4_1' has no biases.*use frozen='dense'"
    ):
        models.from_pretrained(path, frozen="q4_1")


@pytest.mark.compatibility
def test_frequencies_of_llama_3_lie_in_a_tensor(tmp_path, compatibility):
    rope = {**published.reference.LLAMA3, "original_max_position_embeddings": 64}
    model = published.made("LlamaForCausalLM", rope_parameters=rope)
    factors = llama3_factors(rope, 8)
    assert len(set(factors)) > 2  # kept, divided and mixed ones
    path = converted(tmp_path / "a.gguf", model, "llama", factors=factors)
    read = models.from_pretrained(path)
    np.testing.assert_allclose(published.ours(read, IDS), logits_of(model), atol=2e-4)
    without = models.from_pretrained(converted(tmp_path / "b.gguf", model, "llama"))
    assert np.abs(published.ours(without, IDS) - logits_of(model)).max() > 0.1
    compatibility.works(TYPES, "rope_freqs.weight (Llama 3.1 and later)")


@pytest.mark.compatibility
def test_frequencies_that_are_scaled_alike(tmp_path, compatibility):
    model = published.made(
        "LlamaForCausalLM",
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    )
    scaled = {
        "rope.scaling.type": ("add_string", "linear"),
        "rope.scaling.factor": ("add_float32", 4.0),
    }
    for fields in (
        scaled,
        {"rope.scaling.factor": scaled["rope.scaling.factor"]},
        {"rope.scale_linear": ("add_float32", 4.0)},
    ):
        path = converted(tmp_path / "a.gguf", model, "llama", fields=fields)
        np.testing.assert_allclose(
            published.ours(models.from_pretrained(path), IDS),
            logits_of(model),
            atol=2e-4,
        )
    compatibility.works(TYPES, "rope.scaling.type linear")


def test_factors_that_do_not_fit(tmp_path):
    path = converted(
        tmp_path / "a.gguf",
        published.made("LlamaForCausalLM"),
        "llama",
        factors=np.ones(3),
    )
    with pytest.raises(
        WeightError, match=r"rope_freqs\.weight: expected shape \(4,\), got \(3,\)"
    ):
        models.from_pretrained(path)


@pytest.mark.compatibility
def test_a_window_in_the_metadata(tmp_path, compatibility):
    model = published.made("MistralForCausalLM", sliding_window=7)
    window = {"attention.sliding_window": ("add_uint32", 7)}
    path = converted(tmp_path / "a.gguf", model, "llama", fields=window)
    np.testing.assert_allclose(
        published.ours(models.from_pretrained(path), IDS), logits_of(model), atol=2e-4
    )
    compatibility.works(TYPES, "attention.sliding_window")


@pytest.mark.compatibility
@pytest.mark.parametrize("architecture", ["gemma2", "phi3", "qwen2moe", "gpt2"])
def test_other_architectures_are_refused_by_name(
    tmp_path, architecture: str, compatibility
):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", architecture)
    writer.add_tensor("token_embd.weight", np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = (
        f"architecture '{architecture}'; this version reads 'llama', 'qwen2', 'qwen3'"
    )
    with pytest.raises(WeightError, match=expected) as raised:
        GGUFFile(tmp_path / "a.gguf")
    compatibility.refused(TYPES, f"architecture {architecture}", raised)


# --- tokenizers ---

TEXTS = [
    "Hello, world! It's 2026-11-22, 12:34:56; I've paid $1,234.50 (10% off) for "
    "3 apples & 42 pears.",
    "def f(x):\n    if x > 10:\n\treturn x ** 2  # square\n    return [x, 1, 2]\n",
    "Ünïcödé: naïve café, 東京 2020, Привет мир, مرحبا, 🙂🚀, e\u0301 \u1e0b\u0323",
    "Steps:\n\n1. Wash.\n\n2. Boil.\r\n \n x",
    "   leading and trailing blanks   ",
    "don't CAN'T we'll they'Ve I'm you'd ¼ ½ ² ① १२३४",
    "<|begin|>user<|end|> a<|begin|>",
    "",
    " ",
]


@pytest.fixture(scope="module")
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(tokens, merges) of a byte-level BPE trained on a few texts, whose words are cut
    as Qwen 2 cuts them.
    """
    from tokenizers import Regex, Tokenizer, pre_tokenizers, trainers
    from tokenizers import models as kinds
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(kinds.BPE())
    pattern = Regex(PRETOKENIZE_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|"))
    words = pre_tokenizers.Split(pattern, behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    import json

    stored = json.loads(tokenizer.to_str())["model"]
    return stored["vocab"], [tuple(merge) for merge in stored["merges"]]


def file_with_tokenizer(path, vocabulary, pre: str, **fields):
    """A GGUF file of a tokenizer alone, with two control tokens; `fields` are flags of
    the tokenizer.
    """
    tokens, merges = vocabulary
    names = [*sorted(tokens, key=tokens.__getitem__), "<|begin|>", "<|end|>"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types([1] * len(tokens) + [3, 3])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    for name, value in fields.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.add_tensor("token_embd.weight", np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path).tokenizer()


SPECIAL = [
    AddedToken("<|begin|>", special=True, normalized=False),
    AddedToken("<|end|>", special=True, normalized=False),
]


def reference_of(pre: str, vocabulary):
    """transformers' own tokenizer of that kind, made of the same tokens and merges."""
    tokens, merges = vocabulary
    if pre == "qwen2":
        from transformers import Qwen2Tokenizer

        made = Qwen2Tokenizer(vocab=dict(tokens), merges=list(merges)).backend_tokenizer
        # Qwen2Tokenizer puts a token of its own behind the vocabulary; ours begin there.
        made = type(made).from_str(_without_added(made.to_str()))
    else:
        from transformers.convert_slow_tokenizer import TikTokenConverter

        class Converter(TikTokenConverter):  # Llama 3's, without a file of tiktoken
            def extract_vocab_merges_from_model(self, tiktoken_url):
                return dict(tokens), list(merges)

        made = Converter().converted()
    made.add_tokens(SPECIAL)
    return made


def _without_added(text: str) -> str:
    import json

    stored = json.loads(text)
    stored["added_tokens"] = []
    return json.dumps(stored)


@pytest.mark.compatibility
@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_ids_are_those_of_the_models_own_tokenizers(
    tmp_path, vocabulary, pre: str, compatibility
):
    ours = file_with_tokenizer(
        tmp_path / "a.gguf", vocabulary, pre, add_bos_token=False
    )
    theirs = reference_of(pre, vocabulary)
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text).ids == expected, text
        assert ours.decode(expected, skip_special_tokens=False) == theirs.decode(
            expected, skip_special_tokens=False
        )
    compatibility.works(TYPES, f"tokenizer gpt2, pre-tokenizer {pre}")


def test_digits_and_words_are_cut_as_the_rules_say(tmp_path, vocabulary):
    """By hand: three digits together or one, tokens that no merge makes, composed signs."""
    tokens, merges = vocabulary
    word = "Zebra"  # a token that no merge leads to
    more = {**tokens, word: len(tokens), "123": len(tokens) + 1, "12": len(tokens) + 2}
    given = (more, [*merges, ("1", "2"), ("12", "3")])
    llama = file_with_tokenizer(
        tmp_path / "a.gguf", given, "llama-bpe", add_bos_token=False
    )
    qwen = file_with_tokenizer(tmp_path / "b.gguf", given, "qwen2")
    assert llama.encode("Zebra1231").tokens == ["Zebra", "123", "1"]
    assert qwen.encode("1231").tokens == ["1", "2", "3", "1"]
    assert "Zebra" not in qwen.encode("Zebra").tokens
    assert qwen.encode("e\u0301").ids == qwen.encode("\u00e9").ids
    assert llama.encode("e\u0301").ids != llama.encode("\u00e9").ids


def test_special_tokens_around_a_text(tmp_path, vocabulary):
    def make(name, pre, **fields):
        return file_with_tokenizer(tmp_path / f"{name}.gguf", vocabulary, pre, **fields)

    def ends(tokenizer):
        return [t for t in tokenizer.encode("the").tokens if t.startswith("<|")]

    assert ends(make("a", "llama-bpe")) == [
        "<|begin|>"
    ]  # Llama 3 begins every text with it
    assert ends(make("b", "llama-bpe", add_bos_token=False)) == []
    assert ends(make("c", "qwen2")) == []
    assert ends(make("d", "qwen2", add_bos_token=True, add_eos_token=True)) == [
        "<|begin|>",
        "<|end|>",
    ]
    assert ends(make("e", "smollm", add_eos_token=True)) == ["<|end|>"]


@pytest.mark.compatibility
@pytest.mark.parametrize("pre", ["deepseek-llm", "tekken", "gpt-4o", "default"])
def test_other_pre_tokenizers_are_refused_by_name(
    tmp_path, vocabulary, pre: str, compatibility
):
    with pytest.raises(
        WeightError,
        match=rf"pre-tokenizer '{pre}' is not supported; expected .*'llama-bpe'",
    ) as raised:
        file_with_tokenizer(tmp_path / "a.gguf", vocabulary, pre)
    compatibility.refused(TYPES, f"pre-tokenizer {pre}", raised)
