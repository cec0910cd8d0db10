"""What a model's folder says of its tokens.

Special ones, ends of generation, chat templates; as transformers reads it.
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
_ADDED = (
    "lstrip",
    "normalized",
    "rstrip",
    "single_word",
    "special",
)  # fields of an added token


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no such file.

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
    """tokenizer_config.json.

    With special_tokens_map.json over it, where the former holds no
    `added_tokens_decoder`.
    """
    fields = read_json(folder / "tokenizer_config.json")
    older = (
        {}
        if "added_tokens_decoder" in fields
        else read_json(folder / "special_tokens_map.json")
    )
    return {**fields, **older}


def special_tokens(fields: Mapping[str, Any], where: Path) -> dict[str, str]:
    """{"bos_token": word, ...}: the standard ones, and those that the model adds by name.

    Raises:
      WeightError: a token is neither text nor an object with its text.
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
    return isinstance(value, str) or (
        isinstance(value, dict) and isinstance(value.get("content"), str)
    )


def register(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """Makes it know the special tokens of the folder that its tokenizer.json does not
    list, so that text is cut at them.

    Raises:
      WeightError: a token's id is not the one that it would get.
    """
    fields = tokenizer_fields(folder)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    decoder = fields.get("added_tokens_decoder") or {}
    for number, token in sorted(decoder.items(), key=lambda item: int(item[0])):
        if token["content"] in known:
            continue
        tokenizer.add_tokens(
            [
                AddedToken(
                    token["content"],
                    **{key: token[key] for key in _ADDED if key in token},
                )
            ]
        )
        if tokenizer.token_to_id(token["content"]) != int(number):
            raise WeightError(
                f"{folder / 'tokenizer_config.json'} gives {token['content']!r} "
                f"the id {number}, with tokenizer.json it would have "
                f"{tokenizer.token_to_id(token['content'])}; take both files from "
                "one place"
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
    tokenizer.add_special_tokens(
        [w for w in wanted if w not in known and tokenizer.token_to_id(w) is not None]
    )
    return tokenizer


def end_ids(folder: Path) -> tuple[int, ...] | None:
    """Ids that end generation.

    Generation_config.json's, else config.json's; None where neither names one.

    Raises:
      WeightError: what is there is no id and no list of ids.
    """
    for name in ("generation_config.json", "config.json"):
        fields = read_json(folder / name)
        value = fields.get(
            "eos_token_id", (fields.get("text_config") or {}).get("eos_token_id")
        )
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not ids or not all(
            isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids
        ):
            raise WeightError(
                f"{folder / name}: expected eos_token_id as one or several ids, got {value!r}"
            )
        return tuple(ids)
    return None


def templates(folder: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name, "default" among them.

    chat_template.jinja and additional_chat_templates/*.jinja; else
    tokenizer_config.json; else chat_template.json.

    Raises:
      WeightError: there is none (a base model), none of them is the default, or one is no text.
    """
    own, others = (
        folder / "chat_template.jinja",
        sorted((folder / "additional_chat_templates").glob("*.jinja")),
    )
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
            f"{folder} has no chat template; it is a base model, or make a `Chat` with your own"
        )
    return named_templates(found, where)


def named_templates(found: Any, where: Any) -> dict[str, str]:
    """One template, a list of named ones or a mapping, as a mapping with a default.

    Raises:
      WeightError: see `templates`.
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
