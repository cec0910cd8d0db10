"""What do near duplicates at the clients do to scores and to privacy, and does MinHash help?

Lee et al. 2022: texts of the test that are in the training set flatter the model, and
repeated texts are remembered. Kandpal et al. 2022: a text that is there ten times is
generated far more often. Here both in a federation, where nobody sees all texts.

Users are Shakespeare's speaking roles, the model reads four words and says the next, as
in `dp_ftrl`. Test: speeches of at least 20 words of roles that never train. Planted:

    half of the test's speeches       a near duplicate at each of 16 users
    a speech of each of 60 users      3 near duplicates at that user, one at another
    canaries, random words            at 16 users, 4 times each; without duplicates once

A near duplicate has 0 to 3 words that are others. The filter: users and the holder of
the test send keys of bands of MinHash, and one of near duplicates stays; of texts of
the test none. `filtered` has FineWeb's bands, which are made for pages: three words that
are others leave a speech of 20 words one run of five. `loose` has runs of three words
and 25 bands of 3 hashes; `same` joins texts that are alike word by word only.

Private arms add banded noise at one rho for a user. A text that k users hold is
protected as all k of them are: with noise of z / k.

Primary score: accuracy on the speeches that were planted, of which more is flattery.
Controls: labels permuted among all users; no training.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fedjax_fm import study
from fedjax_fm.datasets.quality import MinHash
from fedjax_fm.experiments.duplicates.filtering import LOOSE, NEAR, SAME
from fedjax_fm.experiments.duplicates.texts import data
from fedjax_fm.experiments.duplicates.training import trained, untrained
from fedjax_fm.study import Score, arm_of, percent


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run duplicates`; change one by `--set name=value`."""

    vocabulary: int = 500
    users: int = 400  # roles at most, with those of the test
    least: int = 60  # words of a user
    most: int = 400
    test_share: float = 0.2  # of the users
    test_texts: int = 60  # planted ones, and as many others
    long: int = 20  # words of a speech of the test, and of one that is repeated
    shortest: int = 7  # words of a text that the filter looks at
    holders: int = 16  # users that have a planted text
    repeating: int = 60  # users that repeat a speech of theirs
    repeats: int = 4
    changed: int = 3  # words of a near duplicate, at most
    canaries: int = 40
    secret: int = 3  # words of a canary behind its first four
    candidates: int = 1000  # secrets that a canary's is ranked among
    read: int = 4
    width: int = 24
    cohort: int = 80
    rest: int = 4  # rounds between two participations of a user, at least
    rounds: int = 40
    epochs: int = 1
    batch_size: int = 16
    momentum: float = 0.9  # at the server
    rho: float = 0.5  # of zero-concentrated privacy, of one user
    delta: float = 1e-4
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    clips: tuple[float, ...] = (0.3, 1.0, 3.0)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        sizes: dict[str, Any] = {"vocabulary": 100, "users": 60, "width": 4}
        texts: dict[str, Any] = {"test_texts": 8, "holders": 4, "repeating": 6}
        few: dict[str, Any] = {"rates": (1.0,), "clips": (1.0,), "seeds": (0,)}
        walk: dict[str, Any] = {"rounds": 4, "cohort": 8, "rest": 2, "candidates": 20}
        return dataclasses.replace(self, **sizes, **texts, **few, **walk, canaries=8)


def filtered(name: str, label: str, minhash: MinHash) -> study.Arm:
    """Duplicates, filtered first; with the settings of training without them."""
    how: dict[str, Any] = {"planted": True, "minhash": minhash}
    return arm_of(name, trained, label, like="clean", **how)


GRID = {"rate": "rates", "clip": "clips"}
CLEAN = arm_of("clean", trained, "no duplicates", GRID)
PRIVATE = arm_of("private_clean", trained, "private, no duplicates", GRID, private=True)
ARMS = (
    CLEAN,
    arm_of("planted", trained, "duplicates", like="clean", planted=True),
    filtered("same", "same texts out", SAME),
    filtered("filtered", "near ones out", NEAR),
    filtered("loose", "near ones out, loosely", LOOSE),
    PRIVATE,
    arm_of(
        "private_planted",
        trained,
        "private, duplicates",
        like="private_clean",
        planted=True,
        private=True,
    ),
    arm_of(
        "private_filtered",
        trained,
        "private, near ones out",
        like="private_clean",
        planted=True,
        minhash=NEAR,
        private=True,
    ),
)
STUDY = study.Study(
    question="What do near duplicates at the clients do to scores and to privacy, and "
    "does MinHash help?",
    expected="duplicates flatter the scores of planted speeches and leave those of others "
    "as they are; exposure of canaries rises from 1.4 bits to several; bands of FineWeb "
    "find nine tenths of planted pairs and take half of the flattery back, loose ones all "
    "of it, one for same texts little; with noise no canary is exposed, though the "
    "epsilon of a text grows with its holders (EXPECTED.md)",
    config=Config,
    data=data,
    primary=percent("seen", "planted speeches"),
    scores=(
        percent("unseen", "other speeches"),
        Score("exposure", "exposure of canaries", "bits", highest=False, digits=2),
        Score("of_others", "of those not planted", "bits", highest=False, digits=2),
        percent("recall", "pairs found"),
        percent("precision", "pairs that were planted"),
        Score("epsilon", "epsilon of a user", highest=False),
        Score("of_text", "epsilon of a canary", highest=False),
    ),
    arms=(
        *ARMS,
        study.shuffled(CLEAN, "no duplicates, labels permuted"),
        arm_of("untrained", untrained, "before training", like="clean"),
    ),
    comparisons=[
        ("planted", "clean"),
        ("same", "clean"),
        ("filtered", "planted"),
        ("loose", "filtered"),
        ("loose", "clean"),
        ("private_planted", "private_clean"),
        ("private_filtered", "private_clean"),
    ],
    controls=(
        study.Control("shuffled", "clean"),
        study.Control("untrained", "clean"),
    ),
)
