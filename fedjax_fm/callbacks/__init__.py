"""What happens between rounds: looks, progress, checkpoints, an early end.

    state, metrics = simulator.run(state, 60, every=5, callbacks=[
        callbacks.progress(),
        callbacks.evaluate(task, test),
        callbacks.early_stopping("eval_loss", patience=3),
        callbacks.checkpoint("run"),
    ])

A callback is a function of (round, state, metrics so far). What it returns, {name:
number}, are columns of the metrics. It is called every `every` rounds and after the
last one. One that needs more derives from `Callback`; one that wants the run to end
raises `Stop`.
"""

from fedjax_fm.callbacks.base import Callback, CallbackError, Stop
from fedjax_fm.callbacks.checkpoints import checkpoint
from fedjax_fm.callbacks.looks import evaluate, evaluate_clients
from fedjax_fm.callbacks.progress import progress
from fedjax_fm.callbacks.stopping import early_stopping
from fedjax_fm.callbacks.trackers import track

__all__ = [
    "Callback",
    "CallbackError",
    "Stop",
    "checkpoint",
    "early_stopping",
    "evaluate",
    "evaluate_clients",
    "progress",
    "track",
]
