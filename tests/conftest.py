"""Eight CPU devices, and a tiny BERT on disk that stands in for a pretrained one."""

import atexit
import gc
import json
import os
import re
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

# `python -m pytest` puts the repository on the path, where the folder `kernels` hides
# Hugging Face's package of that name from transformers.
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Most of the suite's time is the compiler's. What is measured here is not speed: LLVM
# need not optimise, fusions need not take the new emitters, which compile three times
# as long, and a program that was compiled in this session, by whichever worker, is read
# back. XLA aborts at a flag that it does not know, so other releases go without the
# flags of this one.
_FLAGS = ["--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):
    _FLAGS += [
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs = tempfile.mkdtemp(
        prefix="fedjax-fm-programs-"
    )
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = (
        "0"  # to read even x + y back takes a sixth of the time
    )
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)

import numpy as np  # noqa: E402
import pytest  # noqa: E402

MOST_RESIDENT = 4 << 30  # bytes
MOST_LOWERED = 100  # programs


# What takes long, file by file, which `make test` leaves to `make test-all`: whole runs and
# studies, every model family and file format, wide tables of values.
SLOW = {
    "bench": "*",
    "finetune": (
        "test_agreements.py",
        "test_finetune.py",
        "test_several_processes.py",
        "test_turns.py",
    ),
    "studies": "*",
    "notebooks": "*",
    "runs": (
        "test_resume.py",
        "test_cli.py",
        "test_identity.py",
        "test_killed_process.py",
        "test_stored_runs.py",
    ),
    "tests": (
        "test_docs.py",
        "test_imports.py",
        "test_readme.py",
        "test_strict.py",
        "test_wheel.py",
        "test_wire.py",
    ),
    "contracts": (
        "test_pairs.py",
        "test_tasks.py",
    ),
    "evaluation": (
        "test_encoder_decoder.py",
        "test_lm_eval.py",
    ),
    "engine": (
        "test_hosts.py",
        "test_modes.py",
        "test_uplink_keys.py",
    ),
    "privacy": ("test_guarantee.py",),
    "channels": (
        "test_channel_law.py",
        "test_extremes.py",
        "test_hyper_parameters.py",
        "test_laws.py",
        "test_messages.py",
        "test_not_finite_when_optimised.py",
    ),
    "algorithms": (
        "test_docofl.py",
        "test_fada.py",
        "test_fedask.py",
        "test_fedask_private.py",
        "test_fedclip.py",
        "test_fedbert.py",
        "test_fedkseed.py",
        "test_fedlease.py",
        "test_fedobd.py",
        "test_fedtiny.py",
        "test_fslora.py",
        "test_heterofl.py",
        "test_hyper_parameters.py",
        "test_lora_a2.py",
        "test_lora_rules_edges.py",
        "test_lottery_ticket.py",
        "test_lotteryfl.py",
        "test_personal_heads.py",
        "test_personal_models.py",
        "test_pruning_composes.py",
        "test_ravan.py",
        "test_slora.py",
        "test_soteriafl.py",
    ),
    "sparsity": ("test_hyper_parameters.py",),
    "models": (
        "test_architectures.py",
        "test_beam.py",
        "test_ctranslate2_file.py",
        "test_distilled_vit.py",
        "test_e5_file.py",
        "test_gemma3_real.py",
        "test_generate.py",
        "test_generate_families.py",
        "test_gguf_architectures.py",
        "test_gguf_file.py",
        "test_language_modeling.py",
        "test_low_bits.py",
        "test_multi_scale.py",
        "test_perturbed.py",
        "test_published_forms.py",
        "test_quantized.py",
        "test_whisper.py",
    ),
    "peft": (
        "test_lora_sb.py",
        "test_methods.py",
        "test_peft_fields.py",
        "test_peft_folder.py",
        "test_peft_tying.py",
        "test_prefix_in_windows.py",
        "test_virtual_tokens_families.py",
    ),
    "population": ("test_sampler_laws.py",),
    "robust": ("test_robust_products.py",),
}
# What `make quick` leaves out besides: files that take more than a few seconds each even
# with one row of each table, and those with oracles, which take seconds to import.
LONGER = {
    "audit": ("test_audit.py",),
    "leaks": ("test_canaries.py", "test_one_run.py", "test_upload.py"),
    "secure": ("test_secure.py",),
    "robust": (
        "test_robust_attacks.py",
        "test_robust_rules.py",
        "test_robust_runs.py",
    ),
    "algorithms": (
        "test_private_steps.py",
        "test_dp_fedavg.py",
        "test_fedbert.py",
        "test_feddpa.py",
        "test_fedkseed.py",
        "test_fedpm.py",
        "test_fedrot_lora.py",
        "test_fedrpca.py",
        "test_frlora.py",
        "test_heterofl.py",
        "test_ifca.py",
        "test_lora_rules_edges.py",
        "test_personal_heads.py",
        "test_personal_models.py",
    ),
    "channels": ("test_coding.py", "test_messages.py"),
    "contracts": ("test_check_algorithm.py", "test_pairs_quick.py"),
    "engine": (
        "test_exchanges.py",
        "test_memory.py",
        "test_states.py",
        "test_sweep.py",
        "test_uplink_keys.py",
    ),
    "kernels": ("test_codes.py", "test_selection.py"),
    "models": ("test_masked_lm.py",),
    "peft": ("test_lora_sb.py", "test_targets.py", "test_virtual_tokens.py"),
    "runs": ("test_checkpoint.py",),
    "tests": ("test_strict.py", "test_wire.py"),
}
ORACLES = ("torch", "transformers", "peft", "dp_accounting", "datasets", "pandas")


def pytest_addoption(parser):
    parser.addoption(
        "--quick",
        action="store_true",
        help="no oracles, nothing slow, one row of each table",
    )
    parser.addoption(
        "--compatibility-page",
        help="write what the tests saw of other people's files to this page",
    )


def pytest_configure(config):
    from compatibility import PageWriter

    config.addinivalue_line("markers", "slow: `make test-all` runs it, `make test` not")
    config.addinivalue_line(
        "markers", "compatibility: has rows of docs/compatibility.md"
    )
    path = config.getoption("--compatibility-page")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(PageWriter(path))


def pytest_ignore_collect(collection_path, config):
    """Whether `--quick` does without this file."""
    path = collection_path
    if not config.getoption("--quick") or not path.name.startswith("test_"):
        return None
    words = "|".join(ORACLES)
    pattern = rf"^\s*(?:import|from) (?:{words})\b"
    uses_oracle = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    left_out = _is_slow(path) or _is_of(LONGER, path) or uses_oracle
    return True if left_out else None


def pytest_collection_modifyitems(config, items):
    """Marks what is slow, puts it first, and keeps one row of each table if that is enough.

    Files that take a minute come first, so that no worker is left alone with one at the
    end.
    """
    for item in items:
        if _is_slow(item.path):
            item.add_marker("slow")
    first = ("test_resume.py", "test_cli.py", "test_readme.py", "test_contracts.py")
    items.sort(key=lambda item: item.path.name not in first)
    if config.getoption("--quick"):
        first = {_table_of(item): item for item in reversed(items)}
        kept = set(map(id, first.values()))
        config.hook.pytest_deselected(items=[x for x in items if id(x) not in kept])
        items[:] = [item for item in items if id(item) in kept]


def _is_slow(path):
    """Whether `SLOW` names this file."""
    return _is_of(SLOW, path)


def _is_of(table, path):
    """Whether a table of folders names this file."""
    names = table.get(path.parent.name, ())
    return path.is_relative_to(_ROOT / "tests") and (names == "*" or path.name in names)


def _table_of(item):
    """What all rows of one table share."""
    return item.path, getattr(item, "originalname", item.name)


def pytest_collection_finish():
    """What the session has now it keeps: without this every collection of garbage walks
    through all modules and tests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_runtest_teardown():
    """JAX keeps the lowered form of the last 2,048 programs, beside the compiled one.
    The more of them live, the longer takes the next lowering: 22 ms instead of 11 for x
    + y. The compiled ones are found without them."""
    from jax._src import pjit
    from jax._src.interpreters import pxla

    names = (
        (pjit, "_pjit_lower"),
        (pxla, "_cached_lowering_to_hlo"),
        (pxla, "_cached_compilation"),
    )
    caches = [
        getattr(module, name) for module, name in names if hasattr(module, name)
    ]  # no part of JAX's interface
    if any(cache.cache_info().currsize > MOST_LOWERED for cache in caches):
        for cache in caches:
            cache.cache_clear()


@pytest.fixture
def compatibility(request):
    """Where a test says what it saw of a row of docs/compatibility.md; see
    helpers/compatibility.py.
    """
    from compatibility import Compatibility

    return Compatibility(request.node.user_properties)


@pytest.fixture(scope="module", autouse=True)
def _programs_are_not_kept_for_ever():
    """Thousands of compiled programs would fill gigabytes of memory by the end of a session."""
    yield
    pages = Path("/proc/self/statm")
    if (
        pages.exists()
        and int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        > MOST_RESIDENT
    ):
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A folder with config.json, random weights under Hugging Face's names and a
    trained WordPiece tokenizer.
    """
    from safetensors.numpy import save_file
    from tokenizers import (
        Tokenizer,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    from fedjax_fm.datasets import load_sentiment

    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts = [str(text) for text in load_sentiment()["text"][:2000]]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=1000, special_tokens=special)
    )
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "bert",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(bert_tensors(config), folder / "model.safetensors")
    return folder


def bert_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a BertModel, by Hugging Face's names and in torch's layout."""
    rng = np.random.default_rng(seed)
    d, wide = config["hidden_size"], config["intermediate_size"]
    tensors = {}

    def linear(name, n_out, n_in):
        tensors[f"{name}.weight"] = rng.normal(0, 0.3, (n_out, n_in)).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(0, 0.1, n_out).astype(np.float32)

    def norm(name):
        tensors[f"{name}.weight"] = rng.normal(1, 0.1, d).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(0, 0.1, d).astype(np.float32)

    for name, rows in (
        ("word", config["vocab_size"]),
        ("position", config["max_position_embeddings"]),
        ("token_type", config["type_vocab_size"]),
    ):
        tensors[f"embeddings.{name}_embeddings.weight"] = rng.normal(
            0, 0.5, (rows, d)
        ).astype(np.float32)
    norm("embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            linear(f"{at}.attention.self.{name}", d, d)
        linear(f"{at}.attention.output.dense", d, d)
        norm(f"{at}.attention.output.LayerNorm")
        linear(f"{at}.intermediate.dense", wide, d)
        linear(f"{at}.output.dense", d, wide)
        norm(f"{at}.output.LayerNorm")
    linear("pooler.dense", d, d)
    return tensors


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A folder with a random llama under Hugging Face's names, a byte-level tokenizer
    and a chat template.
    """
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from fedjax_fm.datasets import load_shakespeare

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(
        [str(speech) for speech in load_shakespeare()["speech"][:1000]], trainer
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] "
        "}}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
        "%}<|im_start|>assistant\n{% endif %}"
    )
    words = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    config = {
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(0, 0.2, shape).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": draw(config["vocab_size"], 16),
        "model.norm.weight": np.ones(16, np.float32),
    }
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes = {
            "q_proj": (16, 16),
            "k_proj": (8, 16),
            "v_proj": (8, 16),
            "o_proj": (16, 16),
        }
        tensors |= {
            f"{at}.self_attn.{name}.weight": draw(*shape)
            for name, shape in shapes.items()
        }
        wide = {"gate_proj": (32, 16), "up_proj": (32, 16), "down_proj": (16, 32)}
        tensors |= {
            f"{at}.mlp.{name}.weight": draw(*shape) for name, shape in wide.items()
        }
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors |= {f"{at}.{name}.weight": np.ones(16, np.float32) for name in norms}
    save_file(tensors, folder / "model.safetensors")
    return folder
