"""Parameter-efficient fine-tuning of any flax.nnx model."""

from fedjax_fm.peft.adapted import Adapted
from fedjax_fm.peft.adapter import houlsby, parallel_adapter
from fedjax_fm.peft.attention_adapter import attention_adapter
from fedjax_fm.peft.bitfit import bitfit
from fedjax_fm.peft.dora import dora
from fedjax_fm.peft.dual_lora import Beside, beside, instance_mix, two_adapters
from fedjax_fm.peft.export import save_merged
from fedjax_fm.peft.folder import load_pretrained, save_pretrained
from fedjax_fm.peft.ia3 import ia3
from fedjax_fm.peft.layers import on_layers
from fedjax_fm.peft.lora import LoRALinear, lora
from fedjax_fm.peft.lora_experts import lora_experts
from fedjax_fm.peft.lora_sb import first_gradients, first_updates, lora_sb, lora_xs
from fedjax_fm.peft.merge import merge, unmerge
from fedjax_fm.peft.method import Method, apply, by_path, combine, full, head
from fedjax_fm.peft.offsite import (
    Emulated,
    PluggedIn,
    emulated,
    plug_in,
    plugged,
    tuned_ends,
)
from fedjax_fm.peft.p_tuning import p_tuning
from fedjax_fm.peft.peft_method import AdapterError, lora_from_config
from fedjax_fm.peft.prefix import collapse, p_tuning_v2, prefix_tuning
from fedjax_fm.peft.prompt import prompt_tuning
from fedjax_fm.peft.ravan import ravan
from fedjax_fm.peft.state_dict import state_dict, with_state_dict
from fedjax_fm.peft.tying import untie
from fedjax_fm.peft.vpt import vpt

__all__ = [
    "Adapted",
    "AdapterError",
    "Beside",
    "Emulated",
    "LoRALinear",
    "Method",
    "PluggedIn",
    "apply",
    "attention_adapter",
    "beside",
    "bitfit",
    "by_path",
    "collapse",
    "combine",
    "dora",
    "emulated",
    "first_gradients",
    "first_updates",
    "full",
    "head",
    "houlsby",
    "ia3",
    "instance_mix",
    "load_pretrained",
    "lora",
    "lora_experts",
    "lora_from_config",
    "lora_sb",
    "lora_xs",
    "merge",
    "on_layers",
    "p_tuning",
    "p_tuning_v2",
    "parallel_adapter",
    "plug_in",
    "plugged",
    "prefix_tuning",
    "prompt_tuning",
    "ravan",
    "save_merged",
    "save_pretrained",
    "state_dict",
    "tuned_ends",
    "two_adapters",
    "unmerge",
    "untie",
    "vpt",
    "with_state_dict",
]
