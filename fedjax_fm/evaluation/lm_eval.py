"""Our language models in EleutherAI's lm-evaluation-harness, without torch.

    lm = lm_eval_model(adapted.model(state.delta), chat)
    results = lm_eval.simple_evaluate(model=lm, tasks=["gsm8k"], limit=100)

Scores are those of lm-eval's own `hf` model on the same weights: contexts are cut,
tokens added and stop strings looked for as it does. The package is an option (the extra
`eval`): `LMEvalModel`, the class, is made when it is first asked for.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from fedjax_fm import checks
from fedjax_fm.evaluation.encoder_decoder import is_encoder_decoder, side_length
from fedjax_fm.evaluation.generation import generate_until
from fedjax_fm.evaluation.language import (
    checked_length,
    loglikelihood,
    loglikelihood_rolling,
)
from fedjax_fm.models import token_files
from fedjax_fm.models.chat import Chat, end_tokens, load_chat
from fedjax_fm.models.locate import locate
from fedjax_fm.models.pretrained import from_pretrained
from fedjax_fm.models.tokens import backend, load_tokenizer, without_padding
from fedjax_fm.peft.folder import load_pretrained

__all__ = ["lm_eval_class", "lm_eval_model", "model_digest"]

NAME = "fedjax_fm"  # as --model and `simple_evaluate(model=...)` know it
# Of how many tokens an answer may have, the harness knows four names; the first counts.
MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = ("do_sample", "temperature", "top_p", "top_k")


class Vocabulary(NamedTuple):
    """A tokenizer and the tokens with which texts begin and end.

    Attributes:
      tokenizer: of the `tokenizers` library.
      chat: with its template; None: the model has none.
      ends: ids that end an answer, the model's end of text first.
      first: id before a text, the token of beginning; None: the first of `ends`.
    """

    tokenizer: Tokenizer
    chat: Chat | None
    ends: tuple[int, ...]
    first: int | None


def __getattr__(name: str) -> Any:
    if name == "LMEvalModel":
        return lm_eval_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def lm_eval_model(model: Any, tokenizer: Any, **options: Any) -> Any:
    """A model as lm-eval takes it, for `lm_eval.simple_evaluate(model=...)`.

    Args:
      model: a language model of `models`, such as `adapted.model(state.delta)`.
      tokenizer: a `Chat`; a fast tokenizer of transformers; a folder or hub id; or one
        of `tokenizers`, with `eos_token_id`.
      **options: of `lm_eval_class`.

    Returns:
      An `LMEvalModel`, a subclass of lm-eval's `TemplateLM`.

    Raises:
      ImportError: lm-eval is not installed.
      TypeError, ValueError: no language model, no tokenizer, an option out of range.

    Example:
      >>> chat = models.load_chat(folder)  # doctest: +SKIP
      >>> lm = lm_eval_model(models.from_pretrained(folder), chat)  # doctest: +SKIP
      >>> found = lm_eval.simple_evaluate(model=lm, tasks=["piqa"])  # doctest: +SKIP
    """
    return lm_eval_class()(model, tokenizer, **options)


def lm_eval_class() -> type:
    """The class `LMEvalModel`, registered with lm-eval as "fedjax_fm".

    After a call, `simple_evaluate(model="fedjax_fm", model_args=...)` makes one. Its
    arguments:

    - `model` and `tokenizer`, as of `lm_eval_model`; or in their place
    - `pretrained`, a folder, .gguf file or hub id of both, and `peft`, the folder of an
      adapter for it;
    - `batch_size`, requests at once (16), and `chunk`, positions whose logits exist at
      one time (128);
    - `max_length`, tokens that are read at once (the model's context), and
      `max_gen_toks`, tokens of an answer where a task names no number (256);
    - `eos_token_id` and `prefix_token_id`, in the place of the tokenizer's;
    - `add_bos_token`, whether texts begin with the tokenizer's special tokens (None: as
      the tokenizer does by itself);
    - `seed`, of what is drawn where a task samples (0).

    A task that samples (`do_sample`) says at which temperature; of top_k and top_p those
    that it names are taken, and no others. The same seed and the same requests give the
    same answers, which are not torch's.

    Of an encoder-decoder the encoder reads the context and the decoder the continuation
    or the answer, each of up to `max_length` tokens (512); whole texts have no
    likelihood there, and are refused.

    With `use_cache` the digest of
    weights and tokenizer is part of each key, so that another adapter finds none of the
    first one's answers.

    Returns:
      The class.

    Raises:
      ImportError: lm-eval is not installed.

    References:
      Gao et al., 2023, The Language Model Evaluation Harness, `TemplateLM`.

    Example:
      >>> lm_eval_class()  # doctest: +SKIP
      >>> lm_eval.simple_evaluate(  # doctest: +SKIP
      ...     model="fedjax_fm",
      ...     model_args={"pretrained": "folder", "peft": "adapter"},
      ...     tasks=["gsm8k"],
      ... )
    """
    return _made()


@functools.cache
def _made() -> type:
    """The class, made and registered once."""
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise ImportError(
            "LMEvalModel needs lm-eval: pip install 'fedjax-fm[eval]'"
        ) from error
    made = type("LMEvalModel", (_Answers, TemplateLM), {"__doc__": _Answers.__doc__})
    return register_model(NAME)(made)


class _Answers:
    """What lm-eval asks of a model; see `lm_eval_class` for the arguments."""

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        pretrained: str | None = None,
        peft: str | None = None,
        batch_size: int | str = 16,
        chunk: int = 128,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        eos_token_id: int | Sequence[int] | None = None,
        prefix_token_id: int | None = None,
        add_bos_token: bool | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.model, source = _opened(model, tokenizer, pretrained, peft)
        has_encoder = is_encoder_decoder(self.model)
        self.backend = "seq2seq" if has_encoder else "causal"
        self.vocabulary = vocabulary_of(source, eos_token_id)
        if prefix_token_id is not None:
            checks.whole("prefix_token_id", prefix_token_id, least=0)
            self.vocabulary = self.vocabulary._replace(first=prefix_token_id)
        self.tokenizer = self.vocabulary.tokenizer
        self.batch_size = _batch_size(batch_size)
        self.chunk = checks.whole("chunk", chunk, least=1)
        self.max_length = (
            side_length(max_length)
            if has_encoder
            else checked_length(self.model, max_length)
        )
        self.seed = checks.whole("seed", seed, least=0)
        self.max_gen_toks = checks.whole("max_gen_toks", max_gen_toks, least=1)
        self.add_bos_token = add_bos_token

    @property
    def _how(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "max_length": self.max_length}

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.vocabulary.ends[0]

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without a context."""
        first = self.vocabulary.first
        return self.eot_token_id if first is None else first

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text; one that begins with the prefix as text gets no other."""
        special = add_special_tokens
        if special is None:
            first = self.tok_decode([self.prefix_token_id], skip_special_tokens=False)
            has_one = bool(first) and string.startswith(first)
            special = self.add_bos_token is not False and not has_one
        with without_padding(self.tokenizer) as ready:
            return ready.encode(string, add_special_tokens=special).ids

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True):
        """The text of ids."""
        return self.tokenizer.decode(
            list(tokens), skip_special_tokens=skip_special_tokens
        )

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        found = loglikelihood(self.model, pairs, chunk=self.chunk, **self._how)
        sums, greedy = found.sums.tolist(), found.greedy.tolist()
        answers = list(zip(sums, greedy, strict=True))
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each whole text."""
        found = loglikelihood_rolling(
            self.model,
            [self.tok_encode(request.args[0]) for request in requests],
            prefix_token_id=self.prefix_token_id,
            chunk=self.chunk,
            **self._how,
        ).tolist()
        for request, total in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return found

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[str]:
        """The answer to each prompt, up to its stop strings."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike = json.dumps(request.args[1], sort_keys=True, default=str)
            groups.setdefault(alike, []).append(number)
        answers = [""] * len(requests)
        for numbers in groups.values():
            asked = [requests[number].args for number in numbers]
            stops, most, draw = _wanted(asked[0][1], self.max_gen_toks)
            if draw:
                draw["key"] = self._keys(numbers)
            end = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
            found = generate_until(
                self.model,
                [self.tok_encode(context) for context, _ in asked],
                self.tokenizer,
                until=[*stops, *([end] if end and end not in stops else [])],
                max_gen_toks=most,
                eos_token_id=self.vocabulary.ends,
                **draw,
                **self._how,
            )
            for number, args, answer in zip(numbers, asked, found, strict=True):
                answers[number] = answer
                self.cache_hook.add_partial("generate_until", args, answer)
        return answers

    def _keys(self, numbers: list[int]) -> jax.Array:
        """A key for each request, of its number."""
        key = jax.random.key(self.seed)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(numbers))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; without the prompt it ends inside its last turn.

        So a task can open the answer that the model then goes on with.
        """
        text = self._chat().text(chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        place = text.rfind(last)
        if place < 0:
            raise ValueError(
                f"the chat template alters the last message {last!r:.40}, so that it "
                "cannot be gone on with"
            )
        return text[: place + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that is used; None where none is."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            chat = self._chat().use(chat_template)
            self.vocabulary = self.vocabulary._replace(chat=chat)
        return self._chat().template

    def _chat(self) -> Chat:
        if self.vocabulary.chat is None:
            raise ValueError(
                "the model has no chat template: give lm_eval_model a `Chat`, or leave "
                "apply_chat_template out"
            )
        return self.vocabulary.chat

    @property
    def tokenizer_name(self) -> str:
        """A name of tokenizer and template for lm-eval's cache of requests."""
        chat = self.vocabulary.chat
        words = self.tokenizer.to_str() + (chat.template if chat else "")
        return f"{NAME}-{hashlib.sha256(words.encode()).hexdigest()[:16]}"

    @property
    def digest(self) -> str:
        """Of all that an answer depends on but the request: weights and settings."""
        lengths = (self.max_length, self.max_gen_toks)
        settings = (self.tokenizer_name, *lengths, self.seed)
        rest = repr((*settings, self.vocabulary.ends, self.prefix_token_id))
        rest += repr(self.add_bos_token) + model_digest(self.model)
        return hashlib.sha256(rest.encode()).hexdigest()

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Takes the harness's cache, and puts the digest before its keys."""
        database = getattr(cache_hook, "dbdict", None)
        if database is not None:
            _own_keys(database, self.digest)
        self.cache_hook = cache_hook

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside results."""
        leaves = jax.tree.leaves(nnx.state(self.model, nnx.Param))
        return {
            "model_num_parameters": sum(int(leaf.size) for leaf in leaves),
            "model_dtype": str(leaves[0].dtype),
            "model_sha": self.digest,
        }


def vocabulary_of(
    source: Any, eos_token_id: int | Sequence[int] | None = None
) -> Vocabulary:
    """A tokenizer with its special tokens, from whatever holds them.

    Args:
      source: as `tokenizer` of `lm_eval_model`.
      eos_token_id: in the place of the source's own ends; one id or several.

    Returns:
      `Vocabulary`.

    Raises:
      TypeError: no tokenizer.
      ValueError: no end is known.
    """
    if isinstance(source, (str, Path)):
        found = _of_folder(source)
    elif isinstance(source, Chat):
        found = _of_chat(source)
    elif hasattr(source, "backend_tokenizer"):
        chat = load_chat(source) if source.chat_template else None
        own = source.eos_token_id
        found = Vocabulary(
            tokenizer=backend(source),
            chat=chat,
            ends=() if own is None else (own,),
            first=source.bos_token_id,
        )
    else:
        found = Vocabulary(tokenizer=backend(source), chat=None, ends=(), first=None)
    if eos_token_id is not None:
        several = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
        ends = [int(checks.whole("eos_token_id", i, least=0)) for i in several]
        found = found._replace(ends=tuple(ends))
    if not found.ends:
        raise ValueError("the tokenizer names no end of text; give eos_token_id=...")
    return found


def model_digest(model: Any) -> str:
    """A hash of a model's structure and of all its weights.

    Args:
      model: an nnx module.

    Returns:
      64 hexadecimal digits, other ones for other weights.

    Example:
      >>> from flax import nnx
      >>> one, two = (nnx.Linear(2, 2, rngs=nnx.Rngs(seed)) for seed in (0, 1))
      >>> model_digest(one) == model_digest(one), model_digest(one) == model_digest(two)
      (True, False)
    """
    hashed = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(nnx.state(model))
    for path, leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        values = np.asarray(leaf)
        name = f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}"
        hashed.update(name.encode())
        hashed.update(np.ascontiguousarray(values).tobytes())
    return hashed.hexdigest()


def _opened(
    model: Any, tokenizer: Any, pretrained: str | None, peft: str | None
) -> tuple[Any, Any]:
    """(model, where its tokenizer is)."""
    if pretrained is None:
        if model is None or tokenizer is None or peft is not None:
            raise TypeError(
                "expected a model and its tokenizer, or pretrained=FOLDER of both (and "
                "peft=FOLDER of an adapter for it)"
            )
        return model, tokenizer
    if model is not None:
        raise TypeError("expected a model or pretrained=FOLDER, got both")
    found = from_pretrained(pretrained)
    if peft is not None:
        found = load_pretrained(peft, found).model()
    return found, pretrained if tokenizer is None else tokenizer


def _of_folder(folder: str | Path) -> Vocabulary:
    """Of a model's files; those of a base model hold no chat template."""
    files = locate(folder)
    if files.weights.suffix == ".gguf" or _has_template(files.folder):
        return _of_chat(load_chat(folder))
    tokenizer = load_tokenizer(folder)
    fields = token_files.tokenizer_fields(files.folder)
    first = token_files.special_tokens(fields, files.folder).get("bos_token")
    return Vocabulary(
        tokenizer=tokenizer,
        chat=None,
        ends=end_tokens(folder),
        first=None if first is None else tokenizer.token_to_id(first),
    )


def _has_template(folder: Path) -> bool:
    """Whether a chat template lies in one of its places, see `token_files.templates`."""
    names = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    fields = token_files.tokenizer_fields(folder)
    there = any((folder / name).exists() for name in names)
    return there or bool(fields.get("chat_template"))


def _of_chat(chat: Chat) -> Vocabulary:
    """Of a chat; its end of text comes first."""
    tokenizer = backend(chat.tokenizer)
    first = chat.variables.get("bos_token")
    own = () if chat.eos_token_id is None else (chat.eos_token_id,)
    return Vocabulary(
        tokenizer=tokenizer,
        chat=chat,
        ends=tuple(dict.fromkeys((*own, *chat.eos_token_ids))),
        first=None if first is None else tokenizer.token_to_id(first),
    )


def _batch_size(value: int | str) -> int:
    """A number, which lm-eval's command gives as text."""
    if isinstance(value, str):
        if not value.isdecimal():
            raise ValueError(f"expected batch_size as a number, got {value!r}")
        value = int(value)
    return checks.whole("batch_size", value, least=1)


def _wanted(given: dict[str, Any], most: int) -> tuple[list[str], int, dict[str, Any]]:
    """(stop strings, tokens at most, how it samples) of a task's `generation_kwargs`."""
    named = [given[name] for name in MOST_TOKENS if given.get(name) is not None]
    until = given.get("until") or []
    until = [until] if isinstance(until, str) else until
    known = {"until", *MOST_TOKENS, *SAMPLING}
    other = {k: v for k, v in given.items() if k not in known and v is not None}
    if other:
        raise ValueError(
            f"this model answers greedily or by sampling; the task asks for {given}: "
            f"leave out {sorted(other)}"
        )
    stops = [stop for stop in until if stop]
    return stops, int(named[0] if named else most), _drawn(given)


def _drawn(given: dict[str, Any]) -> dict[str, Any]:
    """How a task samples; empty where it does not."""
    temperature = float(given.get("temperature") or 0)
    sampled = given.get("do_sample")
    if sampled is None:
        sampled = temperature > 0
    if not sampled:
        return {}
    if not temperature > 0:
        raise ValueError(
            f"do_sample needs a temperature above 0, the task asks for {given}: set "
            "gen_kwargs='do_sample=True,temperature=0.7'"
        )
    more = {name: given[name] for name in ("top_k", "top_p") if given.get(name)}
    return {"temperature": temperature, **more}


def _own_keys(database: Any, digest: str) -> None:
    """Puts a digest before every key of a `SqliteDict`, for reading and writing.

    The harness hashes requests alone: without it, answers of other weights would be
    found.
    """
    if not hasattr(database, "encode_key"):
        raise RuntimeError(
            "use_cache needs sqlitedict 2.1 or later, whose keys can be told apart by "
            f"weights; got {type(database).__name__}: leave use_cache out"
        )
    database.encode_key = functools.partial("{}:{}".format, digest)
    database.decode_key = functools.partial(_without, f"{digest}:")


def _without(prefix: str, key: str) -> str:
    return key.removeprefix(prefix)
