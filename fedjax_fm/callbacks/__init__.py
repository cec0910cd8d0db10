"""What happens between rounds: evaluation, progress, checkpoints, an early end.

    state, metrics = simulator.run(state, 60, every=5, callbacks=[
        callbacks.progress(),
        callbacks.evaluate(task, test),
        callbacks.early_stopping("eval_loss", patience=3),
        callbacks.checkpoint("run"),
    ])

A callback is a function of (round, state, metrics so far) that is called every `every`
rounds and after the last one. It may return {name: number}, which become columns of the
metrics, and it may raise `Stop` to end the run. One that has to be called at other
moments, too, derives from `Callback`.
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
