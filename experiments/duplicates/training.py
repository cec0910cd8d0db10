"""Training with and without duplicates, private and not, and what is left of canaries."""

from typing import Any

import numpy as np

import fedjax_fm as ffm
from fedjax_fm import privacy, study
from fedjax_fm.datasets.quality import MinHash
from fedjax_fm.evaluation import leaks
from fedjax_fm.experiments.dp_ftrl.training import dp_method, multiplier, noise_of
from fedjax_fm.experiments.dp_ftrl.words import TASK, vocabulary, weights, windows
from fedjax_fm.experiments.duplicates.filtering import Found, without_duplicates
from fedjax_fm.experiments.duplicates.texts import Users
from fedjax_fm.population import samplers
from fedjax_fm.study.judged import joined

Arrays = dict[str, np.ndarray]


def trained(
    run: study.Run,
    planted: bool = False,
    minhash: MinHash | None = None,
    private: bool = False,
) -> dict[str, float]:
    """One run.

    Args:
      run: of the arm.
      planted: whether users have the duplicates.
      minhash: by what they are filtered first; None: they are not.
      private: whether there is noise.
    """
    config, data = run.config, run.data
    users, scores = data.planted if planted else data.clean, {}
    holders = data.holders if planted else 1
    if minhash is not None:
        found = filtered(run, users, minhash)
        users, holders = found.users, most_holders(config, found.users)
        scores |= {"recall": found.recall, "precision": found.precision}
        run.sent(up=found.uplink_bytes, down=found.downlink_bytes)
    clients = [_rows(config, texts) for texts in users.texts]
    clients = [one for one in clients if len(one["label"])]
    noise = noise_of("banded", config.rest)
    z = multiplier(noise, config.rest, config.rounds, config.rho) if private else 0.0
    method = dp_method(run, noise, z)
    cohort = min(config.cohort, len(clients) // config.rest)
    sampler = samplers.spaced(len(clients), cohort, config.rest)
    after = run.simulate(
        method,
        clients,
        weights(config, run.seed),
        config.rounds,
        cohort_size=cohort,
        sampler=sampler,
        task=TASK,
        test=_rows(config, [*data.seen, *data.unseen]),
    )
    if private:
        of_group = group_epsilon(config, sampler, noise, z, holders)
        scores |= {"epsilon": group_epsilon(config, sampler, noise, z, 1)}
        scores |= {"of_text": of_group}
    delta, _ = after.model()
    return scores | judged(run, delta)


def group_epsilon(
    config: Any, sampler: ffm.Sampler, noise: privacy.Noise, z: float, holders: int
) -> float:
    """Epsilon of a text: of as many users as hold it, all of them there or zero.

    Together they move each release by up to that many times what one does, which is the
    same as that many times less noise.

    Args:
      config: of the study.
      sampler: of the run.
      noise: of the run.
      z: noise multiplier, in clip norms of one user.
      holders: users that hold the text.
    """
    how = {"rounds": config.rounds, "delta": config.delta}
    return privacy.spent(sampler, noise, z / holders, **how).epsilon


def filtered(run: study.Run, users: Users, minhash: MinHash) -> Found:
    """The users without duplicates, computed once for all arms of the seed."""
    test = [*run.data.seen, *run.data.unseen]

    def find() -> Found:
        return without_duplicates(run.config, users, test, minhash)

    return run.once(("filtered", minhash), find)


def most_holders(config: Any, users: Users) -> int:
    """Users that hold the canary that most of them hold, at least 1."""
    first = config.test_texts + config.repeating
    each = [np.unique(own[own >= first]) for own in users.families]
    counts = np.bincount(np.concatenate(each).astype(np.int64), minlength=1)
    return max(int(counts.max()), 1)


def judged(run: study.Run, delta: Any) -> dict[str, float]:
    """Accuracy on texts that were planted and on others, and exposure of canaries."""
    config, data = run.config, run.data

    def accuracy(texts: list[str]) -> float:
        scores = ffm.evaluate(TASK, delta, (), _rows(config, texts))
        return float(scores["accuracy"].mean())

    found = exposures(config, delta, data.canaries)
    return {
        "seen": accuracy(data.seen),
        "unseen": accuracy(data.unseen),
        "exposure": float(found[data.canaries.is_planted].mean()),
        "of_others": float(found[~data.canaries.is_planted].mean()),
    }


def exposures(config: Any, delta: Any, canaries: leaks.Canaries) -> np.ndarray:
    """f64[canaries], in bits, among secrets that nobody was given."""
    candidates = leaks.candidate_secrets(canaries, config.candidates)
    n, length = canaries.secrets.shape
    shape = (n, config.candidates, length)
    others = np.broadcast_to(candidates[None], shape)
    secrets = np.concatenate([canaries.secrets[:, None], others], axis=1)
    prefixes = np.repeat(canaries.prefixes[:, None], config.candidates + 1, axis=1)
    codes = np.concatenate([prefixes, secrets], axis=-1)
    width = canaries.prefixes.shape[1]
    read = np.lib.stride_tricks.sliding_window_view(codes, width, axis=-1)[:, :, :-1]
    rows = {"read": read.reshape(-1, width), "label": secrets.reshape(-1)}
    nats = ffm.evaluate(TASK, delta, (), rows, batch_size=4096)["loss"]
    log_p = -nats.reshape(n, config.candidates + 1, length).sum(axis=-1)
    return leaks.exposure(log_p[:, 0], log_p[:, 1:])


def _rows(config: Any, texts: list[str]) -> Arrays:
    """Windows within each text; none reaches from one into the next."""
    numbers = vocabulary(config.vocabulary)
    words = [text.lower().split() for text in texts]
    parts = [windows(some, numbers) for some in words if len(some) > config.read]
    if not parts:
        return {"read": np.zeros((0, config.read), np.int32), "label": np.zeros(0, int)}
    return joined(parts)


def untrained(run: study.Run) -> dict[str, float]:
    """The model as it begins."""
    return judged(run, weights(run.config, run.seed))
