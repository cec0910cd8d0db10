"""GGUF files of llama.cpp.

They hold weights, configuration, tokenizer and chat template of a Llama-family model or
a Gemma 3.

TRAP: for the `llama` architecture the rows of q and k are stored permuted, for a rotary
embedding that turns neighbours instead of halves. Read as they stand they give
plausible but wrong text; `unpermute` puts them back. Those of the others are stored as
Hugging Face has them.

TRAP: files of Llama 3.1 and later do not say how their rotary frequencies are scaled;
the tensor `rope_freqs.weight` holds what each of them is divided by. Left out, the
model still reads short texts well.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from fedjax_fm.models.gemma3 import Gemma3Config, Gemma3ForCausalLM, alternating
from fedjax_fm.models.gguf_tokenizer import tokenizer_of
from fedjax_fm.models.llama import LlamaConfig, LlamaForCausalLM
from fedjax_fm.models.quantized import Q4Linear, split_blocks
from fedjax_fm.models.rotary import FrequencyFactors
from fedjax_fm.models.weights import WeightError

# Module (the last two words of its path, or one) -> the tensor's name in the file.
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{word}_proj": f"attn_{word}" for word in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{word}_norm": f"attn_{word}_norm" for word in "qk"},
    **{f"mlp.{word}_proj": f"ffn_{word}" for word in ("gate", "up", "down")},
}
OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
# Of Q4Linear, in the order of split_blocks.
_BLOCK_FIELDS = ("codes", "scales", "minima")
FACTORS = "rope_freqs.weight"
_IN_GEMMA3 = {
    **IN_LAYER,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


class Kind(NamedTuple):
    """How an architecture's files differ.

    Attributes:
      permuted: whether rows of q and k are.
      qk_norm: whether q and k are normalised.
      centred: whether our norms are the file's less one.
      in_layer: {module of a layer: the tensor's name}.
      model: the class.
    """

    permuted: bool = False
    qk_norm: bool = False
    centred: bool = False
    in_layer: Mapping[str, str] = IN_LAYER
    model: Callable[..., LlamaForCausalLM] = LlamaForCausalLM


# llama.cpp files Mistral's under "llama".
ARCHITECTURES = {
    "llama": Kind(permuted=True),
    "qwen2": Kind(),
    "qwen3": Kind(qk_norm=True),
    "gemma3": Kind(
        qk_norm=True, centred=True, in_layer=_IN_GEMMA3, model=Gemma3ForCausalLM
    ),
}
# What llama.cpp knows of Gemma 3 without being told: of the layers that see all there
# is one in six, and scores are scaled in another way in the model of this depth.
_PERIOD, _DEEPEST = 6, 62


def _q4_linear(n_in: int, n_out: int, bias: bool, rngs: nnx.Rngs) -> Q4Linear:
    """A linear layer in 4-bit blocks, which has no bias and draws nothing."""
    return Q4Linear(n_in, n_out)


class SpecialTokens(NamedTuple):
    """Ids that the file names; None where it does not.

    Attributes:
      bos: of the beginning of a text.
      eos: of its end.
      pad: of padding.
    """

    bos: int | None
    eos: int | None
    pad: int | None


def unpermute(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k from llama.cpp's order (neighbours) into Hugging Face's (halves).

    It is the inverse of `permute` in llama.cpp's convert_hf_to_gguf.py, head by head;
    whole rows move, so it works on packed blocks.

    Args:
      rows: [out, ...].
      n_heads: how many heads the rows belong to.

    Returns:
      [out, ...], a copy.

    Example:
      >>> unpermute(np.arange(4), n_heads=1).tolist()
      [0, 2, 1, 3]
    """
    pairs = rows.reshape(n_heads, rows.shape[0] // n_heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


class GGUFFile:
    """An opened GGUF file of architecture `llama`, `qwen2`, `qwen3` or `gemma3`.

    Arrays are read when asked for.

    Args:
      path: of the file.

    Raises:
      FileNotFoundError, ImportError, WeightError: no such file, no `gguf` library, or
        not a whole GGUF file of that architecture.

    Example:
      >>> from fedjax_fm import models
      >>> opened = models.GGUFFile("model.gguf")  # doctest: +SKIP
      >>> opened.config().num_hidden_layers  # doctest: +SKIP
      30
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not a file")
        try:
            import gguf
        except ImportError as error:
            raise ImportError(
                "reading a .gguf file needs the `gguf` library: pip install gguf"
            ) from error
        with open(self.path, "rb") as handle:
            if handle.read(4) != b"GGUF":
                raise WeightError(
                    f"{self.path} is not a GGUF file (its first four bytes are not "
                    "'GGUF')"
                )
        try:
            reader = gguf.GGUFReader(self.path)
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise WeightError(
                f"{self.path} ({self.path.stat().st_size} bytes) is truncated or "
                f"corrupt: {error}. Fetch it again."
            ) from error
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = self.field("general.architecture")
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(map(repr, ARCHITECTURES))
            raise WeightError(
                f"{self.path} holds architecture {self.architecture!r}; this version "
                f"reads {known}"
            )
        self.kind = ARCHITECTURES[self.architecture]

    @property
    def fields(self) -> dict[str, Any]:
        """The metadata as the `gguf` library has them, {name: field}."""
        return dict(self._fields)

    @property
    def tensor_names(self) -> list[str]:
        """Names of the tensors, in the order of the file."""
        return list(self._tensors)

    def field(self, name: str, default: Any = None) -> Any:
        """A metadata value: number, string, bool or list.

        Args:
          name: of the field, such as "general.architecture".
          default: what is returned where the file does not have it.
        """
        return self._fields[name].contents() if name in self._fields else default

    def _required(self, name: str) -> Any:
        """A metadata value that must be there."""
        value = self.field(name)
        if value is None:
            raise WeightError(
                f"{self.path} lacks the metadata field {name!r}; convert the "
                "model again with llama.cpp"
            )
        return value

    def _of_model(self, name: str, default: Any = None) -> Any:
        """A metadata value of the model, `name` without the architecture before it."""
        return self.field(f"{self.architecture}.{name}", default)

    def config(self) -> LlamaConfig | Gemma3Config:
        """The model's configuration.

        Raises:
          WeightError: a field is missing, or asks for what the decoder lacks (partial
            rotary, other scalings, experts).
        """
        sizes = self._sizes()
        try:
            if self.kind.model is Gemma3ForCausalLM:
                return Gemma3Config(**sizes, **self._of_gemma3(sizes))
            return LlamaConfig(
                **sizes,
                attention_output_bias=self._has_bias("attn_output"),
                mlp_bias=self._has_bias("ffn_up"),
                qk_norm=self.kind.qk_norm,
            )
        except (TypeError, ValueError) as error:
            raise WeightError(f"{self.path}: {error}") from error

    def _has_bias(self, name: str) -> bool:
        """Whether the matrices of that name have biases."""
        return f"blk.0.{name}.bias" in self._tensors

    def _sizes(self) -> dict[str, Any]:
        """The fields of a configuration that all architectures have."""

        def needed(name: str) -> Any:
            return self._required(f"{self.architecture}.{name}")

        heads, width = needed("attention.head_count"), needed("embedding_length")
        head_dim = self._of_model("attention.key_length", width // heads)
        self._expect(
            {
                "rope.dimension_count": head_dim,
                "attention.value_length": head_dim,
                "expert_count": 0,
            }
        )
        n_tokens = self._of_model("vocab_size")
        return {
            "vocab_size": n_tokens or len(self._required("tokenizer.ggml.tokens")),
            "hidden_size": width,
            "intermediate_size": needed("feed_forward_length"),
            "num_hidden_layers": needed("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._of_model("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": needed("context_length"),
            "rms_norm_eps": needed("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._of_model("rope.freq_base", 10000.0),
            "rope_scaling": self._frequency_factors(head_dim // 2),
            "attention_bias": self._has_bias("attn_q"),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "sliding_window": self._of_model("attention.sliding_window"),
        }

    def _of_gemma3(self, sizes: dict[str, Any]) -> dict[str, Any]:
        """The fields of a configuration that only a Gemma 3 has."""
        n_layers, divisor = sizes["num_hidden_layers"], sizes["head_dim"]
        if n_layers == _DEEPEST:
            divisor = sizes["hidden_size"] // sizes["num_attention_heads"]
        period = self._of_model("attention.sliding_window_pattern", _PERIOD)
        kinds = None if sizes["sliding_window"] else ("full_attention",) * n_layers
        return {
            "query_pre_attn_scalar": divisor,
            "rope_local_base_freq": self._of_model("rope.freq_base_swa", 10000.0),
            "final_logit_softcapping": self._of_model("final_logit_softcapping"),
            "layer_types": kinds or alternating(n_layers, period),
        }

    def _expect(self, wanted: dict[str, Any]) -> None:
        """WeightError unless the model's metadata have these values or lack them."""
        for name, expected in wanted.items():
            found = self._of_model(name, expected)
            if found != expected:
                raise WeightError(
                    f"{self.path}: expected {self.architecture}.{name} = "
                    f"{expected!r}, got {found!r}"
                )

    def _frequency_factors(self, n: int) -> FrequencyFactors | None:
        """The divisors of the n rotary frequencies; None: they stay as they are.

        They come from the metadata and from `rope_freqs.weight`.
        """
        # "linear" is llama.cpp's default; without a factor it scales nothing.
        kind = self._of_model("rope.scaling.type", "linear")
        if kind not in ("none", "linear"):
            name = f"{self.architecture}.rope.scaling.type"
            raise WeightError(
                f"{self.path}: expected {name} = 'none' or 'linear', got {kind!r}"
            )
        factor = 1.0
        if kind == "linear":
            older = self._of_model("rope.scale_linear", 0.0)
            factor = self._of_model("rope.scaling.factor", older) or 1.0
        if FACTORS not in self._tensors:
            return None if factor == 1.0 else FrequencyFactors((float(factor),))
        factors = factor * self.dequantized(FACTORS)
        if factors.shape != (n,):
            raise WeightError(
                f"{self.path}: {FACTORS}: expected shape ({n},), got {factors.shape}"
            )
        return FrequencyFactors(tuple(map(float, factors)))

    def dequantized(self, name: str) -> np.ndarray:
        """One tensor as numbers.

        Args:
          name: one of `tensor_names`.

        Returns:
          f32 or f16, with the shape that llama.cpp gives it.
        """
        import gguf

        tensor = self._tensors[name]
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type)

    def model(
        self, dtype: Any = jnp.float32, frozen: str = "dense"
    ) -> LlamaForCausalLM:
        """The model with its weights, of a Gemma 3 a `Gemma3ForCausalLM`.

        Args:
          dtype: of dense weights and of activations.
          frozen: "dense" dequantises everything; "q4_1" keeps the layers' matrices in
            their 4-bit blocks (embedding, norms and an untied head stay dense).

        Raises:
          ValueError: another `frozen`.
          WeightError: tensors missing, left over, of another shape, or of a
            quantisation that cannot be read.
        """
        if frozen not in ("dense", "q4_1"):
            raise ValueError(f"expected frozen 'dense' or 'q4_1', got {frozen!r}")
        config = self.config()
        self._check_types(frozen)
        if frozen == "q4_1" and (
            config.attention_bias or config.attention_output_bias or config.mlp_bias
        ):
            raise WeightError(
                f"{self.path}: frozen='q4_1' has no biases, which this model has; "
                "use frozen='dense'"
            )
        linear = None if frozen == "dense" else _q4_linear

        def make() -> LlamaForCausalLM:
            return self.kind.model(config, nnx.Rngs(0), dtype, linear)

        graphdef, state = nnx.split(nnx.eval_shape(make))
        flat, left = nnx.to_flat_state(state), set(self._tensors) - {FACTORS}
        filled, problems = [], []
        for path, variable in flat:
            words = tuple(map(str, path))
            array = self._parameter(words, config, left, problems)
            if array is not None and array.shape != variable.shape:
                problems.append(
                    f"{'.'.join(words)}: expected {variable.shape}, got {array.shape}"
                )
            if array is None or problems:
                filled.append(None)
            else:
                array = jnp.asarray(array, variable.dtype)
                filled.append(variable.replace(array))
        problems += [f"left over {name}" for name in sorted(left)]
        if problems:
            raise WeightError(
                f"{self.path} does not fit {self.kind.model.__name__}: "
                f"{'; '.join(problems[:8])}"
            )
        paths = [path for path, _ in flat]
        state = nnx.from_flat_state(zip(paths, filled, strict=True))
        return nnx.merge(graphdef, state)

    def _check_types(self, frozen: str) -> None:
        """WeightError where a tensor is quantised in a way that cannot be read."""
        import gguf

        by_type: dict[Any, list[str]] = {}
        for name, tensor in self._tensors.items():
            by_type.setdefault(tensor.tensor_type, []).append(name)
        for kind, names in by_type.items():
            _, n_bytes = gguf.GGML_QUANT_SIZES[kind]
            # F16 and F32 arrive as numbers. Whether the library reads the rest is found
            # out with one block of zeros.
            try:
                if kind.name not in ("F16", "F32"):
                    gguf.quants.dequantize(np.zeros((1, n_bytes), np.uint8), kind)
            except NotImplementedError as error:
                raise WeightError(
                    f"{self.path}: {names[0]} ({len(names)} tensors) is quantised "
                    f"as {kind.name}, which the gguf library cannot dequantise; "
                    "take a file with F32, F16, BF16, Q8_0, Q4_0, Q4_1 or a "
                    "K-quant"
                ) from error
        matrices = tuple(
            f".{word}.weight"
            for word in self.kind.in_layer.values()
            if not word.endswith("norm")
        )
        others = [
            name
            for kind, names in by_type.items()
            if kind.name != "Q4_1"
            for name in names
            if name.endswith(matrices)
        ]
        if frozen == "q4_1" and others:
            kind = self._tensors[others[0]].tensor_type.name
            raise WeightError(
                f"{self.path}: frozen='q4_1' keeps Q4_1 blocks, but {others[0]} is "
                f"{kind} "
                f"({len(others)} such tensors); use frozen='dense'"
            )

    def _parameter(
        self,
        path: tuple,
        config: LlamaConfig | Gemma3Config,
        left: set,
        problems: list,
    ) -> np.ndarray | None:
        """The array of one parameter, layers stacked.

        Notes what is missing and strikes what is used.
        """
        module, word = ".".join(path[:-1]), path[-1]
        layers = module.startswith("model.layers.")
        kind = "bias" if word == "bias" else "weight"
        if layers:
            name = self.kind.in_layer[module.removeprefix("model.layers.")]
            numbers = range(config.num_hidden_layers)
            blocks = [f"blk.{i}.{name}.{kind}" for i in numbers]
        else:
            name = OUTSIDE[module]
            blocks = [f"{name}.{kind}"]
        missing = [block for block in blocks if block not in self._tensors]
        if missing:
            problems.append(f"missing {missing[0]}")
            return None
        left.difference_update(blocks)
        heads = None
        if self.kind.permuted:
            permuted = {
                "attn_q": config.num_attention_heads,
                "attn_k": config.num_key_value_heads,
            }
            heads = permuted.get(name)
        arrays = [self._array(block, word, heads) for block in blocks]
        return np.stack(arrays) if layers else arrays[0]

    def _array(self, name: str, word: str, heads: int | None) -> np.ndarray:
        """One layer's array: numbers, or a field of the packed blocks."""
        packed = word in _BLOCK_FIELDS
        rows = self._tensors[name].data if packed else self.dequantized(name)
        if heads is not None:
            rows = unpermute(rows, heads)
        if packed:
            return split_blocks(rows)[_BLOCK_FIELDS.index(word)]
        if word == "scale" and self.kind.centred:
            return rows - 1
        return rows.T if word == "kernel" else rows

    def special_tokens(self) -> SpecialTokens:
        """Ids of the beginning, the end and the padding."""
        bos, eos, pad = (
            self.field(f"tokenizer.ggml.{word}_token_id")
            for word in ("bos", "eos", "padding")
        )
        return SpecialTokens(bos=bos, eos=eos, pad=pad)

    def chat_template(self) -> str:
        """The Jinja template of a conversation.

        Raises:
          WeightError: the file has none (a base model).
        """
        template = self.field("tokenizer.chat_template")
        if not template:
            raise WeightError(
                f"{self.path} has no chat template; it is a base model, or give a "
                "template yourself"
            )
        return template

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the metadata describe, see `gguf_tokenizer`.

        Raises:
          WeightError: another kind of tokenizer.
        """
        try:
            return tokenizer_of(self.field)
        except ValueError as error:
            raise WeightError(f"{self.path}: {error}") from error
