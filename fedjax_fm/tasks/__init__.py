"""Tasks of the usual kinds.

Classification of examples and of tokens, language modelling, regression.
"""

from fedjax_fm.tasks.classification import classification, from_logits
from fedjax_fm.tasks.features import language_features
from fedjax_fm.tasks.language_modeling import language_modeling
from fedjax_fm.tasks.regression import regression
from fedjax_fm.tasks.remat import remat
from fedjax_fm.tasks.token_classification import token_classification

__all__ = [
    "classification",
    "from_logits",
    "language_features",
    "language_modeling",
    "regression",
    "remat",
    "token_classification",
]
