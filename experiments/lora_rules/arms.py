"""The arms: one aggregation rule each, beside a frozen head of random values, so that all that is learnt goes through
the adapters; and, as control, the head alone, trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from fedjax_fm import Population, Simulator, Task, fedavg, models, peft, trees
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.experiments.lora_rules.config import Config
from fedjax_fm.experiments.lora_rules.data import Dealt
from fedjax_fm.experiments.lora_rules.tail import Tail
from fedjax_fm.peft.lora_sb import first_gradients, first_updates, lora_sb
from fedjax_fm.types import Tree

RULES: dict[str, tuple[str, Callable]] = {
    "fedit": ("FedIT, padded", lora_rules.fedit),
    "hetlora": ("HetLoRA", lora_rules.hetlora),
    "flexlora": ("FlexLoRA", lora_rules.flexlora),
    "ffa_lora": ("FFA-LoRA", lora_rules.ffa_lora),
    "rolora": ("RoLoRA", lora_rules.rolora),
    "fedsa_lora": ("FedSA-LoRA (personal B)", lora_rules.fedsa_lora),
    "fedex_lora": ("FedEx-LoRA", lora_rules.fedex_lora),
    "flora": ("FLoRA", lora_rules.flora),
    "fed_sb": ("Fed-SB", lora_rules.fed_sb),
    "head": ("control: head only", fedavg),
}
ADD_TO_BASE = ("fedex_lora", "flora")


class Arm(NamedTuple):
    """One rule on one deal of the data."""

    simulator: Simulator
    delta: Tree
    correct: Callable[[Any], np.ndarray]  # SimulationState -> bool[test sentences], clients one after the other
    setup_bytes: int  # sent once, to all clients together


def make_arm(name: str, config: Config, dealt: Dealt, learning_rate: float, seed: int) -> Arm:
    """The adapter's and the head's initial values are named by the seed, and so are the same for all arms."""
    tail = Tail(base_model(config, seed), config.trained_layers)
    graphdef, delta, backbone = peft.apply(tail, _method(name, config, tail, dealt), jax.random.key(seed))

    def logits(delta, backbone, batch):
        return nnx.merge(graphdef, delta, backbone)(batch["hidden"], batch["attention_mask"])

    def loss(delta, backbone, batch, key):
        return optax.softmax_cross_entropy_with_integer_labels(logits(delta, backbone, batch), batch["label"]), {}

    how: dict[str, Any] = {"local_steps": config.local_steps, "batch_size": config.batch_size}
    if name != "head":
        how["ranks"] = config.ranks
    if name == "hetlora":
        how |= {"gamma": config.gamma, "tail_penalty": config.tail_penalty}
    if name in ADD_TO_BASE:
        how["scaling"] = config.scaling
    algorithm = RULES[name][1](Task(loss), optax.adam(learning_rate), **how)
    simulator = Simulator(
        algorithm, Population.from_clients(dealt.train), backbone=backbone, cohort_size=len(dealt.train), seed=seed
    )

    @jax.jit
    def score(delta, backbone, batch):
        return logits(delta, backbone, batch).argmax(-1) == batch["label"]

    def correct(state) -> np.ndarray:
        beside = lora_rules.effective_backbone(simulator.backbone, state.rounds.server)
        found = []
        for client, batch in enumerate(dealt.test):
            mine = state.delta
            if name == "fedsa_lora":
                mine = lora_rules.fedsa_delta(mine, jax.tree.map(lambda x, k=client: x[k], state.rounds.clients))
            found.append(np.asarray(score(mine, beside, batch)))
        return np.concatenate(found)

    return Arm(simulator, delta, correct, _directions_bytes(config, backbone) if name == "fed_sb" else 0)


def _method(name: str, config: Config, tail: Tail, dealt: Dealt) -> peft.Method:
    rank = max(config.ranks)
    how: dict[str, Any] = {"alpha": config.scaling * rank, "targets": config.targets, "modules_to_save": ()}
    if name == "head":
        return peft.head()
    if name != "fed_sb":
        return peft.lora(rank, **how)

    def loss(model):
        scores = model(dealt.public["hidden"], dealt.public["attention_mask"])
        return optax.softmax_cross_entropy_with_integer_labels(scores, dealt.public["label"]).mean()

    gradients = first_gradients(tail, loss, targets=config.targets)
    return lora_sb(rank, updates=first_updates(gradients, config.first_rate), **how)


def _directions_bytes(config: Config, backbone: Tree) -> int:
    """A and B of Fed-SB, which every client fetches once at its rank."""
    leaves = {trees.path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(backbone)}
    of_rank = [leaf for name, leaf in leaves.items() if name.endswith(("lora_a", "lora_b"))]
    return sum(rank * leaf.nbytes // max(config.ranks) for rank in config.ranks for leaf in of_rank)


def base_model(config: Config, seed: int) -> Any:
    """The classifier with a head of random values."""
    return models.from_pretrained(config.model, num_labels=2, pooling="mean", seed=seed)
