"""Methods that make a model smaller while it is trained, one file each."""

from fedjax_fm.algorithms.pruning.fedtiny import fedtiny
from fedjax_fm.algorithms.pruning.fedtiny_selection import fedtiny_selection
from fedjax_fm.algorithms.pruning.gradual import gradual_pruning
from fedjax_fm.algorithms.pruning.lottery_ticket import lottery_ticket
from fedjax_fm.algorithms.pruning.lotteryfl import lotteryfl
from fedjax_fm.algorithms.pruning.movement import movement_pruning
from fedjax_fm.algorithms.pruning.prunefl import prunefl
from fedjax_fm.algorithms.pruning.prunefl_start import FirstStage, prunefl_first_stage
from fedjax_fm.algorithms.pruning.prunefl_step import RoundTime
from fedjax_fm.algorithms.pruning.soft_movement import soft_movement_pruning

__all__ = [
    "FirstStage",
    "RoundTime",
    "fedtiny",
    "fedtiny_selection",
    "gradual_pruning",
    "lottery_ticket",
    "lotteryfl",
    "movement_pruning",
    "prunefl",
    "prunefl_first_stage",
    "soft_movement_pruning",
]
