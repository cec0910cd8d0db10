"""Files of torch.save, read and written without torch: torch is the oracle."""

import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from fedjax_fm.models import torch_file

torch = pytest.importorskip("torch")

ARRAYS = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "bf16": np.array([1.5, -2], ml_dtypes.bfloat16),
    "f16": np.array(0.5, np.float16),
    "none": np.zeros((0, 3), np.int64),
    "i8": np.array([-3, 4], np.int8),
    "flag": np.array([True, False]),
}


def test_torch_reads_ours(tmp_path):
    plain = {"n": [1, 2.5, "ä", None, True, 10**12, {"deep": -3}]}
    value = {"model": OrderedDict(ARRAYS), **plain}
    torch_file.save(tmp_path / "a.pt", value)
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert found["n"] == plain["n"]
    assert type(found["model"]) is OrderedDict
    for name, array in ARRAYS.items():
        tensor = found["model"][name]
        assert str(tensor.dtype) == f"torch.{array.dtype}"
        np.testing.assert_array_equal(tensor.float().numpy(), array.astype(np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_we_read_torchs(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    view = torch.arange(12.0).reshape(3, 4)[1:, ::2]
    state = {"layer": layer.state_dict(), "weight": layer.weight, "view": view}
    kinds = {
        str(kind): torch.tensor([0, 1]).to(kind)
        for kind in (
            torch.bfloat16,
            torch.half,
            torch.double,
            torch.int16,
            torch.uint8,
            torch.bool,
        )
    }
    torch.save({**state, "kinds": kinds, "epoch": 3}, tmp_path / "a.pt")
    found = torch_file.load(tmp_path / "a.pt")
    assert found["epoch"] == 3
    np.testing.assert_array_equal(found["view"], view.numpy())
    np.testing.assert_array_equal(found["weight"], layer.weight.detach().numpy())
    np.testing.assert_array_equal(found["layer"]["bias"], layer.bias.detach().numpy())
    for name, array in found["kinds"].items():
        assert name == f"torch.{array.dtype}"
        assert array.astype(int).tolist() == [0, 1]


class Harm:
    def __reduce__(self):
        return print, ("never run",)


def test_what_is_no_file_of_arrays_is_refused(tmp_path, capsys):
    path = tmp_path / "a.pt"
    for value, said in (
        (torch.nn.Linear(3, 2), r"torch\.nn\.modules\.linear\.Linear"),
        (Harm(), r"__builtin__\.print"),
    ):
        torch.save(value, path)
        with pytest.raises(torch_file.TorchFileError, match=said):
            torch_file.load(path)
    assert "never run" not in capsys.readouterr().out
    torch.save({"w": torch.ones(200)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(torch_file.TorchFileError, match="no whole file"):
        torch_file.load(path)
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(torch_file.TorchFileError, match="no whole file"):
        torch_file.load(path)
    with pytest.raises(FileNotFoundError):
        torch_file.load(tmp_path / "none.pt")
    with pytest.raises(TypeError, match=r"a\.pt\['w'\] of type complex"):
        torch_file.save(path, {"w": 1j})
    with pytest.raises(TypeError, match="no tensors of <U1"):
        torch_file.save(path, {"w": np.array(["a"])})


def test_a_tensor_never_reads_beside_its_numbers():
    """Corners inside are not enough: a stride may go back, or a view repeat numbers."""
    storage = torch_file._Storage(np.arange(10.0))
    for layout, said in (
        ((5, (2, 2), (-5, 6)), "negative"),
        ((5, (-2,), (1,)), "negative"),
        ((-1, (2,), (1,)), "negative"),
        ((0, (11,), (1,)), "outside"),
        ((9, (2,), (1,)), "outside"),
        ((0, (10**12,), (0,)), "repeats"),
    ):
        with pytest.raises(torch_file.TorchFileError, match=said):
            torch_file._tensor(storage, *layout)
    found = torch_file._tensor(storage, 1, (2, 3), (1, 2))
    assert found.tolist() == [[1, 3, 5], [2, 4, 6]]
    assert torch_file._tensor(storage, 0, (0, 3), (3, 1)).shape == (0, 3)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damaged_bytes_are_told_as_such(tmp_path):
    """Two thousand files with a few other bytes: arrays, or one kind of error."""
    whole, path = tmp_path / "whole.pt", tmp_path / "a.pt"
    torch.save({"w": torch.ones(3, 4), "n": [1, "two", None]}, whole)
    with zipfile.ZipFile(whole) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (pickle_of,) = (name for name in records if name.endswith("data.pkl"))
    random, refused = np.random.default_rng(0), 0
    for _ in range(2000):
        body = bytearray(records[pickle_of])
        for place in random.integers(0, len(body), random.integers(1, 4)):
            body[place] = random.integers(0, 256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, record in (records | {pickle_of: bytes(body)}).items():
                archive.writestr(name, record)
        try:
            torch_file.load(path)
        except torch_file.TorchFileError:
            refused += 1
    assert refused > 200


def test_a_memo_without_end_is_refused(tmp_path):
    """A C unpickler would ask for 2^35 bytes."""
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}r\xff\xff\xff\xff.")
    with pytest.raises(torch_file.TorchFileError, match="the place 4294967295"):
        torch_file.load(path)


def test_an_opcode_that_torch_does_not_write_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x04(\x91.")  # a frozen set
    with pytest.raises(torch_file.TorchFileError, match="opcode FROZENSET"):
        torch_file.load(path)
