"""Scores of every example, for any task."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_fm import checks
from fedjax_fm.evaluation.buckets import check_rows, length_batches
from fedjax_fm.population.values import checked_array
from fedjax_fm.types import Task, Tree

# Columns that hold one value a token, which may be cut to the longest text of a batch.
TOKENS = ("input_ids", "attention_mask", "labels", "token_type_ids", "position_ids")
Scores = dict[str, np.ndarray]


def evaluate(
    task: Task,
    delta: Tree,
    backbone: Tree,
    arrays: Mapping[str, Any],
    *,
    batch_size: int = 256,
    bucket: int | None = None,
    key: jax.Array | None = None,
) -> Scores:
    """Computes the task's loss and metrics of every example.

    One compile for any number of examples: the last batch is filled up, and what it was
    filled with is dropped. On several devices each computes its part of a batch.

    Args:
      task: from `tasks`, or your own.
      delta, backbone: of the model, such as `simulator.model(state)` returns; `()` for no backbone.
      arrays: {column: [n, ...]}, any n >= 1.
      batch_size: examples that are computed at once.
      bucket: with it, examples of like length are computed together and the columns of
        tokens are cut to that length, rounded up to a multiple of `bucket`: short texts
        cost less, each width compiles once. For models whose answer does not depend on
        padding, with an `attention_mask` [n, T].
      key: given to the loss in the place of None, for a loss that draws (dropout) when
        it is evaluated, too.

    Returns:
      {"loss": f32[n], each metric: f32[n]}, and for a task with weights "weight":
      f32[n], what an example counts in a mean; see `means`.

    Raises:
      TypeError: the loss draws from its key and `key` is None.
      ValueError: no examples, columns of unequal length, or columns that do not fit the
        task (names both).
      FloatingPointError: a loss that is not finite; says of which example.

    Example:
      >>> from fedjax_fm import tasks
      >>> task = tasks.from_logits(lambda delta, backbone, batch, key: batch["x"] * delta)
      >>> arrays = {"x": np.eye(3, dtype=np.float32), "label": np.array([0, 1, 0])}
      >>> scores = evaluate(task, jnp.float32(5), (), arrays)
      >>> scores["accuracy"].tolist()
      [1.0, 1.0, 0.0]
    """
    checks.instance(
        "task", task, Task, "make one with tasks.classification(adapted) or Task(loss)"
    )
    checks.whole("batch_size", batch_size, least=1)
    if bucket is not None:
        checks.whole("bucket", bucket, least=1)
    arrays = {name: checked_array(name, array) for name, array in arrays.items()}
    n = check_rows(arrays, ())
    mesh = _mesh_of((delta, backbone))
    if mesh is not None:
        batch_size = -(-batch_size // mesh.size) * mesh.size
    found: Scores = {}
    for rows, batch in _batches(arrays, n, batch_size, bucket):
        if not found:
            _check_key(task, delta, backbone, batch, key)
        if mesh is not None:
            batch = jax.device_put(batch, NamedSharding(mesh, P(mesh.axis_names)))
        for name, values in _scores(task, mesh, delta, backbone, batch, key).items():
            column = found.setdefault(name, np.zeros(n, np.float32))
            column[rows] = np.asarray(values)[: len(rows)]
    _check_finite(found["loss"], arrays)
    return found


def means(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of every column of scores, by the column `weight` where there is one.

    Args:
      scores: from `evaluate`; parts of several calls may be concatenated.

    Returns:
      {name: mean}, without `weight`; NaN where no example counts.

    Example:
      >>> means({"loss": np.array([1.0, 4.0]), "weight": np.array([2.0, 1.0])})
      {'loss': 2.0}
    """
    weight = np.asarray(scores.get("weight", np.ones_like(scores["loss"])), np.float64)
    total = weight.sum()
    columns = {
        name: np.asarray(values, np.float64)
        for name, values in scores.items()
        if name != "weight"
    }
    return {
        name: float(values @ weight / total) if total else float("nan")
        for name, values in columns.items()
    }


def _batches(
    arrays: Mapping[str, np.ndarray], n: int, batch_size: int, bucket: int | None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(rows, {column: [batch_size, ...]}): every row once, then rows that fill up the batch."""
    if bucket is None:
        for start in range(0, n, batch_size):
            rows = np.arange(start, min(start + batch_size, n))
            padded = np.resize(rows, batch_size)
            yield rows, {name: array[padded] for name, array in arrays.items()}
        return
    if "attention_mask" not in arrays:
        raise ValueError(
            f"bucket={bucket} needs the column attention_mask; there are "
            f"{', '.join(sorted(arrays))}"
        )
    mask = arrays["attention_mask"]
    for width, rows, padded in length_batches(mask, batch_size, bucket):
        batch = {name: array[padded] for name, array in arrays.items()}
        cut = [
            name
            for name in TOKENS
            if name in batch and batch[name].shape[1:] == mask.shape[1:]
        ]
        yield rows, {**batch, **{name: batch[name][:, :width] for name in cut}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
    task: Task, mesh: Mesh | None, delta: Tree, backbone: Tree, batch: Tree, key: Any
) -> Tree:
    """{name: f32[B]}; with a mesh each device computes its rows, as the loss is one of
    each example by itself.
    """

    def some(delta: Tree, backbone: Tree, batch: Tree, key: Any) -> Tree:
        loss, metrics = task.loss(delta, backbone, batch, key)
        _check_each(loss, metrics, batch)
        weight = {} if task.weight is None else {"weight": task.weight(batch)}
        return {"loss": loss, **metrics, **weight}

    if mesh is not None:
        rows = P(mesh.axis_names)
        specs = (P(), P(), rows, P())
        some = jax.shard_map(
            some, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False
        )
    return some(delta, backbone, batch, key)


def _mesh_of(tree: Tree) -> Mesh | None:
    """The mesh on which all arrays lie whole on every device.

    None where they do not, or on one device.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    shardings = [
        leaf.sharding for leaf in leaves if isinstance(leaf.sharding, NamedSharding)
    ]
    if len(shardings) < len(leaves):
        return None
    meshes = {sharding.mesh for sharding in shardings}
    if len(meshes) != 1 or not all(leaf.is_fully_replicated for leaf in leaves):
        return None
    (mesh,) = meshes
    spread = mesh.size > 1 and all(kind == AxisType.Auto for kind in mesh.axis_types)
    # pyright: ignore[reportReturnType]  (an abstract one has no arrays)
    return mesh if spread else None


def _check_each(loss: jax.Array, metrics: Mapping[str, jax.Array], batch: Tree) -> None:
    n = len(next(iter(batch.values())))
    for name, values in {"loss": loss, **metrics}.items():
        if jnp.shape(values) != (n,):
            raise ValueError(
                f"expected {name} as one number an example, [{n}], got {list(jnp.shape(values))}"
            )
    if taken := {"loss", "weight"} & set(metrics):
        raise ValueError(
            f"metrics named {sorted(taken)} are evaluate's own; give the task's other names"
        )


def _check_key(task: Task, delta: Tree, backbone: Tree, batch: Tree, key: Any) -> None:
    """Raises TypeError for a loss that works with a key but not without one."""
    if key is not None:
        return
    try:
        jax.eval_shape(
            functools.partial(_scores, task, None), delta, backbone, batch, None
        )
    except Exception as error:
        try:
            jax.eval_shape(
                functools.partial(_scores, task, None),
                delta,
                backbone,
                batch,
                jax.random.key(0),
            )
        except Exception:
            raise error from None
        raise TypeError(
            "the loss draws from its key, and is evaluated with key=None: let it "
            "draw nothing then (dropout), or give evaluate(..., "
            "key=jax.random.key(0)) to score it as it is trained"
        ) from error


def _check_finite(loss: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    wrong = np.flatnonzero(~np.isfinite(loss))
    if not len(wrong):
        return
    row = int(wrong[0])
    values = {
        name: array[row].item() for name, array in arrays.items() if array.ndim == 1
    }
    said = ", ".join(f"{name}={value}" for name, value in values.items())
    raise FloatingPointError(
        f"the loss of example {row} is not finite{f' ({said})' if said else ''}; "
        "a label outside of the model's classes is one cause, parameters that "
        f"are not finite another ({len(wrong)} of {len(loss)} examples)"
    )
