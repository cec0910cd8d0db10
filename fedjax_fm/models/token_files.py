"""The files of a model's folder that describe its tokens, read as transformers does.

Special tokens, ends of generation and chat templates.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from fedjax_fm.models.weights import WeightError

STANDARD = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Fields of an added token.
_ADDED = ("lstrip", "normalized", "rstrip", "single_word", "special")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no such file.

    Args:
      path: of the file.

    Raises:
      WeightError: it is not JSON, or holds no object.
    """
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(fields, dict):
        raise WeightError(
            f"{path}: expected a JSON object, got {fields!r:.60}; download it again"
        )
    return fields


def tokenizer_fields(folder: Path) -> dict[str, Any]:
    """The fields of tokenizer_config.json.

    Those of special_tokens_map.json lie over them, where the former holds no
    `added_tokens_decoder`.

    Args:
      folder: of the model.

    Raises:
      WeightError: a file is not JSON.
    """
    fields = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in fields:
        return fields
    return {**fields, **read_json(folder / "special_tokens_map.json")}


def special_tokens(fields: Mapping[str, Any], where: Path) -> dict[str, str]:
    """The standard special tokens, and those that the model adds by name.

    Args:
      fields: of `tokenizer_fields`.
      where: the folder, for error messages.

    Returns:
      {"bos_token": word, ...}.

    Raises:
      WeightError: a token is neither text nor an object with its text.

    Example:
      >>> fields = {"eos_token": {"content": "</s>"}, "model_max_length": 512}
      >>> special_tokens(fields, Path())
      {'eos_token': '</s>'}
    """
    named = {
        name: value
        for name, value in fields.items()
        if name.endswith("_token") and _is_token(value)
    }
    for name in ("extra_special_tokens", "model_specific_special_tokens"):
        if isinstance(fields.get(name), dict):
            named |= fields[name]
    for name in STANDARD:
        if fields.get(name) is not None and name not in named:
            raise WeightError(f"{where}: expected {name} as text, got {fields[name]!r}")
    return {
        name: value if isinstance(value, str) else value["content"]
        for name, value in named.items()
    }


def _is_token(value: Any) -> bool:
    """Whether a value is a token: text, or an object with its text."""
    if isinstance(value, dict):
        value = value.get("content")
    return isinstance(value, str)


def register(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """Adds the special tokens of the folder that its tokenizer.json does not list.

    Text is then cut at them.

    Args:
      tokenizer: of tokenizer.json; it is changed.
      folder: of the model.

    Returns:
      The tokenizer.

    Raises:
      WeightError: a token's id is not the one that it would get.
    """
    fields = tokenizer_fields(folder)
    added = tokenizer.get_added_tokens_decoder()
    known = {token.content for token in added.values()}
    decoder = fields.get("added_tokens_decoder") or {}
    for number, token in sorted(decoder.items(), key=lambda item: int(item[0])):
        if token["content"] in known:
            continue
        settings = {key: token[key] for key in _ADDED if key in token}
        tokenizer.add_tokens([AddedToken(token["content"], **settings)])
        found = tokenizer.token_to_id(token["content"])
        if found != int(number):
            raise WeightError(
                f"{folder / 'tokenizer_config.json'} gives {token['content']!r} "
                f"the id {number}, with tokenizer.json it would have {found}; take "
                "both files from one place"
            )
    extra = [
        fields.get(name) or []
        for name in ("additional_special_tokens", "extra_special_tokens")
    ]
    listed = [token for tokens in extra if isinstance(tokens, list) for token in tokens]
    wanted = [
        *special_tokens(fields, folder).values(),
        *(t if isinstance(t, str) else t["content"] for t in listed),
    ]
    # A word that the vocabulary lacks has no row in the model's embedding.
    new = [
        word
        for word in wanted
        if word not in known and tokenizer.token_to_id(word) is not None
    ]
    tokenizer.add_special_tokens(new)
    return tokenizer


def end_ids(folder: Path) -> tuple[int, ...] | None:
    """Ids that end generation, as the folder names them.

    They are those of generation_config.json, else those of config.json.

    Args:
      folder: of the model.

    Returns:
      The ids; None where neither file names one.

    Raises:
      WeightError: what is there is no id and no list of ids.
    """
    for name in ("generation_config.json", "config.json"):
        fields = read_json(folder / name)
        of_text = fields.get("text_config") or {}
        value = fields.get("eos_token_id", of_text.get("eos_token_id"))
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not ids or not all(map(_is_id, ids)):
            raise WeightError(
                f"{folder / name}: expected eos_token_id as one or several ids, got "
                f"{value!r}"
            )
        return tuple(ids)
    return None


def _is_id(value: Any) -> bool:
    """Whether a value is a token id."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def templates(folder: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name, "default" among them.

    They are those of chat_template.jinja and additional_chat_templates/*.jinja; else of
    tokenizer_config.json; else of chat_template.json.

    Args:
      folder: of the model.
      fields: of `tokenizer_fields`.

    Raises:
      WeightError: there is none (a base model), none of them is the default, or one is
        no text.
    """
    own = folder / "chat_template.jinja"
    others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    found: Any = {path.stem: path.read_text(encoding="utf-8") for path in others}
    if own.is_file():
        found["default"] = own.read_text(encoding="utf-8")
    where = folder / "tokenizer_config.json"
    if not found:
        found = fields.get("chat_template")
    if not found:
        where = folder / "chat_template.json"
        found = read_json(where).get("chat_template")
    if not found:
        raise WeightError(
            f"{folder} has no chat template; it is a base model, or make a `Chat` with "
            "your own"
        )
    return named_templates(found, where)


def named_templates(found: Any, where: Any) -> dict[str, str]:
    """One template, a list of named ones or a mapping, as a mapping with a default.

    Args:
      found: what a file holds.
      where: the file, for error messages.

    Raises:
      WeightError: see `templates`.

    Example:
      >>> named_templates("{{ messages }}", "tokenizer_config.json")
      {'default': '{{ messages }}'}
    """
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        found = {entry.get("name"): entry.get("template") for entry in found}
    if not isinstance(found, dict) or not all(
        isinstance(text, str) for text in found.values()
    ):
        raise WeightError(
            f"{where}: expected chat_template as text or by name, got {found!r:.80}"
        )
    if "default" not in found:
        raise WeightError(
            f"{where} has the chat templates {sorted(found)} and no default; make "
            "a `Chat` with the one you want"
        )
    return found
