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
from fedjax_fm.engine import hosts
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
    """Computes the loss and the metrics of every example.

    It compiles once for any number of examples: the last batch is filled up by
    repeating rows, whose results are dropped. If `delta` and `backbone` lie whole on
    several devices, each device computes its part of a batch.

    Args:
      task: from `fedjax_fm.tasks`, or your own `Task`.
      delta: the model's trainable tree, as `simulator.model(state)` returns it.
      backbone: the model's frozen tree, likewise; `()` where there is none.
      arrays: {column: [n, ...]}, with n >= 1 examples.
      batch_size: examples that are computed at once; rounded up to a multiple of the
        devices.
      bucket: tokens. With it, examples of similar length are computed together, and the
        columns of tokens are cut to that length, rounded up to a multiple of `bucket`:
        short texts cost less, and each width compiles once. It needs an
        `attention_mask` i32[n, T] and a model whose output does not depend on padding.
        None: no cut.
      key: passed to the loss. None, the default, evaluates without dropout. A key is
        for losses that draw random numbers in evaluation, too.

    Returns:
      {"loss": f32[n], each metric: f32[n]}. A task with weights adds "weight": f32[n],
      what an example counts in a mean (its tokens, for language modelling); see
      `means`.

    Raises:
      TypeError: the loss needs a key and `key` is None, or an argument has a wrong
        type.
      ValueError: no examples, columns of unequal length, columns that do not fit the
        task (the message names both), or a loss that is not one number an example.
      FloatingPointError: a loss is not finite; the message says of which example.

    Example:
      >>> from fedjax_fm import tasks
      >>> def logits(delta, backbone, batch, key):
      ...     return batch["x"] * delta
      >>> task = tasks.from_logits(logits)
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
    n = check_rows(arrays)
    delta, backbone = _together((delta, backbone))
    mesh = _mesh_of((delta, backbone))
    if mesh is not None:
        batch_size = -(-batch_size // mesh.size) * mesh.size
    found: Scores = {}
    for rows, batch in _batches(arrays, n, batch_size, bucket):
        if not found:
            _check_key(task, delta, backbone, batch, key=key)
        if mesh is not None:
            spread = NamedSharding(mesh, P(mesh.axis_names))
            put = hosts.on_all if hosts.are_several() else jax.device_put
            batch = put(batch, spread)
        scores = _scores(task, mesh, delta, backbone, batch=batch, key=key)
        for name, values in scores.items():
            column = found.setdefault(name, np.zeros(n, np.float32))
            column[rows] = hosts.whole(values)[: len(rows)]
    _check_finite(found["loss"], arrays)
    return found


def means(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Averages every column of scores, by the column `weight` where there is one.

        mean = sum_i w_i x_i / sum_i w_i,   w_i = 1 without weights

    For `tasks.language_modeling` the weights are numbers of tokens, so the perplexity
    is the exponential of the mean loss. It does not depend on how rows are dealt to
    batches or clients.

    Args:
      scores: {name: f32[n]} from `evaluate`. Scores of several calls may be
        concatenated, and those of one client cut out.

    Returns:
      {name: mean}, without `weight`. NaN where no example counts: there are none, or
      all weights are zero.

    Example:
      >>> loss, weight = np.array([1.0, 4.0, 3.0]), np.array([2.0, 1.0, 0.0])
      >>> scores = {"loss": loss, "weight": weight}
      >>> means(scores)
      {'loss': 2.0}

      The perplexity, and the mean of a client that holds the last two rows:

      >>> round(float(np.exp(means(scores)["loss"])), 4)
      7.3891
      >>> means({name: column[1:] for name, column in scores.items()})
      {'loss': 4.0}
    """
    ones = np.ones_like(scores["loss"])
    weight = np.asarray(scores.get("weight", ones), np.float64)
    total = weight.sum()
    found: dict[str, float] = {}
    for name, values in scores.items():
        if name == "weight":
            continue
        weighted = np.asarray(values, np.float64) @ weight
        found[name] = float(weighted / total) if total else float("nan")
    return found


def _batches(
    arrays: Mapping[str, np.ndarray], n: int, batch_size: int, bucket: int | None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields (row numbers, {column: [batch_size, ...]}); repeats rows to fill up."""
    if bucket is None:
        for start in range(0, n, batch_size):
            end = min(start + batch_size, n)
            rows = np.arange(start, end)
            padded = np.resize(rows, batch_size)
            yield rows, {name: array[padded] for name, array in arrays.items()}
        return
    if "attention_mask" not in arrays:
        names = ", ".join(sorted(arrays))
        raise ValueError(
            f"bucket={bucket} needs the column attention_mask; there are {names}"
        )
    mask = arrays["attention_mask"]
    of_tokens = [
        name
        for name in TOKENS
        if name in arrays and arrays[name].shape[1:] == mask.shape[1:]
    ]
    for width, rows, padded in length_batches(mask, batch_size, bucket):
        batch = {name: array[padded] for name, array in arrays.items()}
        for name in of_tokens:
            batch[name] = batch[name][:, :width]
        yield rows, batch


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
    task: Task, mesh: Mesh | None, delta: Tree, backbone: Tree, batch: Tree, key: Any
) -> Tree:
    """{name: f32[B]} of a batch.

    With a mesh each device computes its own rows: the loss of an example depends on no
    other example.
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


def _together(tree: Tree) -> Tree:
    """The tree on one set of devices, the largest that a part of it lies on.

    A delta may come from one simulator and the backbone from another. What is split,
    and not whole on each device, stays.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    held = [leaf.sharding for leaf in leaves if leaf.committed]
    are_whole = all(one.is_fully_replicated for one in held)
    if len({frozenset(one.device_set) for one in held}) < 2 or not are_whole:
        return tree
    place = max(held, key=_n_devices)
    whole = (
        NamedSharding(place.mesh, P()) if isinstance(place, NamedSharding) else place
    )

    def put(leaf: Any) -> Any:
        return jax.device_put(leaf, whole) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(put, tree)


def _n_devices(place: Any) -> int:
    return len(place.device_set)


def _mesh_of(tree: Tree) -> Mesh | None:
    """The mesh on which every device holds all arrays whole.

    None where there is no such mesh, or one of a single device.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    shardings = [leaf.sharding for leaf in leaves]
    named = [one for one in shardings if isinstance(one, NamedSharding)]
    if len(named) < len(shardings):
        return None
    meshes = {one.mesh for one in named}
    whole = all(leaf.is_fully_replicated for leaf in leaves)
    if len(meshes) != 1 or not whole:
        return None
    (mesh,) = meshes
    spread = mesh.size > 1 and all(kind == AxisType.Auto for kind in mesh.axis_types)
    is_concrete = isinstance(mesh, Mesh)  # an abstract one has no arrays
    return mesh if spread and is_concrete else None


def _check_each(loss: jax.Array, metrics: Mapping[str, jax.Array], batch: Tree) -> None:
    """Raises ValueError unless loss and metrics are [B] and named differently."""
    first_column = next(iter(batch.values()))
    n = len(first_column)
    for name, values in {"loss": loss, **metrics}.items():
        shape = jnp.shape(values)
        if shape != (n,):
            raise ValueError(
                f"expected {name} as one number an example, [{n}], got {list(shape)}"
            )
    if taken := {"loss", "weight"} & set(metrics):
        raise ValueError(
            f"metrics named {sorted(taken)} are evaluate's own; give the task's other "
            "names"
        )


def _check_key(task: Task, delta: Tree, backbone: Tree, batch: Tree, key: Any) -> None:
    """Raises TypeError for a loss that works with a key but not without one."""
    if key is not None:
        return
    scored, arguments = functools.partial(_scores, task, None), (delta, backbone, batch)
    try:
        jax.eval_shape(scored, *arguments, None)
    except Exception as error:
        try:
            jax.eval_shape(scored, *arguments, jax.random.key(0))
        except Exception:
            raise error from None
        raise TypeError(
            "the loss draws from its key, and is evaluated with key=None: let it "
            "draw nothing then (dropout), or give evaluate(..., "
            "key=jax.random.key(0)) to score it as it is trained"
        ) from error


def _check_finite(loss: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises FloatingPointError with the first example whose loss is not finite."""
    finite = np.isfinite(loss)
    wrong = np.flatnonzero(~finite)
    if not len(wrong):
        return
    row = int(wrong[0])
    numbers = {name: array[row] for name, array in arrays.items() if array.ndim == 1}
    said = ", ".join(f"{name}={value.item()}" for name, value in numbers.items())
    values = f" ({said})" if said else ""
    raise FloatingPointError(
        f"the loss of example {row} is not finite{values}; "
        "a label outside of the model's classes is one cause, parameters that "
        f"are not finite another ({len(wrong)} of {len(loss)} examples)"
    )
