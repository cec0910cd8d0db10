"""No hyper-parameter of a factory is NaN, a text, a bool for a number or a number for a
bool: factories x bad values.
"""

import functools
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_vocabularies
from bad_values import Row, cases, is_refused, unlisted
from flax import nnx
from mlp_problem import make_clients, make_trees, mlp_loss
from split_problem import split
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as words
from two_architectures import CLASSES, GROUPS, architectures, make_public
from width_models import mlp

import fedjax_fm as ffm
from fedjax_fm import directions, evaluation, models, systems
from fedjax_fm.algorithms import distillation, lora_rules, nested, server_optimizers
from fedjax_fm.algorithms.by_width import widths_of
from fedjax_fm.algorithms.fedbuff import polynomial_staleness
from fedjax_fm.algorithms.feddf import Validation, feddf
from fedjax_fm.algorithms.fedkseed import replay as fedkseed_replay
from fedjax_fm.algorithms.fedpm import signed_constants as fedpm_constants
from fedjax_fm.algorithms.fedpm import threshold_masks as fedpm_masks
from fedjax_fm.algorithms.fjord import Distillation, fjord
from fedjax_fm.evaluation import intervals
from fedjax_fm.population import samplers

TASK, SGD = ffm.Task(mlp_loss), optax.sgd(0.1)


def column_as_loss(delta, backbone, batch, key):
    return batch["x"], {}


SCORED = {
    "task": ffm.Task(column_as_loss), "delta": (), "backbone": (),
    "arrays": {"x": np.ones(2, np.float32), "attention_mask": np.ones((2, 3), np.int32)},
}  # fmt: skip
OWN_SCORES = {
    "task": ffm.Task(column_as_loss), "models": lambda client: ((), ()), "score": "loss", "least_rows": 1,
    "test": ffm.Population.from_clients([{"x": np.ones(2, np.float32), "attention_mask": np.ones((2, 3), np.int32)}]),
}  # fmt: skip
WALK = {"local_steps": 2, "batch_size": 4}
RULE = {"task": TASK, "client_optimizer": SGD, **WALK}
MODEL = mlp()
NARROW = {
    "task": ffm.Task(MODEL.loss),
    "client_optimizer": SGD,
    "prefixes": MODEL.prefixes,
    **WALK,
}
SHARED = {
    "architectures": architectures(),
    "groups": GROUPS,
    "public": make_public(),
    **WALK,
}
OWN = RULE | {"personal": "head"}
OF_EPOCHS = {"task": TASK, "client_optimizer": SGD, "epochs": 1, "batch_size": 4}
OWN_EPOCHS = OF_EPOCHS | {"personal": "head"}
TUNED = RULE | {
    "model": make_trees(),
    "population": ffm.Population.from_clients(make_clients(sizes=(2, 1))),
}
PERSONAL = {"task": TASK, "personal_task": TASK, "client_optimizer": SGD, **WALK}
RATED = {"task": TASK, "learning_rate": 0.1, **WALK}
GRADIENT = RATED | {"channel": ffm.channels.natural()}
SECOND = {"task": TASK, "client_optimizer": SGD, "rounds_before": 3, "batch_size": 4}
SPARSER = {"final_sparsity": 0.5, "last": 3}
CUBIC = {
    "final_sparsity": "real", "initial_sparsity": "real", "first": "whole", "last": "whole", "every": "whole", "scope": "choice",
}  # fmt: skip
TIMED = {"time": ffm.algorithms.RoundTime(constant=1.0, entry=1.0)}
FIRST = {
    "task": TASK, "client_optimizer": SGD, "delta": make_trees()[0], "backbone": make_trees()[1], "every": 1, "most_rounds": 1,
    "examples": make_clients(sizes=(3,))[0], "batch_size": 4, **TIMED,
}  # fmt: skip
TINY = {"masks": {"w": np.ones((3, 4), bool)}}
MUTUAL = {
    "task": two_vocabularies.TASK,
    "client_optimizer": SGD,
    **two_vocabularies.HOW,
    **WALK,
}
SELECTED = {
    "task": TASK, "density": 0.5, "initial": (), "statistics": column_as_loss, "with_statistics": column_as_loss, "batch_size": 4,
}  # fmt: skip
TICKET = {"levels": 2, "rounds_per_level": 3}
PRIVATE = {
    "task": TASK, "learning_rate": 0.1, "channel": ffm.channels.natural(), "clip_norm": 1.0,
    "noise_multiplier": 1.0, "batch_size": 4,
}  # fmt: skip
SECONDS = np.ones(9)
LOG = systems.Schedule(
    ids=np.zeros((2, 2), np.int32),
    versions=np.zeros((2, 2), np.int32),
    started=np.zeros((2, 2)),
    arrived=np.ones((2, 2)),
)
PROFILE = systems.log_normal_profile(9, 0)


def fjord_taught(alpha=1.0, temperature=1.0, teacher_learns=True):
    teacher = Distillation(
        logits=lambda *rest: None,
        alpha=alpha,
        temperature=temperature,
        teacher_learns=teacher_learns,
    )
    return fjord(**NARROW, widths=(0.5, 1.0), caps=[1.0], distillation=teacher)


def feddf_validated(every=1, patience=2):
    return feddf(
        **SHARED,
        validation=Validation(
            examples=make_public(),
            labels=jnp.zeros(11, jnp.int32),
            every=every,
            patience=patience,
        ),
    )


def groups_of(n=2):
    return nested.nest({"w": jnp.zeros((4,))}, {"w": (nested.Groups(n),)})


def profile(period=3600.0):
    return PROFILE._replace(period=period).checked()


def clock(**how):
    return systems.asynchronous(PROFILE, SECONDS, **how)


def slowed(**times):
    return systems.Frequencies(**times).joules(1.0)


@functools.cache
def started():
    """A simulator that knows its shapes."""
    method = ffm.fedavg(TASK, SGD, **WALK)
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(make_clients())
    simulator = ffm.Simulator(method, population, backbone=backbone, cohort_size=2)
    simulator.init(delta)
    return simulator


def operations_of(n_examples=2):
    return systems.flop_of_client(started(), n_examples)


PHONE, HOME = systems.find("device", "phone"), systems.find("link", "home")
FRANCE, RENTED = systems.find("grid", "FRA"), systems.find("cloud", "gc-t4-spot")


def rounds_end(seed=0, rounds=2):
    return systems.synchronous_seconds(samplers.uniform(9, 3), seed, rounds, SECONDS)


def work_seconds(bytes_down=1, bytes_up=1):
    return systems.client_seconds(PROFILE, np.ones(9, int), bytes_down, bytes_up)


def signed_constants(gain=math.e):
    return fedpm_constants({"w": jnp.zeros((2, 3))}, jax.random.key(0), gain)


def threshold_masks(threshold=0.5):
    return fedpm_masks({"w": jnp.zeros(3)}, threshold)


def replay(learning_rate=0.1):
    master = jax.random.key_data(jax.random.key(0))
    return fedkseed_replay(jnp.zeros(3), master, jnp.zeros(4), learning_rate)


ONE_PAIR = {"lora_a": np.ones((2, 1)), "lora_b": np.ones((1, 2))}


def principal_start(scaling=1.0):
    pair = {"lora_a": jnp.zeros((2, 1)), "lora_b": jnp.zeros((1, 2))}
    backbone = {"layer": {"base": {"kernel": jnp.eye(2)}}}
    return lora_rules.principal_start({"layer": pair}, backbone, scaling=scaling)


def shifted_scores(omega_max=0.5, omega_weighs="private", batch_size=2):
    arrays = {"x": np.ones((2, 1), np.float32)}
    adapters = ffm.algorithms.feddpa.Adapters((), (), jnp.float32(0))
    return evaluation.shifted_scores(
        ffm.Task(lambda delta, backbone, batch, key: (batch["x"][:, 0], {})),
        lambda client: (adapters, ()),
        [arrays],
        {"a": arrays, "b": arrays},
        ["a"],
        features=lambda private, backbone, batch, key: batch["x"],
        score="loss",
        omega_max=omega_max,
        omega_weighs=omega_weighs,
        batch_size=batch_size,
    )


POISONED = {
    "arrays": {"input_ids": np.ones((1, 3), int), "attention_mask": np.ones((1, 3), int), "label": np.zeros(1, int)},
    "trigger": evaluation.Trigger(tokens=(2,), target=1),
}  # fmt: skip


def perturb(scale=0.1):
    return directions.perturb(jnp.zeros(3), jax.random.key(0), scale)


def round_time(constant=1.0, entry=1.0):
    return ffm.algorithms.RoundTime(constant, entry).checked()


def shift(scale=0.1):
    return directions.shift(jnp.zeros(3), jax.random.key(0), scale)


PAIRS = {
    "features": column_as_loss,
    "client_optimizer": SGD,
    "local_steps": 1,
    "batch_size": 2,
}
EXTRACTING = {
    "extract": column_as_loss, "extractor": jnp.eye(2), "key": jax.random.key(0), "features": 2, "classes": 2,
}  # fmt: skip
DOMAINS = {
    "networks": ffm.algorithms.fada_networks(**EXTRACTING)[0], "client_optimizer": SGD, "identifier_optimizer": SGD,
    "target": 0, "clusters": 2, "local_steps": 1, "batch_size": 2,
}  # fmt: skip


def own_networks(n_features=2):
    networks = DOMAINS["networks"]._replace(n_features=n_features)
    return ffm.algorithms.fada(**DOMAINS | {"networks": networks})


MOON = RULE | {"features": column_as_loss}
CHOICE = {
    "algorithm": ffm.fedavg(**RULE),
    "task": TASK,
    "cohort_size": 2,
    "batch_size": 4,
}
ADAPTIVE = {"b1": "real", "tau": "real", "initial": "real?", "learning_rate": "real"}
OF_SERVER = {
    "b1": "real",
    "tau": "real",
    "initial": "real?",
    "server_learning_rate": "real",
    "weighted": "flag",
}
LETTERS = Tokenizer(words.WordLevel({"[UNK]": 0, "a": 1, "b": 2, " ": 3}, "[UNK]"))
LETTERS.pre_tokenizer = pre_tokenizers.Split("", "isolated")
DECODER = models.GPT2LMHeadModel(
    models.GPT2Config(vocab_size=8, n_positions=16, n_embd=4, n_layer=1, n_head=1),
    nnx.Rngs(0),
)
READ = {"model": DECODER}
IN_BATCHES = {"batch_size": "whole", "max_length": "whole?"}
ASKED = READ | {
    "questions": [evaluation.Question(prompt="a", options=("a", "b"), answer=0)],
    "tokenizer": LETTERS,
}
ROWS = (
    Row(ffm.algorithms.fedkseed, {"task": TASK, "learning_rate": 0.1}, {
        "learning_rate": "real", "n_seeds": "whole", "epsilon": "real", "pro": "flag", "weighted": "flag",
        "lazy": "flag", "history_clip": "real or infinite", "weight_decay": "real",
    }),
    Row(ffm.algorithms.fedclip, PAIRS, {"weighted": "flag"}),
    Row(ffm.algorithms.fada, DOMAINS, {
        "target": "whole", "clusters": "whole", "cluster_steps": "whole", "temperature": "real", "alignment": "real",
        "confusion": "real", "separation": "real", "reconstruction": "real", "local_steps": "whole", "batch_size": "whole",
    }),
    Row(own_networks, {}, {"n_features": "whole"}),
    Row(ffm.algorithms.fada_networks, EXTRACTING, {"features": "whole", "classes": "whole", "width": "whole"}),
    Row(ffm.algorithms.fedpm, RULE, {"prior": "real", "reset_every": "whole?", "softening": "real"}),
    Row(ffm.algorithms.fedmd, SHARED | {"n_classes": CLASSES}, {
        "n_classes": "whole", "n_public": "whole?", "average": "choice", "digest_epochs": "whole",
        "digest_batch_size": "whole", "start_epochs": "whole",
    }),
    Row(ffm.algorithms.feddf, SHARED, {"server_steps": "whole", "server_batch_size": "whole", "average": "choice"}),
    Row(feddf_validated, {}, {"every": "whole", "patience": "whole"}),
    Row(ffm.algorithms.feddpa_t, PERSONAL, {"mix": "real"}),
    Row(ffm.algorithms.feddpa_f, PERSONAL | {"private_steps": 1, "rounds": 2}, {"mix": "real", "rounds": "whole"}),
    Row(ffm.algorithms.feddpa_f, PERSONAL | {"private_steps": 1, "rounds": 2}, {"private_steps": "whole?"}, "feddpa_f steps"),
    Row(ffm.algorithms.feddpa_f, PERSONAL | {"private_epochs": 1, "rounds": 2}, {"private_epochs": "whole?"}, "feddpa_f epochs"),
    Row(ffm.algorithms.fedrep, OWN, {"personal_steps": "whole?"}),
    Row(ffm.algorithms.fedrep, OWN_EPOCHS, {"personal_epochs": "whole?"}, "fedrep epochs"),
    Row(ffm.algorithms.fedbabu, OWN | {"personal_steps": 1}, {"personal_steps": "whole?"}),
    Row(ffm.algorithms.fedbabu, OWN_EPOCHS | {"personal_epochs": 1}, {"personal_epochs": "whole?"}, "fedbabu epochs"),
    Row(ffm.algorithms.ditto, RULE | {"penalty": 1.0}, {"penalty": "real", "personal_steps": "whole?"}),
    Row(ffm.algorithms.ditto, OF_EPOCHS | {"penalty": 1.0}, {"personal_epochs": "whole?"}, "ditto epochs"),
    Row(ffm.algorithms.pfedme, RULE | {"penalty": 1.0}, {"penalty": "real", "inner_steps": "whole"}),
    Row(ffm.algorithms.apfl, RULE | {"mix_rate": 0.1}, {"mix_rate": "real", "mix": "real"}),
    Row(ffm.algorithms.fedala, OWN, {
        "weight_rate": "real", "share": "real", "first_passes": "whole", "tolerance": "real",
    }),
    Row(ffm.algorithms.per_fedavg, RULE | {"inner_rate": 0.1}, {"inner_rate": "real", "keeps_own": "flag"}),
    Row(ffm.algorithms.ifca, RULE | {"clusters": 2}, {"clusters": "whole"}),
    Row(ffm.algorithms.fine_tune, TUNED, {"seed": "whole"}),
    Row(ffm.algorithms.fedpaq, RULE, {"weighted": "flag"}),
    Row(ffm.algorithms.diana, GRADIENT, {"learning_rate": "real", "momentum": "real", "shift_rate": "real?"}),
    Row(ffm.algorithms.ef21, GRADIENT, {"learning_rate": "real"}),
    Row(ffm.algorithms.fedlin, RATED, {"learning_rate": "real", "weighted": "flag", "divided": "flag"}),
    Row(ffm.algorithms.fedobd, RULE, {
        "dropped": "real", "quantizer_weight": "real", "score": "choice", "weighted": "flag",
    }),
    Row(ffm.algorithms.fedobd_second_stage, SECOND, {
        "rounds_before": "whole", "quantizer_weight": "real", "weighted": "flag", "batch_size": "whole",
    }),
    Row(ffm.algorithms.flasc, RULE, {"density_down": "real", "density_up": "real", "weighted": "flag"}),
    Row(ffm.algorithms.docofl, RULE, {"every": "whole", "weighted": "flag"}),
    Row(ffm.algorithms.soteriafl, PRIVATE, {
        "learning_rate": "real", "clip_norm": "real or infinite", "noise_multiplier": "real", "estimator": "choice",
        "shift_rate": "real?", "snapshot_rate": "real", "batch_size": "whole",
    }),
    Row(ffm.algorithms.soteriafl, PRIVATE | {"estimator": "saga", "table_rows": 3, "index": "i"}, {
        "table_rows": "whole",
    }, "soteriafl saga"),
    Row(ffm.algorithms.cdp_sgd, PRIVATE, {
        "learning_rate": "real", "clip_norm": "real or infinite", "noise_multiplier": "real", "batch_size": "whole",
    }),
    Row(ffm.algorithms.heterofl, NARROW | {"rates": [1.0]}, {"weighted": "flag"}),
    Row(fjord_taught, {}, {"alpha": "real", "temperature": "real", "teacher_learns": "flag"}),
    Row(groups_of, {}, {"n": "whole"}),
    Row(nested.kept, {"size": 4, "width": 0.5}, {"size": "whole", "width": "real"}),
    Row(polynomial_staleness, {}, {"exponent": "real"}),
    Row(signed_constants, {}, {"gain": "real"}),
    Row(threshold_masks, {}, {"threshold": "real"}),
    Row(replay, {}, {"learning_rate": "real"}),
    Row(lora_rules.hetlora, RULE | {"tail_penalty": 0.1}, {"gamma": "real", "tail_penalty": "real"}),
    Row(lora_rules.fedex_lora, RULE | {"scaling": 2.0}, {"scaling": "real", "most_clients": "whole?"}),
    Row(lora_rules.flora, RULE | {"scaling": 2.0}, {"scaling": "real", "most_clients": "whole?"}),
    Row(lora_rules.lora_fair, RULE, {
        "distance": "choice", "penalty": "real", "server_steps": "whole", "server_rate": "real",
    }),
    Row(lora_rules.fedsvd, RULE, {"period": "whole"}),
    Row(lora_rules.fedrot_lora, RULE, {"strength": "real"}),
    Row(lora_rules.frlora, RULE | {"scaling": 2.0}, {"scaling": "real"}),
    Row(principal_start, {}, {"scaling": "real"}),
    Row(lora_rules.fedrpca, RULE, {"beta": "real", "sparsity": "real?"}),
    Row(lora_rules.fslora, RULE, {"weighted": "flag"}),
    Row(lora_rules.fedask, RULE | {"sketch": 2}, {"sketch": "whole"}),
    Row(lora_rules.slora, RULE | {"scaling": 2.0, "sparse_rounds": 1}, {
        "scaling": "real", "sparse_rounds": "whole", "density": "real",
    }),
    Row(lora_rules.fedask, RULE | {"sketch": 2, "clip_norm": 1.0}, {"clip_norm": "real or infinite?", "noise_multiplier": "real"}, "private fedask"),
    Row(lora_rules.fedlease, RULE | {"labels": [0]}, {"weighted": "flag"}),
    Row(lora_rules.cluster_adapters, {"deltas": [ONE_PAIR] * 3, "most": 2}, {"most": "whole"}),
    Row(server_optimizers.adagrad, {"learning_rate": 0.1}, ADAPTIVE),
    Row(server_optimizers.adam, {"learning_rate": 0.1}, ADAPTIVE | {"b2": "real"}),
    Row(server_optimizers.yogi, {"learning_rate": 0.1}, ADAPTIVE | {"b2": "real"}),
    Row(ffm.algorithms.gradual_pruning, RULE | SPARSER, CUBIC | {"weighted": "flag"}),
    Row(ffm.algorithms.movement_pruning, RULE | SPARSER, CUBIC | {"weighted": "flag"}),
    Row(ffm.algorithms.soft_movement_pruning, RULE | {"penalty": 1.0}, {
        "penalty": "real", "threshold": "real", "weighted": "flag",
    }),
    Row(ffm.algorithms.fedtiny, RULE | TINY, {"every": "whole", "stop": "whole", "share": "real", "weighted": "flag"}),
    Row(ffm.algorithms.fedtiny_selection, SELECTED, {
        "density": "real", "candidates": "whole", "spread": "real", "batch_size": "whole",
    }),
    Row(ffm.algorithms.fedmkt, MUTUAL, {
        "top_k": "whole", "share": "real", "temperature": "real", "transfer_epochs": "whole", "transfer_batch_size": "whole",
    }),
    Row(ffm.algorithms.lotteryfl, RULE, {"rate": "real", "target_density": "real", "threshold": "real"}),
    Row(ffm.algorithms.prunefl, RULE | TIMED, {
        "every": "whole", "dropped": "real", "halved_every": "real", "weighted": "flag",
    }),
    Row(round_time, {}, {"constant": "real", "entry": "real"}),
    Row(ffm.algorithms.prunefl_first_stage, FIRST, {
        "threshold": "real", "look_every": "whole", "is_server": "flag", "every": "whole", "dropped": "real", "change": "real", "times": "whole", "most_rounds": "whole", "seed": "whole",
        "local_steps": "whole", "batch_size": "whole",
    }),
    Row(ffm.algorithms.lottery_ticket, RULE | TICKET, {
        "levels": "whole", "rounds_per_level": "whole", "rate": "real", "scope": "choice", "rewind_to": "whole",
        "weighted": "flag",
    }),
    Row(ffm.algorithms.fedprox, RULE, {"mu": "real", "implicit_rate": "real?"}),
    Row(ffm.algorithms.fedprox_adaptive, RULE, {"mu": "real", "change": "real", "patience": "whole", "implicit_rate": "real?"}),
    Row(ffm.algorithms.fedavgm, RULE, {"server_learning_rate": "real", "momentum": "real", "nesterov": "flag"}),
    Row(ffm.algorithms.fedadagrad, RULE, OF_SERVER),
    Row(ffm.algorithms.fedyogi, RULE, OF_SERVER | {"b2": "real"}),
    Row(ffm.algorithms.fedadam, RULE, OF_SERVER | {"b2": "real"}),
    Row(ffm.algorithms.scaffold, RULE, {"option": "choice"}),
    Row(ffm.algorithms.feddyn, RULE, {"alpha": "real"}),
    Row(ffm.algorithms.fednova, RULE, {"mu": "real", "effective": "choice"}),
    Row(ffm.algorithms.mime, RULE, {"server_learning_rate": "real"}),
    Row(ffm.algorithms.mimelite, RULE, {"server_learning_rate": "real"}),
    Row(ffm.algorithms.diloco, RULE, {"keep_moments": "flag"}),
    Row(ffm.algorithms.streaming_diloco, RULE | {"fragments": 2}, {"fragments": "whole", "alpha": "real", "delay": "whole"}),
    Row(ffm.algorithms.moon, MOON, {"mu": "real", "temperature": "real"}),
    Row(ffm.algorithms.qfedavg, RULE, {"q": "real", "lipschitz": "real?"}),
    Row(ffm.algorithms.power_of_choice, CHOICE, {"cohort_size": "whole", "batch_size": "whole"}),
    Row(profile, {}, {"period": "real"}),
    Row(clock, {"rounds": 2, "buffer_size": 2, "concurrency": 2, "seed": 0}, {
        "rounds": "whole", "buffer_size": "whole", "concurrency": "whole", "seed": "whole",
    }),
    Row(rounds_end, {}, {"seed": "whole", "rounds": "whole"}),
    Row(work_seconds, {}, {"bytes_down": "real", "bytes_up": "real"}),
    Row(systems.log_normal_profile, {"n_clients": 3, "seed": 0}, {
        "n_clients": "whole", "seed": "whole", "seconds_per_step": "real", "bandwidth": "real", "latency": "real",
        "spread": "real",
    }),
    Row(slowed, {"compute": 1.0, "memory": 1.0, "static": 1.0, "dynamic": 1.0, "least": 0.5}, {
        "compute": "real", "memory": "real", "static": "real", "dynamic": "real", "least": "real",
    }),
    Row(systems.best_frequency, {"chip": systems.Frequencies(1.0, 0.0, static=1.0, dynamic=1.0)}, {"deadline": "real or infinite"}),
    Row(systems.training_flop, {"frozen": 1, "trained": 1, "tokens": 1}, {"frozen": "real", "trained": "real", "tokens": "real"}),
    Row(systems.compute_seconds, {"device": PHONE, "flop": 1.0}, {"flop": "real", "steps": "real", "model_bytes": "real"}),
    Row(systems.transfer_seconds, {"link": HOME, "bytes_down": 1, "bytes_up": 1}, {
        "bytes_down": "real", "bytes_up": "real", "messages": "real",
    }),
    Row(systems.granularity, {"compute": 1.0, "transfer": 1.0}, {"compute": "real", "transfer": "real"}),
    Row(systems.compute_share, {"g": 1.0}, {"g": "real or infinite"}),
    Row(systems.tokens_per_joule, {"tokens": 1, "seconds": 1, "watts": 1}, {"tokens": "real", "seconds": "real", "watts": "real"}),
    Row(systems.memory_needed, {"model_bytes": 1, "trained": 1}, {"model_bytes": "real", "trained": "real"}),
    Row(systems.speed_up, {"g": 1.0}, {"g": "real or infinite", "factor": "real"}),
    Row(systems.granularity_with, {"g": 1.0, "factor": 2.0}, {"g": "real or infinite", "factor": "real"}),
    Row(systems.ring_bytes, {"n_bytes": 1.0, "machines": 2}, {"n_bytes": "real", "machines": "whole"}),
    Row(systems.dollars, {"cloud": RENTED, "machine_seconds": 1, "egress_bytes": 1}, {"machine_seconds": "real", "egress_bytes": "real"}),
    Row(systems.dollars_per_million, {"dollars_an_hour": 1, "samples_a_second": 1}, {
        "dollars_an_hour": "real", "samples_a_second": "real",
    }),
    Row(systems.grams, {"joules": 1.0, "grid": FRANCE}, {"joules": "real"}),
    Row(systems.energy_of, {"link": HOME, "watts": 1, "compute_seconds": 1, "bytes_down": 1, "bytes_up": 1}, {
        "watts": "real", "compute_seconds": "real", "bytes_down": "real", "bytes_up": "real", "arrives": "flag",
    }),
    Row(systems.energy_of_server, {"server": systems.find("server", "average"), "seconds": 1}, {"seconds": "real"}),
    Row(operations_of, {}, {"n_examples": "whole"}),
    Row(systems.Wiring, {}, {"memory": "real"}),
    Row(systems.swarm, {"peers": [systems.Peer(0, 1.0)], "n_stages": 1, "steps": 1, "microbatches": 1, "in_flight": 1}, {
        "n_stages": "whole", "steps": "whole", "microbatches": "whole", "in_flight": "whole", "rebalance_every": "real?",
        "download_seconds": "real", "reduce_seconds": "real", "delayed": "flag",
    }),
    Row(perturb, {}, {"scale": "real"}),
    Row(shift, {}, {"scale": "real"}),
    Row(evaluation.evaluate, SCORED, {"batch_size": "whole", "bucket": "whole?"}),
    Row(evaluation.loglikelihood, READ | {"requests": [([1], [2])]}, IN_BATCHES | {"chunk": "whole"}),
    Row(evaluation.loglikelihood_rolling, READ | {"texts": [[1, 2]], "prefix_token_id": 0}, IN_BATCHES | {
        "prefix_token_id": "whole", "chunk": "whole",
    }),
    Row(evaluation.generate_until, READ | {"prompts": [[1]], "tokenizer": LETTERS, "max_gen_toks": 1}, IN_BATCHES | {
        "max_gen_toks": "whole", "segment": "whole", "temperature": "real", "top_k": "whole?", "top_p": "real?",
    }),
    Row(evaluation.f1, {"predictions": [0, 1], "labels": [1, 1]}, {"positive": "whole"}),
    Row(evaluation.by_likelihood, ASKED, IN_BATCHES),
    Row(evaluation.by_generation, ASKED | {"max_gen_toks": 1}, IN_BATCHES | {"max_gen_toks": "whole"}),
    Row(evaluation.by_client, {"score": np.ones(2), "clients": [0, 1], "higher_is_better": True}, {
        "higher_is_better": "flag",
    }),
    Row(evaluation.worst_decile, {"values": np.ones(2), "higher_is_better": True}, {"higher_is_better": "flag?"}),
    Row(evaluation.personal_scores, OWN_SCORES, {
        "score": "choice", "higher_is_better": "flag", "least_rows": "whole", "batch_size": "whole", "bucket": "whole?",
    }),
    Row(evaluation.exact_match, {"predictions": ["a"], "references": ["a"]}, {
        "ignore_case": "flag", "ignore_punctuation": "flag",
    }),
    Row(evaluation.by_instance, {"task": TASK, "features": column_as_loss}, {"omega_max": "real", "omega_weighs": "choice"}),
    Row(shifted_scores, {}, {"omega_max": "real", "omega_weighs": "choice", "batch_size": "whole"}),
    Row(evaluation.with_trigger, POISONED, {"share": "real", "seed": "whole"}),
    Row(evaluation.attack_success, {"predicted": [1], "labels": [0], "target": 1}, {"target": "whole"}),
    Row(evaluation.tokens_of_gradient, {"gradient": np.ones((3, 2))}, {"threshold": "real"}),
    Row(evaluation.invert_gradient, {"gradient_of": jnp.sin, "observed": jnp.ones(2), "start": jnp.zeros(2), "steps": 2}, {
        "steps": "whole", "distance": "choice",
    }),
    Row(evaluation.plus_minus, {"values": [1.0, 2.0]}, {"scale": "real", "digits": "whole"}),
    Row(intervals.student_t975, {"freedom": 3}, {"freedom": "whole"}),
)  # fmt: skip


@pytest.mark.parametrize(("row", "parameter", "value"), cases(ROWS))
def test_a_bad_value_is_refused_by_its_name(row, parameter, value):
    is_refused(row, parameter, value)


# Whoever walks data hands these to `Batches`; every factory that has them is in the table below.
WALKS = {
    "fedavg": RULE, "local_only": RULE, "fedpm": RULE, "heterofl": NARROW | {"rates": [1.0]},
    "fjord": NARROW | {"widths": (0.5, 1.0), "caps": [1.0]}, "fedbuff": RULE | {"schedule": LOG},
    "feddf": SHARED, "fedmd": SHARED | {"n_classes": CLASSES}, "feddpa_t": PERSONAL,
    "feddpa_f": PERSONAL | {"private_steps": 1, "rounds": 2}, "fedkseed": {"task": TASK, "learning_rate": 0.1, **WALK},
    "fedbert": {"split": split(), "client_optimizer": SGD, "server_optimizer": SGD, **WALK},
    "fedprox": RULE, "fedprox_adaptive": RULE, "fedsgd": RULE, "fedavgm": RULE, "fedadagrad": RULE, "fedyogi": RULE, "fedadam": RULE,
    "gossip": RULE | {"mixing": np.eye(1)}, "hierarchical": RULE,
    "scaffold": RULE, "feddyn": RULE, "fednova": RULE, "mime": RULE, "mimelite": RULE, "diloco": RULE,
    "streaming_diloco": RULE | {"fragments": 2}, "moon": MOON, "qfedavg": RULE,
    "fedper": OWN, "fedrep": OWN, "fedbabu": OWN, "fedala": OWN, "ditto": RULE | {"penalty": 1.0},
    "pfedme": RULE | {"penalty": 1.0}, "apfl": RULE | {"mix_rate": 0.1}, "per_fedavg": RULE | {"inner_rate": 0.1},
    "ifca": RULE | {"clusters": 2}, "fine_tune": TUNED, "fedclip": PAIRS, "fada": DOMAINS,
    "fedpaq": RULE, "diana": GRADIENT, "ef21": GRADIENT, "fedlin": RATED, "fedobd": RULE, "flasc": RULE, "docofl": RULE,
    "gradual_pruning": RULE | SPARSER, "movement_pruning": RULE | SPARSER, "soft_movement_pruning": RULE | {"penalty": 1.0},
    "lottery_ticket": RULE | TICKET, "lotteryfl": RULE, "fedtiny": RULE | TINY, "fedmkt": MUTUAL, "prunefl": RULE | TIMED,
    "fedit": RULE, "ffa_lora": RULE, "fedsa_lora": RULE, "rolora": RULE, "flexlora": RULE, "fed_sb": RULE,
    "hetlora": RULE | {"tail_penalty": 0.1}, "fedex_lora": RULE | {"scaling": 1.0}, "flora": RULE | {"scaling": 1.0},
    "lora_fair": RULE, "fedsvd": RULE, "fedrot_lora": RULE, "fedrpca": RULE, "fedlease": RULE | {"labels": [0]}, "fedlease_warm_up": RULE, "lora_a2": RULE, "slora": RULE | {"scaling": 1.0, "sparse_rounds": 1}, "ravan": RULE, "fedask": RULE | {"sketch": 2}, "fslora": RULE, "frlora": RULE | {"scaling": 1.0},
}  # fmt: skip
WALKED = {"epochs", "local_steps", "batch_size"}


def factory(name):
    return getattr(ffm.algorithms, name, None) or getattr(lora_rules, name)


@pytest.mark.parametrize("name", WALKS)
def test_how_a_client_walks_its_data_is_checked(name):
    make, good = factory(name), WALKS[name]
    make(**good)
    bad = [("batch_size", 0), ("local_steps", 0)]
    if "epochs" in inspect.signature(make).parameters:
        bad.append(("epochs", 1))  # beside local_steps
    for parameter, value in bad:
        with pytest.raises(ValueError, match=f"{parameter}={value}"):
            make(**{**good, parameter: value})


ELSEWHERE = {"dp_fedavg", "AdaptiveClip"}  # tests/algorithms/test_dp_fedavg.py
# Made by functions, not by people; a `Question` and a `Trigger` are checked where they are used.
RESULTS = {"ClientScores", "Comparison", "CorpusScore", "Question", "Schedule"}
RESULTS |= {"PersonalScores", "Spread", "Trigger"}
# Of systems: what files and runs hold; files are checked in tests/systems/test_hardware.py.
RESULTS |= {
    "Cost",
    "Counts",
    "Energy",
    "Meter",
    "Operations",
    "PerExample",
    "Quantity",
    "Reading",
    "Scenario",
}
RESULTS |= {
    "Done",
    "Peer",
    "Stage",
    "SwarmRun",
}  # peers are checked in tests/systems/test_swarm.py
RESULTS |= {"Cloud", "Device", "Grid", "Link", "ServerMachine"}


def public(module):
    names = set(module.__all__) - ELSEWHERE - RESULTS
    return [
        thing
        for thing in (getattr(module, name) for name in sorted(names))
        if callable(thing)
    ]


def test_no_hyper_parameter_is_forgotten():
    """A factory or a number that is new here fails until the table has it."""
    modules = (ffm.algorithms, lora_rules, server_optimizers, systems, evaluation)
    factories = [thing for module in modules for thing in public(module)]
    missing = unlisted(
        factories,
        [
            *ROWS,
            *(Row(factory(name), {}, dict.fromkeys(WALKED, "whole")) for name in WALKS),
        ],
    )
    by_wrappers = {  # rows of the table under a function that has the other arguments
        "Profile(period: <class 'float'>)",
        "asynchronous(",
        "synchronous_seconds(",
        "client_seconds(",
        "flop_of_client(",
        "principal_start(",
        "shifted_scores(",
        "RoundTime(",
        "Reader(n_tokens",  # by fedmkt's own tests
        "FADANetworks(",
        "Tier(",  # in tests/algorithms/test_hierarchical.py
        "Frequencies(",
        "stages_of(",
    }
    assert [name for name in missing if not name.startswith(tuple(by_wrappers))] == []


# Values with axes

STRANGE_RANKS = {
    "a zero": [0, 2],
    "a NaN": [1.0, math.nan],
    "halves": [1.5, 2.5],
    "bools": [True, True],
    "texts": ["4", "8"],
    "ragged": [[1, 2], [3]],
    "one for all": 4,
    "none": [],
    "beyond 32 bits": [2**32 + 1, 2],  # would be narrowed to 1
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"staleness": 0.5},
        {"staleness": "polynomial"},
        {"schedule": None},
        {"schedule": (LOG.ids, LOG.versions)},
    ],
)
def test_fedbuff_says_what_its_log_and_its_staleness_are(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(
        TypeError, match=rf"expected {name} .*got {name}={re.escape(repr(value))[:9]}"
    ):
        factory("fedbuff")(**{**WALKS["fedbuff"], **wrong})


@pytest.mark.parametrize("case", STRANGE_RANKS)
@pytest.mark.parametrize(
    "name",
    [
        "fedit",
        "ffa_lora",
        "fedsa_lora",
        "rolora",
        "flexlora",
        "fed_sb",
        "hetlora",
        "flora",
    ],
)
def test_strange_ranks_are_refused(name, case):
    with pytest.raises((TypeError, ValueError), match=r"ranks=.*"):
        getattr(lora_rules, name)(**WALKS[name], ranks=STRANGE_RANKS[case])


STRANGE_RATES = {
    "NaN": [1.0, math.nan],
    "a bool": [True, 0.5],
    "a text": ["1.0", "0.5"],
    "none": [],
    "one for all": 0.5,
    "ragged": [[1.0], [0.5, 0.5]],
    "a share of NaN": {1.0: 0.5, 0.5: math.nan},
    "an infinite share": {1.0: 0.5, 0.5: math.inf},
    "a text as share": {1.0: "0.5"},
    "a bool as share": {1.0: True},
    "a text as width": {"1.0": 0.5},
}


@pytest.mark.parametrize("case", STRANGE_RATES)
def test_strange_rates_are_refused(case):
    with pytest.raises((TypeError, ValueError), match=r"width|rate|share"):
        widths_of(STRANGE_RATES[case])


@pytest.mark.parametrize(
    "widths", [(math.nan, 1.0), (True,), ("1.0",), (), 1.0], ids=str
)
def test_strange_widths_are_refused(widths):
    with pytest.raises((TypeError, ValueError), match="width"):
        fjord(**NARROW, widths=widths, caps=[1.0])


@pytest.mark.parametrize(
    "groups",
    [[0.0, 1.0], [True, False], ["0", "1"], [[0], [1, 1]], [2**32, 1], []],
    ids=str,
)
def test_strange_groups_are_refused(groups):
    with pytest.raises((TypeError, ValueError), match=r"groups|architecture"):
        distillation.checked_groups(groups, 2, make_public(), "logits")


BAD_SECONDS = {
    "NaN": np.full(9, math.nan),
    "infinite": np.full(9, math.inf),
    "negative": -np.ones(9),
    "texts": np.array(["1"] * 9),
    "bools": np.ones(9, bool),
    "of other clients": np.ones(8),
    "for one": 1.0,
}


@pytest.mark.parametrize("case", BAD_SECONDS)
def test_strange_seconds_stop_the_clock(case):
    """With NaN the queue of events would have no order, without a word."""
    with pytest.raises((TypeError, ValueError), match="seconds"):
        systems.asynchronous(
            PROFILE, BAD_SECONDS[case], rounds=2, buffer_size=2, concurrency=2, seed=0
        )


@pytest.mark.parametrize("case", sorted(set(BAD_SECONDS) - {"of other clients"}))
def test_strange_seconds_do_not_add_up(case):
    with pytest.raises((TypeError, ValueError), match="seconds"):
        systems.synchronous_seconds(samplers.uniform(9, 3), 0, 2, BAD_SECONDS[case])


@pytest.mark.parametrize(
    "n_steps", [np.full(9, math.nan), -np.ones(9), np.ones(8), ["1"] * 9], ids=str
)
def test_strange_steps_take_no_time(n_steps):
    with pytest.raises((TypeError, ValueError), match="n_steps"):
        systems.client_seconds(PROFILE, n_steps, 1, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("up", np.full(9, math.nan)),
        ("latency", np.array(["0"] * 9)),
        ("down", np.ones(9, bool)),
        ("seconds_per_step", np.ones(8)),
        ("online", np.full((9, 3), math.nan)),  # which is as good as True
        ("online", np.ones((9, 3))),
        ("online", np.ones((8, 3), bool)),
    ],
)
def test_strange_profiles_are_refused(field, value):
    with pytest.raises((TypeError, ValueError), match="expected"):
        PROFILE._replace(**{field: value}).checked()
