"""Files that are damaged: an error of ours or an answer, soon, within memory and folder."""

import json
import resource
import shutil
import signal
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_fm
from fedjax_fm import models
from fedjax_fm.datasets import DataFileError

from .conftest import PROFILE
from .damage import damaged, damages
from .readers import READERS

OURS = str(Path(fedjax_fm.__file__).parent)
KINDS = (ValueError, TypeError, KeyError, OSError, NotImplementedError, DataFileError)
SECONDS = 60
MORE_MEMORY = 1 << 20  # KiB: 1 GiB above what the process had


@pytest.fixture(scope="module", params=READERS)
def files(request, tmp_path_factory):
    """(the reader, a folder with right files)."""
    reader = READERS[request.param]
    folder = tmp_path_factory.mktemp("right")
    reader.write(folder)
    reader.read(folder)  # which are right
    return reader, folder


def error_of(call):
    """What a call raised; None where it went well."""
    try:
        call()
    except Exception as error:
        return error
    return None


def is_ours(error: BaseException) -> bool:
    """Whether it was raised by our code in words of its own, and not by what it calls."""
    from fedjax_fm.runs.errors import UserError

    if isinstance(error, UserError):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, KINDS) and last.filename.startswith(OURS)


def in_time(signum, frame):
    raise TimeoutError(f"not read within {SECONDS} seconds")


def test_errors_of_other_libraries_are_seen():
    assert not is_ours(error_of(lambda: json.loads("{")))
    assert not is_ours(error_of(lambda: {}["x"]))
    assert is_ours(error_of(lambda: fedjax_fm.Population({}, [0])))


@PROFILE
@given(damage=damages(), place=st.floats(0, 1, exclude_max=True))
def test_a_damaged_file_is_told(files, tmp_path_factory, damage, place):
    reader, right = files
    around = tmp_path_factory.mktemp("around")
    folder = around / "files"
    shutil.copytree(right, folder)
    found = sorted(x for x in folder.rglob("*") if x.is_file())
    victim = found[int(place * len(found))]
    victim.write_bytes(damaged(victim.read_bytes(), damage))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, in_time)
    signal.alarm(SECONDS)
    try:
        error = error_of(lambda: reader.read(folder))
    finally:
        signal.alarm(0)
    if error is not None:
        assert is_ours(error), f"{victim.name}, {damage}: {error!r}"
        assert str(error).strip(), "an error without words"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MORE_MEMORY
    assert [x.name for x in around.iterdir()] == ["files"]
    shutil.rmtree(around)


SMALL = {
    "bert": {"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9},
    "gpt2": {"n_embd": 8, "n_head": 2, "vocab_size": 9, "n_positions": 9},
    "t5": {
        "d_model": 8,
        "d_kv": 4,
        "num_heads": 2,
        "relative_attention_num_buckets": 4,
    },
    "vit": {"hidden_size": 8, "num_attention_heads": 2, "patch_size": 8},
    "llama": {"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9},
    "whisper": {
        "d_model": 8,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "max_source_positions": 9,
        "vocab_size": 9,
    },
}
SIZES = [(family, name) for family, fields in SMALL.items() for name in fields]


@pytest.mark.parametrize("value", [0, -1, None, True, 2**31, 1e308, "9", [9]])
@pytest.mark.parametrize(("family", "name"), SIZES)
def test_sizes_that_no_model_has_are_told_by_name(family, name, value):
    fields = {"model_type": family, **SMALL[family], name: value}
    error = error_of(lambda: models.from_config(fields))
    assert is_ours(error), repr(error)
    assert name in str(error)


@pytest.mark.parametrize("name", ["intermediate_size", "hidden_size"])
def test_an_array_beyond_memory_is_not_made_before_the_file_is_seen(tmp_path, name):
    reader = READERS["safetensors and configuration"]
    reader.write(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {name: 2**31 - 4}))
    error = error_of(lambda: reader.read(tmp_path))
    assert is_ours(error), repr(error)
    assert "does not fit" in str(error)
