"""How a server combines low-rank adapters.

One file a rule, all on the same factor tree, ranks may differ by client.
"""

from fedjax_fm.algorithms.lora_rules.fed_sb import fed_sb
from fedjax_fm.algorithms.lora_rules.fedex_lora import fedex_lora
from fedjax_fm.algorithms.lora_rules.fedit import fedit
from fedjax_fm.algorithms.lora_rules.fedsa_lora import fedsa_delta, fedsa_lora
from fedjax_fm.algorithms.lora_rules.ffa_lora import ffa_lora
from fedjax_fm.algorithms.lora_rules.flexlora import flexlora
from fedjax_fm.algorithms.lora_rules.flora import flora
from fedjax_fm.algorithms.lora_rules.hetlora import hetlora
from fedjax_fm.algorithms.lora_rules.rolora import rolora

__all__ = [
    "fed_sb",
    "fedex_lora",
    "fedit",
    "fedsa_delta",
    "fedsa_lora",
    "ffa_lora",
    "flexlora",
    "flora",
    "hetlora",
    "rolora",
]
