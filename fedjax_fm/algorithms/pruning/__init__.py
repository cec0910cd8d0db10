"""Methods that make a model smaller while it is trained, one file each."""

from fedjax_fm.algorithms.pruning.gradual import gradual_pruning
from fedjax_fm.algorithms.pruning.lottery_ticket import lottery_ticket
from fedjax_fm.algorithms.pruning.movement import movement_pruning
from fedjax_fm.algorithms.pruning.soft_movement import soft_movement_pruning

__all__ = [
    "gradual_pruning",
    "lottery_ticket",
    "movement_pruning",
    "soft_movement_pruning",
]
