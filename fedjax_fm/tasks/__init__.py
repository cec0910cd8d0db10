"""Tasks of the usual kinds.

Classification of examples, of tokens and by names, pairs of images and texts, language
modelling, regression, distillation.
"""

from fedjax_fm.tasks.attention import attention
from fedjax_fm.tasks.classification import classification, from_logits
from fedjax_fm.tasks.code_modeling import code_modeling
from fedjax_fm.tasks.contrastive import PairFeatures, pair_features, zero_shot
from fedjax_fm.tasks.distil_objectives import (
    cosine_distance,
    hard_targets,
    mean_square,
    mutual_information,
    soft_targets,
    unit_square,
)
from fedjax_fm.tasks.distillation import Outputs, distilled, with_distillation_token
from fedjax_fm.tasks.features import language_features
from fedjax_fm.tasks.language_modeling import language_modeling
from fedjax_fm.tasks.layer_maps import earth_mover, last, skip
from fedjax_fm.tasks.paired_distillation import paired_distillation
from fedjax_fm.tasks.regression import regression
from fedjax_fm.tasks.remat import remat
from fedjax_fm.tasks.rows import rows_over_model
from fedjax_fm.tasks.token_classification import token_classification

__all__ = [
    "Outputs",
    "PairFeatures",
    "attention",
    "classification",
    "code_modeling",
    "cosine_distance",
    "distilled",
    "earth_mover",
    "from_logits",
    "hard_targets",
    "language_features",
    "language_modeling",
    "last",
    "mean_square",
    "mutual_information",
    "pair_features",
    "paired_distillation",
    "regression",
    "remat",
    "rows_over_model",
    "skip",
    "soft_targets",
    "token_classification",
    "unit_square",
    "with_distillation_token",
    "zero_shot",
]
