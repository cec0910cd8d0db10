"""A run that is audited: its model, its data as they were dealt, what it has promised."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_fm.finetune import clients as federation
from fedjax_fm.finetune import command, methods, talk
from fedjax_fm.finetune import data as of_data
from fedjax_fm.finetune.data import Data, length
from fedjax_fm.finetune.outputs import folder_of
from fedjax_fm.finetune.report import FACTS
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.finetune.tokens import Arrays
from fedjax_fm.privacy.mechanisms import REPLACED
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.runs.settings import replace
from fedjax_fm.study import results
from fedjax_fm.study.judged import joined
from fedjax_fm.types import Tree

ATTACKS = "membership, canaries, the empirical epsilon, uploads and inversion"
MOST_DELTA = 0.999  # a larger one promises nothing


class Promise(NamedTuple):
    """What a run says of one client's data, replaced by others.

    Attributes:
      epsilon: that it has spent for that change, by the accountant; None without a
        promise.
      delta: of that guarantee; 0 without.
    """

    epsilon: float | None
    delta: float


class Subject(NamedTuple):
    """A run of one seed.

    Attributes:
      folder: of the run.
      settings: of the run.
      seed: whose model is audited.
      model: after training, and its structure.
      data: as they were dealt, without canaries and unpacked.
      promise: of the run.
      is_personal: whether clients keep models of their own, which are not audited.
    """

    folder: RunFolder
    settings: Settings
    seed: int
    model: talk.Opened
    data: Data
    promise: Promise
    is_personal: bool

    @property
    def is_text(self) -> bool:
        """Whether the model writes text."""
        return self.data.prepared.subject.kind not in ("classes", "pairs")

    @property
    def before(self) -> tuple[Tree, Tree]:
        """(delta, backbone) before training."""
        return self.model.adapted.delta, self.model.adapted.backbone


class Sides(NamedTuple):
    """Examples that were trained on, and others.

    Attributes:
      members: arrays of the former.
      others: arrays of the latter.
      source: where the others come from, in words.
    """

    members: Arrays
    others: Arrays
    source: str


def opened(place: Path, seed: int | None = None) -> Subject:
    """Opens a run of `fedjax-fm finetune` for an audit.

    Args:
      place: of its folder.
      seed: whose model is audited; None: the first.

    Returns:
      The run.

    Raises:
      UsageError: the folder is of a study or of another run, whose models or data are
        not there; the run is not done, or data or weights have changed since.
    """
    folder = RunFolder(place)
    _check_kind(folder)
    model = talk.opened(place, seed)
    settings = model.settings
    seed = settings.seeds[0] if seed is None else seed
    plain = replace(settings, canaries=0, canary_repeats=1, pack=False)
    data = of_data.load(plain, seed, "final")
    facts = folder.read_json(FACTS)
    found = data.prepared.source.sha256
    command.check_same(settings.data, facts["plan"]["data_sha256"], found)
    models = folder.path / folder_of(settings, seed)
    return Subject(
        folder=folder,
        settings=settings,
        seed=seed,
        model=model,
        data=data,
        promise=_promise(folder, settings, seed, data),
        is_personal=(models / "clients").is_dir(),
    )


def _check_kind(folder: RunFolder) -> None:
    """Raises UsageError for folders that hold no model with its data."""
    name = folder.config["experiment"] if folder.is_run else None
    if name == command.NAME:
        return
    if folder.has("results.json"):
        raise UsageError(
            f"{folder.path} is a study, {name!r}: it keeps scores, and neither its "
            f"models nor which client had which example, so that {ATTACKS} cannot be "
            "audited. What it has spent of privacy is in its RESULTS.md; train the model "
            "with fedjax-fm finetune to audit it, or call fedjax_fm.evaluation.leaks"
        )
    if folder.has("metrics.jsonl"):
        raise UsageError(
            f"{folder.path} is a run of your own code: its folder holds metrics and "
            f"checkpoints, but not the model's structure or the data, so that {ATTACKS} "
            "cannot be audited from it; call fedjax_fm.evaluation.leaks in your code"
        )
    raise UsageError(
        f"{folder.path} is no folder of a run: give one of fedjax-fm finetune"
    )


def _promise(folder: RunFolder, settings: Settings, seed: int, data: Data) -> Promise:
    """What the accountant has said of the run of that seed."""
    runs = results.read(folder).runs("federated")
    spent = [one["epsilon"] for one in runs if one["seed"] == seed and "epsilon" in one]
    if not spent:
        return Promise(epsilon=None, delta=0.0)
    rate = settings.learning_rate[0]
    privacy = methods.algorithm_of(settings, data, rate).privacy
    assert privacy is not None  # such a run spends no epsilon
    return for_a_replaced_client(spent[0], privacy.delta or 0.0, privacy.relation)


def for_a_replaced_client(epsilon: float, delta: float, relation: str) -> Promise:
    """A guarantee as one for a client's data replaced, which canaries test.

    Where it is of a client that is there or not, the change takes two steps: out with
    the old data, in with the new ones.

        epsilon' = 2 epsilon,   delta' = (1 + e^epsilon) delta

    Args:
      epsilon: of the guarantee.
      delta: of the guarantee.
      relation: which data sets are neighbours, in the words of `privacy.spent`.

    References:
      Vadhan 2017, "The Complexity of Differential Privacy", lemma 2.2 (group privacy).

    Example:
      >>> for_a_replaced_client(1.0, 1e-5, "one client's data replaced").epsilon
      1.0
      >>> for_a_replaced_client(1.0, 1e-5, "one client more or less").epsilon
      2.0
    """
    if relation == REPLACED:
        return Promise(epsilon, delta)
    doubled = (1 + np.exp(epsilon)) * delta
    return Promise(2 * epsilon, min(float(doubled), MOST_DELTA))


def sides(subject: Subject, n_examples: int) -> Sides:
    """Examples that were trained on and as many others, dealt evenly over clients.

    Args:
      subject: the run.
      n_examples: at most, of either side.

    Returns:
      Members, and held-out examples of the same clients; where there are none, examples
      of clients that never trained.
    """
    data, seed = subject.data, subject.seed
    own = sum(length(one) for one in data.own)
    others, source = data.own, "held-out examples of the clients that train"
    if own < 2:
        others, source = data.unseen, "examples of clients that never train"
    members = _some(data.train, n_examples, seed)
    return Sides(members, _some(others, n_examples, seed), source)


def _some(clients: list[Arrays], most: int, seed: int) -> Arrays:
    places = [np.arange(length(one)) for one in clients]
    chosen = federation.capped(places, most, seed)
    parts = [
        {name: column[rows] for name, column in one.items()}
        for one, rows in zip(clients, chosen, strict=True)
    ]
    return joined([one for one in parts if length(one)])
