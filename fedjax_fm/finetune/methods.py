"""Methods, channels, optimizers and samplers of the library, by their names."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from fedjax_fm import algorithms, channels, privacy, tasks
from fedjax_fm.algorithms import lora_rules, server_optimizers
from fedjax_fm.finetune.adapters import scalings_of
from fedjax_fm.finetune.data import Data
from fedjax_fm.finetune.expressions import build, names_in
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.population import samplers
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.types import Algorithm, Channel, Sampler

# Rules that take the tasks of this command and factors of `peft.lora`.
OF_FACTORS = (
    "fedask", "fedex_lora", "fedit", "fedrot_lora", "fedrpca", "fedsa_lora", "fedsvd",
    "ffa_lora", "flexlora", "flora", "fslora", "hetlora", "lora_a2", "lora_fair",
    "rolora", "slora",
)  # fmt: skip
METHODS: dict[str, Callable[..., Algorithm]] = {
    **{
        name: getattr(algorithms, name)
        for name in (
            "diloco",
            "fedadagrad",
            "fedadam",
            "fedavgm",
            "feddyn",
            "fednova",
            "fedprox",
            "fedprox_adaptive",
            "fedsgd",
            "fedyogi",
            "mime",
            "mimelite",
            "moon",
            "qfedavg",
            "scaffold",
            "streaming_diloco",
        )
    },
    "apfl": algorithms.apfl,
    "ditto": algorithms.ditto,
    "docofl": algorithms.docofl,
    "dp_fedavg": algorithms.dp_fedavg,
    "fedala": algorithms.fedala,
    "fedavg": algorithms.fedavg,
    "fedbabu": algorithms.fedbabu,
    "feddpa_f": algorithms.feddpa_f,
    "feddpa_t": algorithms.feddpa_t,
    "fedkseed": algorithms.fedkseed,
    "fedper": algorithms.fedper,
    "fedrep": algorithms.fedrep,
    "gradual_pruning": algorithms.gradual_pruning,
    "ifca": algorithms.ifca,
    "fedlin": algorithms.fedlin,
    "fedobd": algorithms.fedobd,
    "fedpaq": algorithms.fedpaq,
    "flasc": algorithms.flasc,
    "local_only": algorithms.local_only,
    "lottery_ticket": algorithms.lottery_ticket,
    "movement_pruning": algorithms.movement_pruning,
    "per_fedavg": algorithms.per_fedavg,
    "pfedme": algorithms.pfedme,
    "soft_movement_pruning": algorithms.soft_movement_pruning,
    **{name: getattr(lora_rules, name) for name in OF_FACTORS},
}
# These need more than one model, its data and a split into clients.
ELSEWHERE = {
    "cdp_sgd": "takes a channel of its own and noise at the client",
    "diana": "takes a channel of its own",
    "ef21": "takes a channel of its own",
    "fed_sb": "needs gradients of the first model (peft.lora_sb)",
    "fedbert": "splits a model between clients and server",
    "fedbuff": "needs a log of arrivals",
    "feddf": "distils several architectures on public data",
    "fada": "adapts networks of its own to a client without labels",
    "fada_networks": "makes networks, and is no method",
    "fedclip": "takes pairs of images and texts",
    "fedlease": "clusters clients by adapters that each has trained alone",
    "fedlease_warm_up": "sends adapters that each client has trained alone",
    "fedmd": "distils several architectures on public data",
    "fedmkt": "needs a large model and public texts",
    "fedobd_second_stage": "goes on from the model of the first",
    "fedpm": "trains masks of a random network",
    "fjord": "trains nested widths of one model",
    "frlora": "takes singular values out of the kernels (lora_rules.principal_start)",
    "heterofl": "trains nested widths of one model",
    "fedtiny": "takes masks that its first stage found",
    "fedtiny_selection": "chooses masks by the statistics of a model",
    "lotteryfl": "gives each client a mask, and no adapter that the command saves",
    "prunefl": "needs a model of the time of a round",
    "prunefl_first_stage": "makes the first masks, and is no method",
    "power_of_choice": "stands in front of another method",
    "ravan": "trains the heads of peft.ravan, not LoRA's factors",
    "soteriafl": "takes a channel of its own and noise at the client",
}
OF_LORA = frozenset(("feddpa_f", "feddpa_t", *OF_FACTORS))
CHANNELS: dict[str, Callable[..., Channel]] = {
    name: getattr(channels, name)
    for name in channels.__all__
    if name[0].islower()
    and name not in ("anchored_bits", "code_lengths", "payload_bits", "per_leaf")
    and name not in ("bit_widths", "noise_energies", "noise_that_costs", "rounded")
}
OF_OPTIMIZERS = ("optimizer", "schedule", "clip_norm")  # settings
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    name: getattr(optax, name)
    for name in (
        "adafactor", "adagrad", "adam", "adamax", "adamw", "lamb", "lion", "nadam",
        "nadamw", "novograd", "radam", "rmsprop", "sgd", "yogi",
    )
}  # fmt: skip
SERVER_OPTIMIZERS = OPTIMIZERS | {
    "fedadagrad": server_optimizers.adagrad,
    "fedadam": server_optimizers.adam,
    "fedyogi": server_optimizers.yogi,
}
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    name: getattr(samplers, name)
    for name in ("cyclic", "fixed", "poisson", "spaced", "uniform")
}


def optimizer_of(settings: Settings, learning_rate: Any) -> Any:
    """The optimizer that the settings name, behind their clipping.

    Args:
      settings: have optimizer and clipping.
      learning_rate: a number or a schedule.

    Returns:
      A transformation of optax.

    Raises:
      UsageError: an unknown name, or a learning rate in the optimizer's text.
    """
    if "learning_rate" in settings.optimizer:
        raise UsageError("the optimizer's rate is that of --learning-rate")
    # By name, so that no number of the text is taken for the rate.
    of_rate = {
        name: functools.partial(factory, learning_rate=learning_rate)
        for name, factory in OPTIMIZERS.items()
    }
    chosen = build(settings.optimizer, of_rate, "optimizer")
    if settings.clip_norm is None:
        return chosen
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), chosen)


def client_optimizer(
    settings: Settings, learning_rate: float, rounds: int
) -> Callable[[Any], optax.GradientTransformation]:
    """The clients' optimizer as a function of the round.

    Args:
      settings: have optimizer, schedule and clipping.
      learning_rate: of the first round; a cosine falls to a tenth of it.
      rounds: over which it falls.

    Returns:
      round -> optimizer.
    """
    if settings.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, rounds, alpha=0.1)
    else:
        schedule = optax.constant_schedule(learning_rate)

    def of_round(round: Any) -> optax.GradientTransformation:
        return optimizer_of(settings, jnp.asarray(schedule(round)))

    of_round(0)  # refuses an unknown name now
    return of_round


def algorithm_of(settings: Settings, data: Data, learning_rate: float) -> Algorithm:
    """The federated method that the settings name.

    Args:
      settings: have its name and what it takes.
      data: have the adapted model, its tasks and the clients.
      learning_rate: of the clients.

    Returns:
      The algorithm.

    Raises:
      UsageError: an unknown method; one that takes more than this command has; settings
        that it does not take.
    """
    (name, *_) = names_in(settings.method)
    if name in ELSEWHERE:
        raise UsageError(
            f"{name} {ELSEWHERE[name]}, which this command does not have: write it in "
            "Python, as docs/methods.md shows"
        )
    check_options(settings, name)
    rounds, n_clients = settings.rounds, len(data.train)
    steps = settings.steps.items()
    given: dict[str, Any] = {
        "task": data.task,
        "personal_task": data.personal_task,
        "client_optimizer": client_optimizer(settings, learning_rate, rounds),
        "learning_rate": learning_rate,
        "rounds": rounds - 1 if name == "feddpa_f" else rounds,
        "batch_size": settings.batch_size,
        "tail_penalty": 5e-3,
        "mix_rate": learning_rate,
        **settings.steps,
        **{f"private_{name.removeprefix('local_')}": n for name, n in steps},
    }
    scalings = scalings_of(data.adapted)
    if len(scalings) == 1:
        given["scaling"] = scalings.pop()
    if name == "moon":
        given["features"] = _features(data)
    if name == "dp_fedavg":
        given |= _private(settings, rounds, n_clients)
    if settings.server_optimizer is not None:
        given["server_optimizer"] = build(
            settings.server_optimizer, SERVER_OPTIMIZERS, "server optimizer"
        )
    return build(settings.method, METHODS, "method", given=given)


def _features(data: Data) -> Callable[..., Any]:
    """What moon compares between models."""
    if data.prepared.subject.kind in ("classes", "pairs"):
        raise UsageError(
            "moon compares the hidden states of language models here; of classifiers and "
            "of preference pairs, write it in Python with features=... of your own"
        )
    return tasks.language_features(data.adapted)


def has_two_adapters(settings: Settings) -> bool:
    """Whether the method's models have a shared and a private adapter.

    Args:
      settings: have the method's name.
    """
    (name, *_) = names_in(settings.method)
    mixes_products = name == "apfl" and "lora" in names_in(settings.peft)
    return name in ("feddpa_f", "feddpa_t") or mixes_products


def check_options(settings: Settings, name: str) -> None:
    """Raises UsageError for settings that the method would ignore.

    Args:
      settings: of the run.
      name: of the method.
    """
    if name not in METHODS:
        return  # `build` says which is nearest
    takes = inspect.signature(METHODS[name]).parameters
    if settings.server_optimizer is not None and "server_optimizer" not in takes:
        raise UsageError(f"{name} takes no server optimizer")
    if settings.epochs is not None and "epochs" not in takes:
        raise UsageError(f"{name} counts local steps, not epochs; give --local-steps")
    if settings.epsilon is not None and name != "dp_fedavg":
        raise UsageError(
            f"--epsilon promises privacy, which {name} does not give; take --method "
            "dp_fedavg"
        )
    if settings.epsilon is not None and "noise_multiplier" in settings.method:
        raise UsageError(
            "--epsilon says how much noise there is; leave out noise_multiplier"
        )
    ignored = [] if "client_optimizer" in takes else OF_OPTIMIZERS
    if name != "dp_fedavg":
        ignored = [*ignored, "dp_clip"]
    if settings.epsilon is None:
        ignored = [*ignored, "dp_delta"]
    for option in ignored:
        if getattr(settings, option) != getattr(Settings, option):
            flag = option.replace("_", "-")
            raise UsageError(f"--{flag}: {name} would not read it here; leave it out")
    if name in OF_LORA and "lora" not in names_in(settings.peft):
        raise UsageError(f"{name} combines LoRA factors; give --peft lora")


def _private(settings: Settings, rounds: int, n_clients: int) -> dict[str, Any]:
    """Noise and clipping of dp_fedavg for the epsilon that is asked for."""
    if settings.epsilon is None:
        if "noise_multiplier" in settings.method:
            return {"noise": privacy.independent(), "clip_norm": settings.dp_clip}
        raise UsageError(
            "dp_fedavg needs --epsilon, or a noise_multiplier of your own: "
            "--method dp_fedavg:noise_multiplier=1.0"
        )
    noise = privacy.independent()
    sampler = sampler_of(settings, n_clients)
    delta = settings.dp_delta or n_clients**-1.1
    multiplier = privacy.multiplier_for(settings.epsilon, sampler, noise, rounds, delta)
    return {
        "noise": noise,
        "noise_multiplier": multiplier,
        "clip_norm": settings.dp_clip,
    }


def sampler_of(settings: Settings, n_clients: int) -> Sampler:
    """Who takes part in a round.

    Args:
      settings: have the sampler's name and the cohort.
      n_clients: that train.

    Returns:
      The sampler. The rate of `poisson` is the cohort's share.
    """
    cohort = min(settings.cohort, n_clients)
    # These are known here: what a text gives is what comes after them.
    known = {
        name: functools.partial(SAMPLERS[name], n_clients, cohort)
        for name in ("cyclic", "spaced", "uniform")
    }
    known["poisson"] = functools.partial(SAMPLERS["poisson"], n_clients)
    given = {"rate": cohort / n_clients}
    return build(settings.sampler, SAMPLERS | known, "sampler", given=given)


def channel_of(text: str | None) -> Channel | None:
    """A channel, or a chain of several; None sends arrays as they are.

    Args:
      text: such as "top_k:0.1|quantize:4".

    Returns:
      The channel.

    Example:
      >>> channel_of("top_k:0.1|quantize:4") is not None
      True
    """
    if text is None:
        return None
    return build(text, CHANNELS, "channel", chain=channels.chain)
