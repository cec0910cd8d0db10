"""`fedjax-fm eval`: a folder of weights, or of an adapter, on tasks of lm-eval."""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedjax_fm.evaluation.lm_eval import lm_eval_class
from fedjax_fm.models.token_files import read_json

ADAPTER = "adapter_config.json"
RUN = "finetune.toml"  # lies in the folder of such a run


def arguments_of(folder: Path, base: str | None = None) -> dict[str, str]:
    """What `LMEvalModel` is made of, for a folder.

    Args:
      folder: of a model, of an adapter in PEFT's format, or of a run of
        `fedjax-fm finetune`.
      base: the adapter's base model; None: the one that its folder names.

    Returns:
      {"pretrained": ..., "peft": ...}, the latter for adapters only.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a base for a folder that is no adapter, or an adapter that names none.

    Example:
      >>> arguments_of(Path("adapter"), "HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
      {'pretrained': 'HuggingFaceTB/SmolLM2-135M', 'peft': 'adapter'}
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    folder = _of_run(folder)
    if not (folder / ADAPTER).is_file():
        if base is not None:
            raise ValueError(
                f"{folder} holds no {ADAPTER}: it is no adapter, and takes no base"
            )
        return {"pretrained": str(folder)}
    base = base or read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{folder / ADAPTER} names no base model; give --base FOLDER_OR_HUB_ID"
        )
    return {"pretrained": str(base), "peft": str(folder)}


def _of_run(folder: Path) -> Path:
    """What a run of `fedjax-fm finetune` has trained; other folders as they are."""
    if not (folder / RUN).is_file():
        return folder
    for place in (folder / "model" / "adapter", folder / "model" / "merged"):
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"{folder} has neither an adapter nor a merged model: go on with fedjax-fm "
        f"finetune --resume {folder}, or run it again with --merge safetensors"
    )


def evaluated(
    folder: Path,
    tasks: Sequence[Any],
    *,
    base: str | None = None,
    limit: int | None = None,
    chat: bool = False,
    batch_size: int = 16,
) -> dict[str, Any]:
    """The results of `lm_eval.simple_evaluate`.

    Args:
      folder: of a model, or of an adapter in PEFT's format.
      tasks: names, or dictionaries as lm-eval takes them.
      base: the adapter's base model; None: the one that its folder names.
      limit: examples of each task; None: all.
      chat: whether prompts go through the model's chat template.
      batch_size: requests that are computed at once.

    Returns:
      lm-eval's results, without samples.

    Raises:
      ImportError: lm-eval is not installed.
      FileNotFoundError, ValueError: as `arguments_of`.

    Example:
      >>> evaluated(Path("model"), ["piqa"])["results"]["piqa"]  # doctest: +SKIP
    """
    lm_eval_class()  # says what to install, and tells lm-eval of our models
    harness: Any = importlib.import_module("lm_eval")
    return harness.simple_evaluate(
        model="fedjax_fm",
        model_args=arguments_of(folder, base),
        tasks=list(tasks),
        limit=limit,
        apply_chat_template=chat,
        batch_size=batch_size,
        log_samples=False,
    )


def lines(results: dict[str, Any]) -> Iterator[str]:
    """One line for each score: task, metric, filter, value and standard error.

    Args:
      results: of `evaluated`.

    Example:
      >>> found = {"piqa": {"alias": "piqa", "acc,none": 0.5, "acc_stderr,none": 0.1}}
      >>> list(lines({"results": found}))
      ['piqa  acc  0.5000 (standard error 0.1000)']
    """
    for task, scores in results["results"].items():
        for key, value in scores.items():
            metric, _, kind = key.partition(",")
            if not isinstance(value, float) or metric.endswith("_stderr"):
                continue
            error = scores.get(f"{metric}_stderr,{kind}")
            known = isinstance(error, float)
            behind = f" (standard error {error:.4f})" if known else ""
            name = metric if kind in ("", "none") else f"{metric} [{kind}]"
            yield f"{task}  {name}  {value:.4f}{behind}"
