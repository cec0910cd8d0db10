"""Nothing that is read runs code: no pickle, no module of a checkpoint, no markup."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import small_checkpoints

import fedjax_fm as ffm
from fedjax_fm import models
from fedjax_fm.study import page

PACKAGE = Path(ffm.__file__).parent


class Harmful:
    """Writes a file where it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def test_a_population_of_pickles_is_refused_and_not_run(tmp_path):
    ffm.Population.from_clients([{"x": np.ones(2)}]).save(tmp_path / "saved")
    touched = tmp_path / "touched"
    harmful = np.array([Harmful(touched)] * 2, object)
    (file,) = (tmp_path / "saved").glob("x*.npy")
    np.save(file, harmful, allow_pickle=True)
    pickle.loads(pickle.dumps(harmful))  # it would
    assert touched.exists()
    touched.unlink()
    with pytest.raises(ValueError, match="no whole array of numbers"):
        ffm.Population.open(tmp_path / "saved")
    assert not touched.exists()


def test_a_module_that_a_configuration_names_is_not_run(tmp_path, monkeypatch):
    """Whatever `auto_map` and `trust_remote_code` say."""
    folder = small_checkpoints.checkpoint(tmp_path / "model", small_checkpoints.LLAMA)
    touched = tmp_path / "touched"
    code = f"from pathlib import Path\nPath({str(touched)!r}).touch()\n"
    (folder / "modeling_mine.py").write_text(code)
    fields = json.loads((folder / "config.json").read_text())
    fields["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.Mine"}
    fields["trust_remote_code"] = True
    (folder / "config.json").write_text(json.dumps(fields))
    monkeypatch.chdir(folder)
    models.from_pretrained(folder)
    models.load_tokenizer(folder)
    assert not touched.exists()


def test_no_file_of_the_package_reads_pickles_or_evaluates_text():
    banned = re.compile(
        r"pickle\.load|allow_pickle=True|torch\.load|joblib|(?<![.\w])(?:eval|exec)\("
    )
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if banned.search(line)
    ]
    assert found == []


def test_one_reader_of_torchs_files_unpickles_and_it_knows_its_classes():
    """`test_torch_file.py` shows that it runs no others."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if _unpickles(path)]
    assert [path.name for path in files] == ["torch_file.py"]


def _unpickles(path):
    return re.search(r"\bUnpickler\b", path.read_text(encoding="utf-8")) is not None


def test_markup_in_data_is_text_on_a_page():
    name = "<script>alert(1)</script>&\"'"
    shown = page.table([name], [[name]], [""]) + page.tag("p", name)
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 3
