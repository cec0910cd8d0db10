"""How a server combines low-rank adapters.

One file a rule. `rule.py` has the frame on which they stand, `training.py` the local
training, `factors.py` the factors themselves; `cohort.py` keeps the factors of a whole
cohort, `residual.py` what is added to the frozen layers. Ranks may differ by client.

    rule         trained and sent   the server
    FedIT        A and B            averages both
    FFA-LoRA     B, A is fixed      averages B
    FedSVD       B, A is fixed      averages B, rotates both by SVD
    FedSA-LoRA   A, B is personal   averages A
    RoLoRA       B and A in turn    averages it
    LoRA-A2      chosen rows of one averages them, row by row
    HetLoRA      A and B, pruned    averages by the norm of the product
    FlexLoRA     A and B            averages the product, cuts it by SVD
    FedASK       sketches of B A    averages them, cuts the mean by SVD
    FedEx-LoRA   A and B            averages both, adds the residual to the kernel
    FedRot-LoRA  A and B, turned    averages both
    FedLEASE     an expert, A and B averages both in every cluster of clients
    FedRPCA      A and B            averages what is common, adds more of what is not
    LoRA-FAIR    A and B            averages both, moves B towards the mean product
    FLoRA        A and B            stacks both, adds the product to the kernel
    FRLoRA       A and B            averages both, adds what they gained to the kernel
    FSLoRA       random rows        steps along the mean of both
    RAVAN        H between them     averages H, head by head
    SLoRA        entries of W first averages them, then both from their SVD
    Fed-SB       R between them     averages R
"""

from fedjax_fm.algorithms.lora_rules.adapter_clusters import (
    AdapterClusters,
    cluster_adapters,
)
from fedjax_fm.algorithms.lora_rules.experts import expert_start
from fedjax_fm.algorithms.lora_rules.fed_sb import fed_sb
from fedjax_fm.algorithms.lora_rules.fedask import fedask
from fedjax_fm.algorithms.lora_rules.fedex_lora import fedex_lora
from fedjax_fm.algorithms.lora_rules.fedit import fedit
from fedjax_fm.algorithms.lora_rules.fedlease import fedlease
from fedjax_fm.algorithms.lora_rules.fedlease_warm_up import fedlease_warm_up
from fedjax_fm.algorithms.lora_rules.fedrot_lora import fedrot_lora
from fedjax_fm.algorithms.lora_rules.fedrpca import fedrpca
from fedjax_fm.algorithms.lora_rules.fedsa_lora import fedsa_delta, fedsa_lora
from fedjax_fm.algorithms.lora_rules.fedsvd import fedsvd
from fedjax_fm.algorithms.lora_rules.ffa_lora import ffa_lora
from fedjax_fm.algorithms.lora_rules.flexlora import flexlora
from fedjax_fm.algorithms.lora_rules.flora import flora
from fedjax_fm.algorithms.lora_rules.frlora import frlora, principal_start
from fedjax_fm.algorithms.lora_rules.fslora import fslora
from fedjax_fm.algorithms.lora_rules.hetlora import hetlora
from fedjax_fm.algorithms.lora_rules.lora_a2 import lora_a2
from fedjax_fm.algorithms.lora_rules.lora_fair import lora_fair
from fedjax_fm.algorithms.lora_rules.ravan import ravan
from fedjax_fm.algorithms.lora_rules.rolora import rolora
from fedjax_fm.algorithms.lora_rules.slora import slora

__all__ = [
    "AdapterClusters",
    "cluster_adapters",
    "expert_start",
    "fed_sb",
    "fedask",
    "fedex_lora",
    "fedit",
    "fedlease",
    "fedlease_warm_up",
    "fedrot_lora",
    "fedrpca",
    "fedsa_delta",
    "fedsa_lora",
    "fedsvd",
    "ffa_lora",
    "flexlora",
    "flora",
    "frlora",
    "fslora",
    "hetlora",
    "lora_a2",
    "lora_fair",
    "principal_start",
    "ravan",
    "rolora",
    "slora",
]
