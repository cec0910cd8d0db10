"""Adapters to and from NVIDIA FLARE: FLModels and the files of its PyTorch server.

A client's loop in FLARE's Client API, with our training inside; FLARE itself is imported
by the user's script alone:

    adapted = flare.from_fl_model(nvflare.client.receive(), adapted)
    ...
    update = flare.fl_model(adapted, state.delta, examples=n)
    nvflare.client.send(FLModel(**update))

Names are those of its example `llm_hf` (NVIDIA/NVFlare, examples/advanced/llm_hf, commit
0b3cce3e): PEFT's, such as `base_model.model....lora_A.weight`, which its server's model
puts behind `model.`. Megatron's adapters, as of older NeMo examples, have names of
their own and are refused.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from fedjax_fm import checks, peft
from fedjax_fm.bridges.sites import Sites, read_sites, write_sites
from fedjax_fm.models import torch_file
from fedjax_fm.peft import Adapted
from fedjax_fm.types import Tree

__all__ = [
    "Sites",
    "fl_model",
    "from_fl_model",
    "load_global_model",
    "read_sites",
    "save_global_model",
    "write_sites",
]
ParamsType = Literal["FULL", "DIFF"]
FIELDS = ("params_type", "params")
EXAMPLES = "NUM_STEPS_CURRENT_ROUND"  # by which FLARE weights a client, FLMetaKey
SERVER_PREFIX = "model."  # of the attribute that holds the PEFT model on the server
ADAPTER = ".default."  # PEFT's name of an adapter, in the names of a whole module
MODEL, CONFIGURATION = "model", "train_conf"


def fl_model(
    adapted: Adapted,
    delta: Tree | None = None,
    *,
    start: Tree | None = None,
    key_prefix: str = SERVER_PREFIX,
    examples: int | None = None,
    metrics: Mapping[str, float] | None = None,
    current_round: int | None = None,
    total_rounds: int | None = None,
) -> dict[str, Any]:
    """The arguments of FLARE's `FLModel` for a trained adapter.

    Args:
      adapted: from `peft.apply` or `peft.load_pretrained`.
      delta: for example `state.delta`; default: the values before training.
      start: None sends the values (FULL); else their change from this tree (DIFF).
      key_prefix: before each name, as the server's model has it.
      examples: that the client trained with; FLARE weights it by them.
      metrics: of the client; FLARE chooses the best model by one of them.
      current_round: from 0.
      total_rounds: of the job.

    Returns:
      {argument: value}; parameters are f32, as FLARE sends numpy.

    Raises:
      ValueError: PEFT's names cannot hold what is trained; a number out of bounds.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import peft
      >>> model = nnx.Dict(q_proj=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> adapted = peft.apply(model, peft.lora(2, targets=["q_proj"]))
      >>> sent = fl_model(adapted, examples=12)
      >>> sent["params_type"], sent["meta"]
      ('FULL', {'NUM_STEPS_CURRENT_ROUND': 12})
      >>> list(sent["params"])[0]
      'model.base_model.model.q_proj.lora_A.weight'
    """
    numbers = {"current_round": current_round, "total_rounds": total_rounds}
    given = {name: value for name, value in numbers.items() if value is not None}
    for name, value in given.items():
        checks.whole(name, value, least=0)
    meta = {}
    if examples is not None:
        meta[EXAMPLES] = int(checks.whole("examples", examples, least=0))
    params = _params(adapted, delta)
    if start is not None:
        before = _params(adapted, start)
        params = {name: value - before[name] for name, value in params.items()}
    return {
        "params_type": "FULL" if start is None else "DIFF",
        "params": {f"{key_prefix}{name}": value for name, value in params.items()},
        "metrics": {name: float(value) for name, value in (metrics or {}).items()},
        "meta": meta,
        **given,
    }


def from_fl_model(
    model: Any,
    adapted: Adapted,
    *,
    params_type: ParamsType = "FULL",
    key_prefix: str = SERVER_PREFIX,
) -> Adapted:
    """The adapter that an `FLModel` holds.

    Args:
      model: FLARE's object, or a mapping with its `params` and `params_type`.
      adapted: the same adapter with any values; a DIFF is added to them.
      params_type: what is expected, "FULL" or "DIFF".
      key_prefix: taken from the names that have it.

    Returns:
      The parts, with the values of the model.

    Raises:
      TypeError: not an FLModel.
      ValueError: another params_type, or none; values that are not finite.
      AdapterError: names that match no layer, are missing or of another shape, as with
        another rank; all are listed.
    """
    checks.choice("params_type", params_type, get_args(ParamsType))
    kind, params = _opened(model)
    if kind != params_type:
        cure = "ask its sender for whole parameters"
        if kind == "DIFF":
            cure = "from_fl_model(..., params_type='DIFF') adds it to `adapted`"
        raise ValueError(
            f"expected an FLModel with params_type {params_type!r}, got {kind!r}; {cure}"
        )
    arrays = _named(params, key_prefix)
    if kind == "DIFF":
        arrays = _added(adapted, arrays)
    return peft.with_state_dict(adapted, arrays, source="the FLModel")


def save_global_model(
    path: str | os.PathLike[str],
    adapted: Adapted,
    delta: Tree | None = None,
    *,
    key_prefix: str = SERVER_PREFIX,
    model_class: str | None = "CausalLMPEFTModel",
) -> None:
    """Writes a checkpoint that FLARE's server begins with or continues from.

    It is the file of its `PTFileModelPersistor`, `FL_global_model.pt`, which a job names
    as `source_ckpt_file_full_name` or `initial_ckpt`.

    Args:
      path: of the file.
      adapted: from `peft.apply` or `peft.load_pretrained`.
      delta: for example `state.delta`; default: the values before training.
      key_prefix: before each name, as the server's model has it.
      model_class: the class of the server's model, which FLARE notes; None for none.

    Raises:
      ValueError: PEFT's names cannot hold what is trained.
    """
    params = _params(adapted, delta)
    named = {f"{key_prefix}{name}": value for name, value in params.items()}
    whole: OrderedDict[str, Any] = OrderedDict({MODEL: OrderedDict(named)})
    if model_class is not None:
        whole[CONFIGURATION] = {"train": {"model": model_class}}
    torch_file.save(path, whole)


def load_global_model(
    path: str | os.PathLike[str], adapted: Adapted, *, key_prefix: str = SERVER_PREFIX
) -> Adapted:
    """The adapter in a file that FLARE's server saved.

    Args:
      path: of `FL_global_model.pt` or `best_FL_global_model.pt`.
      adapted: the same adapter with any values: the file has no rank's scale, no alpha.
      key_prefix: taken from the names that have it.

    Returns:
      The parts, with the values of the file; base weights in it replace the model's.

    Raises:
      FileNotFoundError: no such file.
      TorchFileError: not a file of arrays.
      AdapterError: names that match no layer, are missing or of another shape.
    """
    whole = torch_file.load(path)
    if not isinstance(whole, Mapping):
        raise peft.AdapterError(
            f"{path}: expected names and tensors, got {whole!r:.60}"
        )
    params = whole.get(MODEL, whole)
    arrays = _named(params, key_prefix)
    return peft.with_state_dict(adapted, arrays, source=str(path))


def _params(adapted: Adapted, delta: Tree | None) -> dict[str, np.ndarray]:
    """{PEFT's name: f32}, as FLARE casts what numpy does not know."""
    arrays = peft.state_dict(adapted, delta)
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def _added(adapted: Adapted, change: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The adapter's values and a change of them."""
    before = _params(adapted, None)
    if extra := sorted(change.keys() - before.keys()):
        raise peft.AdapterError(
            f"a DIFF changes the adapter alone, got extra {extra[:8]}, expected names "
            f"such as {next(iter(before))}"
        )
    return {name: before[name] + value for name, value in change.items()}


def _opened(model: Any) -> tuple[str, Mapping[str, Any]]:
    """(params_type, params) of an FLModel or of a mapping with its fields."""
    if isinstance(model, Mapping):
        kind, params = (model.get(name) for name in FIELDS)
    else:
        kind, params = (getattr(model, name, None) for name in FIELDS)
    if not isinstance(params, Mapping):
        raise TypeError(
            "expected an FLModel of FLARE with params {name: array}, got "
            f"{checks.shown(model)}"
        )
    return str(getattr(kind, "value", kind)), params


def _named(params: Any, key_prefix: str) -> dict[str, np.ndarray]:
    """{PEFT's name: array} of a server's names."""
    found: dict[str, np.ndarray] = {}
    for key, value in params.items():
        name = key.removeprefix(key_prefix).replace(ADAPTER, ".")
        if name in found:
            raise peft.AdapterError(f"two parameters are called {name!r}, one {key!r}")
        found[name] = _array(key, value)
    return found


def _array(name: str, value: Any) -> np.ndarray:
    """A numpy array, or torch's tensor as one."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    array = np.asarray(value)
    if array.dtype == object or not np.isfinite(array.astype(np.float32)).all():
        raise ValueError(
            f"expected finite numbers in {name}, got {checks.shown(value)}"
        )
    return array
