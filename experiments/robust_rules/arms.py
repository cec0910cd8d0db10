"""The arms: a rule, without liars and under each attack."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import robust, study
from fedjax_fm.engine.faults import RoundError
from fedjax_fm.experiments.shared.digits import Arrays
from fedjax_fm.experiments.shared.perceptron import SMALL, TASK, first_weights
from fedjax_fm.robust import attacks

CLASSES = 10


class Setting(NamedTuple):
    """What a rule is made with."""

    liars: int  # how many of the cohort
    clients: int
    bound: float | None  # in the unit of uploads
    step: float | None
    root: Arrays  # the server's images


class RuleOf(NamedTuple):
    """A rule of the study."""

    label: str
    make: Callable[[Setting], robust.Rule]
    chooses: str = "rate"  # what is tuned


def _trimmed(given: Setting) -> robust.Rule:
    return robust.trimmed_mean(given.liars / given.clients)


def _krum(given: Setting) -> robust.Rule:
    return robust.krum(given.liars)


def _multi_krum(given: Setting) -> robust.Rule:
    return robust.multi_krum(given.liars)


def _bulyan(given: Setting) -> robust.Rule:
    return robust.bulyan(given.liars)


def _fltrust(given: Setting) -> robust.Rule:
    return robust.fltrust(given.root)


def _clipping(given: Setting) -> robust.Rule:
    assert given.bound is not None
    return robust.centred_clipping(given.bound, iterations=3)


def _norm_bound(given: Setting) -> robust.Rule:
    assert given.bound is not None
    return robust.norm_bound(given.bound)


def _signs(given: Setting) -> robust.Rule:
    assert given.step is not None
    return robust.sign_majority(given.step)


def _without(make: Callable[[], robust.Rule]) -> Callable[[Setting], robust.Rule]:
    """Of a rule that needs to know nothing."""

    def rule(given: Setting) -> robust.Rule:
        return make()

    return rule


RULES: Mapping[str, RuleOf] = {
    "mean": RuleOf("mean", _without(robust.mean)),
    "median": RuleOf("coordinate median", _without(robust.coordinate_median)),
    "trimmed": RuleOf("trimmed mean", _trimmed),
    "krum": RuleOf("Krum", _krum),
    "multi_krum": RuleOf("Multi-Krum", _multi_krum),
    "bulyan": RuleOf("Bulyan", _bulyan),
    "geometric": RuleOf("geometric median", _without(robust.geometric_median)),
    "clipping": RuleOf("centred clipping", _clipping, "bound"),
    "norm_bound": RuleOf("norm bound", _norm_bound, "bound"),
    "fltrust": RuleOf("FLTrust", _fltrust),
    "signs": RuleOf("sign majority", _signs, "step"),
}
ATTACKS: Mapping[str, attacks.Attack] = {
    "sign_flip": attacks.sign_flip(),
    "noise": attacks.gaussian(1.0),
    "alie": attacks.alie(),
    "ipm": attacks.ipm(5.0),
    "min_max": attacks.min_max(),
}
FLIPPED = "flipped_labels"
CASES = ("no_liars", *ATTACKS, FLIPPED)


def ruled(name: str, shuffle: bool = False) -> Callable[[study.Run], dict[str, float]]:
    """An arm: FedAvg with a rule in the place of its mean.

    Args:
      name: of `RULES`.
      shuffle: permutes the labels among all clients.
    """

    def arm(run: study.Run) -> dict[str, float]:
        clients = run.data.clients
        if shuffle:
            arrays = study.shuffled_labels(clients.arrays, run.seed)
            clients = ffm.Population.from_arrays(arrays, clients.offsets)
        liars = attacks.liars_of(clients.n_clients, run.config.liars, seed=run.seed)
        method = _method(run, name, len(liars))
        found = {"no_liars": _accuracy(run, method, clients)}
        for attack, lie in ATTACKS.items():
            attacked = attacks.attacked(method, lie, liars)
            found[attack] = _accuracy(run, attacked, clients)
        flip = attacks.relabelled(np.arange(CLASSES)[::-1].astype(np.int32))
        flipped = attacks.poisoned(clients, liars, flip)
        found[FLIPPED] = _accuracy(run, method, flipped)
        lowest = min(found[case] for case in CASES[1:])
        return {"accuracy": lowest, **found}

    return arm


def untrained(run: study.Run) -> dict[str, float]:
    """An arm: the network as it begins."""
    scores = ffm.evaluate(TASK, _first(run), (), run.data.test)
    accuracy = float(np.mean(scores["accuracy"]))
    return {"accuracy": accuracy, **dict.fromkeys(CASES, accuracy)}


def _first(run: study.Run) -> Any:
    return first_weights(run.config.width, jax.random.key(run.seed))


def _method(run: study.Run, name: str, n_liars: int) -> Any:
    """FedAvg with the rule, at the settings that the run was given."""
    one, config = RULES[name], run.config
    chosen = run[one.chooses]
    setting = Setting(
        liars=n_liars,
        clients=run.data.clients.n_clients,
        bound=chosen if one.chooses == "bound" else None,
        step=chosen if one.chooses == "step" else None,
        root=run.data.public,
    )
    rate = chosen if one.chooses == "rate" else config.rate
    plain = ffm.fedavg(TASK, optax.sgd(rate), **study.walk(config))
    return robust.robust(plain, one.make(setting))


def _accuracy(run: study.Run, method: Any, clients: ffm.Population) -> float:
    """On the common test, after all rounds; every client takes part in each.

    A model that diverged is broken: it guesses.
    """
    how: dict[str, Any] = {"cohort_size": clients.n_clients, **SMALL}
    how |= {"task": TASK, "test": run.data.test}
    try:
        found = run.simulate(method, clients, _first(run), run.config.rounds, **how)
    except (RoundError, FloatingPointError):
        return 1 / CLASSES
    return found.scores["accuracy"]
