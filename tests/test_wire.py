"""`fedjax-fm wire` against published sizes, closed forms and the ratios that papers give."""

import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_fm.cli import main
from fedjax_fm.models.architectures import ARCHITECTURES, DEFAULT_TARGETS
from fedjax_fm.runs.settings import UsageError
from fedjax_fm.wire import METHODS, TAKES, Options, rows, wire

# Sizes that transformers counts for the checkpoints of these names.
PUBLISHED = {
    "albert-base-v2": 11_683_584,
    "bert-base-uncased": 109_482_240,
    "clip-vit-b32": 151_277_313,
    "dinov2-small": 22_056_192,  # without the mask of pretraining
    "distilbert-base-uncased": 66_362_880,
    "flan-t5-base": 247_577_856,
    "flan-t5-large": 783_150_080,
    "flan-t5-small": 76_961_152,
    "flan-t5-xl": 2_849_757_184,
    "gemma-3-1b": 999_885_952,
    "gemma-3-270m": 268_098_176,
    "gpt2": 124_439_808,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "llama-3-70b": 70_553_706_496,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "roberta-base": 124_055_040,  # without the pooler, which its classifier does not have
    "smollm2-135m": 134_515_008,
    "t5-base": 222_903_552,
    "tinyllama": 1_100_048_384,
    "vit-b16": 85_798_656,
}
# (trained by full tuning, the encoder's sinusoids, which transformers freezes, too)
WHISPERS = {
    "whisper-tiny": (37_184_640, 576_000),
    "whisper-base": (71_825_920, 768_000),
    "whisper-small": (240_582_912, 1_152_000),
    "whisper-medium": (762_321_920, 1_536_000),
    "whisper-large-v3": (1_541_570_560, 1_920_000),
}
WITH_TWO_CLASSES = {
    "roberta-base": 124_647_170,
    "bert-base": 109_483_778,
    "distilbert-base": 66_955_010,
}
HEAD = 768 * 768 + 768 + 768 * 2 + 2  # roberta-base's


@functools.cache
def full(model: str, classes: int | None = None):
    return wire(model, "full", classes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_models_have_their_published_size(name: str):
    found = full(name)
    assert (found.trainable_parameters, found.frozen_parameters) == (PUBLISHED[name], 0)
    assert (
        found.uplink_bytes
        == found.downlink_bytes
        == found.full_bytes
        == 4 * PUBLISHED[name]
    )


@pytest.mark.parametrize("name", WHISPERS)
def test_whispers_have_the_size_that_transformers_counts(name: str):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    fields = {k: v for k, v in ARCHITECTURES[name].items() if k != "model_type"}
    with torch.device("meta"):
        config = transformers.WhisperConfig(**fields)
        model = transformers.WhisperForConditionalGeneration(config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    found = full(name)
    counted = (found.trainable_parameters, found.frozen_parameters)
    assert counted == (trained, frozen) == WHISPERS[name]


def test_classifiers_have_their_published_size():
    assert {
        name: wire(name, "full", 2).trainable_parameters for name in WITH_TWO_CLASSES
    } == WITH_TWO_CLASSES


@pytest.mark.parametrize(
    ("model", "method", "classes", "options", "expected"),
    [
        # Hu et al. 2021: r (in + out) a matrix; query and value of 12 layers, and the head.
        ("roberta-base", "lora", 2, {"rank": 8}, 12 * 2 * 8 * (768 + 768) + HEAD),
        ("gpt2", "lora", None, {"rank": 4}, 12 * 4 * (768 + 3 * 768)),
        (
            "gpt2",
            "lora",
            None,
            {"rank": 2, "targets": ("mlp.c_proj",)},
            12 * 2 * (3072 + 768),
        ),
        (
            "llama-3-8b",
            "lora",
            None,
            {"rank": 8},
            32 * 8 * ((4096 + 4096) + (4096 + 1024)),
        ),
        (
            "flan-t5-base",
            "lora",
            None,
            {"rank": 8},
            (12 + 2 * 12) * 2 * 8 * (768 + 768),
        ),
        (
            "albert-base-v2",
            "lora",
            None,
            {"rank": 8},
            2 * 8 * (768 + 768),
        ),  # the layer is shared
        # Zhang et al. 2023, Yang et al. 2024: FedIT and FedDPA.
        (
            "llama-7b",
            "lora",
            None,
            {"rank": 16, "targets": ("q_proj",)},
            32 * 16 * (4096 + 4096),
        ),
        (
            "llama-2-7b",
            "lora",
            None,
            {"rank": 8, "targets": ("q_proj", "v_proj")},
            32 * 2 * 8 * (4096 + 4096),
        ),
        # Houlsby et al. 2019: 2 (2 d m + d + m) a layer, and 4 d for its norms.
        (
            "roberta-base",
            "adapter",
            2,
            {"bottleneck": 16},
            12 * 2 * (2 * 768 * 16 + 768 + 16) + HEAD,
        ),
        (
            "bert-base",
            "adapter",
            None,
            {"bottleneck": 8, "norms": True},
            12 * (2 * (2 * 768 * 8 + 776) + 4 * 768),
        ),
        (
            "llama-2-7b",
            "adapter",
            None,
            {"bottleneck": 8},
            32 * 2 * (2 * 4096 * 8 + 4096 + 8),
        ),
        # Ben Zaken et al. 2021: biases of q, k, v, o, FFN and norms; those of the embeddings' norm
        # and the pooler too.
        ("bert-base", "bitfit", None, {}, 12 * (6 * 768 + 3072 + 768) + 768 + 768),
        ("roberta-base", "bitfit", 2, {}, 12 * (6 * 768 + 3072 + 768) + 768 + HEAD),
        # Lester et al. 2021, Zhao et al. 2022: p e.
        ("t5-base", "prompt", None, {"tokens": 20}, 20 * 768),
        ("flan-t5-xl", "prompt", None, {"tokens": 100}, 100 * 2048),
        ("bert-base", "prompt", None, {"tokens": 20}, 20 * 768),
        # Li and Liang 2021: 2 L p d, and with the network p w + (w + 1) h + (h + 1) 2 L d.
        ("roberta-base", "prefix", 2, {"tokens": 16}, 2 * 12 * 16 * 768 + HEAD),
        ("llama-3-8b", "prefix", None, {"tokens": 10}, 2 * 32 * 10 * 1024),
        (
            "gpt2",
            "prefix",
            None,
            {"tokens": 10, "hidden": 512},
            10 * 768 + 769 * 512 + 513 * 24 * 768,
        ),
        # Jia et al. 2022: p d or L p d, and the head.
        ("vit-b16", "vpt", 100, {"tokens": 10}, 12 * 10 * 768 + 768 * 100 + 100),
        (
            "vit-b16",
            "vpt",
            100,
            {"tokens": 50, "mode": "shallow"},
            50 * 768 + 768 * 100 + 100,
        ),
        ("clip-vit-b32", "vpt", None, {"tokens": 10}, 12 * 10 * 768),
        # (IA)3 scales keys, values and the inner activations.
        ("llama-2-7b", "ia3", None, {}, 32 * (4096 + 4096 + 11008)),
        ("gpt2", "ia3", None, {}, 12 * (3 * 768 + 3072)),
        ("flan-t5-small", "ia3", None, {}, (8 + 2 * 8) * 2 * 384 + 16 * 1024),
        # Lu et al. 2023: FedCLIP, 2 (d^2 + d).
        ("clip-vit-b32", "adapter", None, {}, 2 * (512**2 + 512)),
        ("clip-vit-b32", "head", 7, {}, 768 * 7 + 7),
        ("distilbert-base", "head", 2, {}, 768 * 768 + 768 + 768 * 2 + 2),
        ("llama-2-7b", "head", 2, {}, 2 * 4096),
        ("flan-t5-small", "head", 3, {}, 512 * 512 + 512 + 512 * 3 + 3),
        # Query and value of self-attention, twice over in the decoder.
        ("whisper-base", "lora", None, {"rank": 8}, (6 + 2 * 6) * 2 * 8 * (512 + 512)),
        (
            "whisper-base",
            "lora",
            7,
            {"rank": 8},
            6 * 2 * 8 * (512 + 512) + 512 * 256 + 256 + 256 * 7 + 7,
        ),
    ],
)
def test_trained_numbers_equal_closed_forms(model, method, classes, options, expected):
    found, whole = (
        wire(model, method, classes, Options(**options)),
        full(model, classes),
    )
    assert found.trainable_parameters == expected
    assert found.uplink_bytes == found.downlink_bytes == 4 * expected
    added = (
        found.trainable_parameters
        + found.frozen_parameters
        - whole.trainable_parameters
        - whole.frozen_parameters
    )
    assert added == (
        0
        if method in ("bitfit", "head")
        else expected - _shared_with_full(model, method, classes, options)
    )
    assert found.ratio == pytest.approx(whole.trainable_parameters / expected)


def _shared_with_full(model, method, classes, options) -> int:
    """Trained numbers that the plain model has as well: its head, and norms."""
    head = 0 if classes is None else wire(model, "head", classes).trainable_parameters
    return head + (12 * 4 * 768 if options.get("norms") else 0)


def test_ratios_that_papers_give():
    def ratio(method, **options):
        return wire("roberta-base", method, 2, Options(**options)).ratio

    # FedPETuning (Zhang et al. 2023): prefix 12, adapter 42 to 104, LoRA 140.
    assert ratio("prefix", tokens=16, hidden=512) == pytest.approx(12, abs=0.5)
    assert [round(ratio("adapter", bottleneck=m)) for m in (64, 16)] == [42, 104]
    assert ratio("lora") == pytest.approx(140, abs=1)
    # BitFit 190: with the biases of q, k, v and the widening layer alone; all biases make it 180.
    some = ("query", "key", "value", "intermediate.dense")
    assert ratio("bitfit", targets=some) == pytest.approx(190, abs=0.5)
    assert ratio("bitfit") == pytest.approx(179.5, abs=0.1)
    # FedPEFT (Sun et al. 2022): 328 to 0.68 MiB, 477 times.
    bias = wire("vit-b16", "bitfit", 100)
    assert round(bias.full_bytes / 2**20) == 328
    assert math.floor(100 * bias.uplink_bytes / 2**20) == 68
    assert math.floor(bias.ratio) == 477
    # FedPrompt (Zhao et al. 2022): 0.007 % of T5-base.
    assert 100 / wire("t5-base", "prompt").ratio == pytest.approx(0.007, abs=5e-4)
    # BitFit (Ben Zaken et al. 2021): 0.09 % of BERT-base.
    assert 100 / wire("bert-base", "bitfit").ratio == pytest.approx(0.09, abs=5e-3)


UNFIT = {  # visual prompts need an image, prompts a text, BitFit a bias
    "bert-base": ("vpt",),
    "distilbert-base": ("vpt",),
    "flan-t5-small": ("vpt", "bitfit"),
    "clip-vit-b32": ("prompt",),
    "dinov2-small": ("prompt",),
    "whisper-tiny": ("prompt", "vpt"),
}


@pytest.mark.parametrize("model", UNFIT)
def test_every_method_counts_or_says_why_not(model: str):
    for method in METHODS:
        fits = method not in UNFIT.get(model, ())
        if fits:
            found = wire(model, method, 3)
            assert 0 < found.trainable_parameters <= found.full_bytes // 4
        else:
            with pytest.raises(UsageError, match=f"^{method} on {model}: "):
                wire(model, method, 3)


def test_every_known_model_has_default_targets():
    assert {
        fields["model_type"] for fields in ARCHITECTURES.values()
    } == DEFAULT_TARGETS.keys()


def test_names_of_the_hub_and_folders(tiny_bert):
    assert (
        wire("meta-llama/Llama-2-7b-hf", "lora")[2:] == wire("llama-2-7b", "lora")[2:]
    )
    assert (
        wire("google/vit-base-patch16-224-in21k", "vpt")[2:]
        == wire("vit-b16", "vpt")[2:]
    )
    assert wire(
        str(tiny_bert), "lora", None, Options(rank=2)
    ).trainable_parameters == 2 * 2 * 2 * (16 + 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("robert-base", "lora"),
            "unknown model 'robert-base'; did you mean 'roberta-base'",
        ),
        (("roberta-base", "loar"), "unknown method 'loar'; did you mean 'lora'"),
        (("roberta-base", "head"), r"head on roberta-base: .*--classes K"),
        (
            ("roberta-base", "vpt"),
            "vpt on roberta-base: visual prompts need an image encoder",
        ),
        (
            ("vit-b16", "prompt"),
            "prompt on vit-b16: expected one module that takes a prompt",
        ),
        (("llama-2-7b", "bitfit"), "bitfit on llama-2-7b: .* no bias"),
        (
            ("llama-2-7b", "bitfit", None, Options(targets=("q_proj",))),
            "matches no parameter",
        ),
        (("gpt2", "lora", None, Options(targets=("query",))), "There are: .*c_attn"),
        (("gpt2", "lora", None, Options(rank=1000)), "rank=1000"),
        (
            ("roberta-base", "lora", None, Options(targets=("query", "valeu"))),
            r"\['valeu'\] match no .*mean 'value'",
        ),
        (
            ("roberta-base", "bitfit", None, Options(targets=("query", "valeu"))),
            "bitfit of valeu matches no parameter",
        ),
        (
            (
                "roberta-base",
                "adapter",
                None,
                Options(targets=("output.dense", "o_proj")),
            ),
            r"\['o_proj'\] match no",
        ),
        (
            ("roberta-base", "ia3", None, Options(targets=("key", "k_proj"))),
            r"\['k_proj'\] match no",
        ),
        (("gpt2", "lora", 0), "num_labels >= 1, got num_labels=0"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        wire(*arguments)


def test_the_command_prints_one_object(capsys):
    flags = {
        "--model": "roberta-base",
        "--classes": "2",
        "--peft": "lora",
        "--rank": "8",
        "--targets": "query,value",
    }
    main(["wire", *(word for flag in flags.items() for word in flag), "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0]) == wire("roberta-base", "lora", 2)._asdict()
    expected = {"trainable_parameters": 887_042, "frozen_parameters": 124_055_040}
    assert expected | {"uplink_bytes": 3_548_168, "downlink_bytes": 3_548_168} == {
        name: json.loads(lines[0])[name]
        for name in (*expected, "uplink_bytes", "downlink_bytes")
    }


def test_the_command_prints_a_table_of_all_methods(capsys):
    main(["wire", "--model", "vit-b16", "--classes", "100"])
    out = capsys.readouterr().out
    for part in (
        "179,812",
        "477.6",
        "bitfit",
        "prompt on vit-b16",
        "computed from shapes",
    ):
        assert part in out
    with pytest.raises(SystemExit):
        main(["wire", "--model", "vit-b16", "--targets", "query"])
    assert "say which: --peft NAME" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="reads the peak of memory from Linux's /proc",
)
def test_eight_billion_parameters_take_no_memory():
    # Linux's own mark of this address space, in KiB: getrusage of a child begins at the
    # peak of the process that forked it.
    program = (
        "import re; from pathlib import Path; from fedjax_fm.cli import main; "
        "main('wire --model llama-3-8b --peft lora --json'.split()); print(1024 "
        "* int(re.search(r'VmHWM:\\s+(\\d+)', "
        "Path('/proc/self/status').read_text())[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    found, peak = done.stdout.splitlines()
    assert json.loads(found)["frozen_parameters"] == 8_030_261_248
    assert int(peak) < 2**30


FOLDERS = {
    "of another kind": ('{"model_type": "bloom"}', "a model of type 'bloom'; this version reads albert, bert"),
    "of no layers": ('{"model_type": "gpt2", "n_layer": 0}', "expected a whole number 1 <= n_layer"),
    "of text for a number": ('{"model_type": "albert", "hidden_size": "x"}', "config.json describes no model that can be built"),
    "without a kind": ('{"hidden_size": 8}', "is not the configuration of a model: it has no model_type"),
    "a list": ("[]", "is no configuration: expected an object of fields, got list"),
    "null": ("null", "is no configuration: expected an object of fields, got NoneType"),
    "no JSON": ("{", "is not JSON"),
    "missing": (None, "holds no config.json"),
}  # fmt: skip


@pytest.mark.parametrize(
    "method", [(), ("--peft", "lora")], ids=["all methods", "lora"]
)
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_cannot_be_counted_is_named_in_one_line(
    tmp_path, capsys, kind, method
):
    text, message = FOLDERS[kind]
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["wire", "--model", str(tmp_path), *method])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert len(said.splitlines()) == 1
    assert message in said
    assert str(tmp_path) in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--peft", "bitfit", "--rank", "16"], "--rank is a setting of lora; bitfit does not read it"),
        (["--peft", "full", "--targets", "query"], "--targets is a setting of adapter, bitfit, ia3, lora; full does not"),
        (["--peft", "lora", "--tokens", "4"], "--tokens is a setting of prefix, prompt, vpt; lora does not read it"),
        (["--peft", "prompt", "--hidden", "4"], "--hidden is a setting of prefix"),
        (["--peft", "lora", "--norms"], "--norms is a setting of adapter"),
        (["--peft", "lora", "--mode", "shallow"], "--mode is a setting of vpt"),
        (["--peft", "lora", "--bottleneck", "4"], "--bottleneck is a setting of adapter"),
        (["--peft", "lora", "--targets", " , "], "--targets takes names of layers with commas between them, got ' , '"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_setting_that_the_method_does_not_read_is_refused(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(["wire", "--model", "gpt2", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_of_all_methods_each_reads_its_own_settings():
    found, _ = rows("gpt2", None, None, Options(rank=2, tokens=3))
    counts = {row.peft: row.trainable_parameters for row in found}
    assert counts["lora"] == 12 * 2 * (768 + 3 * 768)
    assert counts["prompt"] == 3 * 768
    assert counts["prefix"] == 2 * 12 * 3 * 768


def test_what_each_method_reads_is_listed():
    assert TAKES.keys() == METHODS.keys()
    assert set().union(*TAKES.values()) == set(Options._fields)
