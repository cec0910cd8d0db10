"""Users' speeches with planted near duplicates, and the texts of the test."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.evaluation import leaks
from fedjax_fm.experiments.dp_ftrl.words import READ, vocabulary
from fedjax_fm.experiments.shared.plays import is_of_tuning, roles

ALONE = -1  # the family of a text that nothing was copied from
Random = np.random.Generator


class Users(NamedTuple):
    """Texts of every user, and which were planted.

    Attributes:
      texts: of each user.
      families: i64 of each user's texts; copies of one text and itself have one number.
    """

    texts: list[list[str]]
    families: list[np.ndarray]

    def with_texts(self, user: int, texts: list[str], family: int) -> "Users":
        """The users, where one has more texts of a family.

        Args:
          user: whose.
          texts: that are added.
          family: of all of them.
        """
        own, numbers = list(self.texts), list(self.families)
        own[user] = [*own[user], *texts]
        numbers[user] = np.concatenate([numbers[user], np.full(len(texts), family)])
        return Users(own, numbers)

    def marked(self, user: int, text: int, family: int) -> "Users":
        """The users, where a text is the first of a family.

        Args:
          user: whose.
          text: its number.
          family: of that text.
        """
        numbers = list(self.families)
        numbers[user] = numbers[user].copy()
        numbers[user][text] = family
        return Users(self.texts, numbers)


class Data(NamedTuple):
    """What the arms train on.

    Attributes:
      clean: users with their own speeches, and each planted canary at one of them.
      planted: the same with near duplicates of `seen`, of own speeches, and of canaries.
      seen: speeches of the test that were planted.
      unseen: the others.
      canaries: random words, of which the coins have planted about half.
      holders: users that have a planted canary in `planted`.
    """

    clean: Users
    planted: Users
    seen: list[str]
    unseen: list[str]
    canaries: leaks.Canaries
    holders: int


def data(config: Any, seed: int, split: str) -> Data:
    """Draws users, the test, canaries, and who has which duplicates."""
    random = np.random.default_rng([seed, 0xD0])
    chosen = [
        role.speeches
        for _, role in sorted(roles().items())
        if is_of_tuning(role.play) == (split == "tuning")
    ]
    able = [some for some in chosen if _n_words(some) >= config.least]
    drawn = [able[k] for k in random.permutation(len(able))[: config.users]]
    n_test = round(config.test_share * len(drawn))
    own = [_first(some, config.most) for some in drawn[n_test:]]
    tested = [text for some in drawn[:n_test] for text in some]
    long = [text for text in tested if _n_words([text]) >= config.long]
    order = random.permutation(len(long))
    seen = [long[k] for k in order[: config.test_texts]]
    unseen = [long[k] for k in order[config.test_texts : 2 * config.test_texts]]
    canaries = leaks.draw_canaries(
        sorted(vocabulary(config.vocabulary).values()),
        config.canaries,
        len(own),
        prefix=READ,
        secret=config.secret,
        seed=seed,
    )
    users = Users(own, [np.full(len(some), ALONE) for some in own])
    holders = min(config.holders, len(own))
    planted = _with_copies(config, users, seen, holders, random)
    for family, text in _canaries(config, canaries):
        place = int(canaries.clients[family])
        users = users.with_texts(place, [text], _number(config, family))
        others = random.permutation(len(own))[: holders - 1]
        for user in {place, *others.tolist()}:
            copies = [text] * config.repeats
            planted = planted.with_texts(user, copies, _number(config, family))
    return Data(
        clean=users,
        planted=planted,
        seen=seen,
        unseen=unseen,
        canaries=canaries,
        holders=holders,
    )


def _with_copies(
    config: Any, users: Users, seen: list[str], holders: int, random: Random
) -> Users:
    """The users with near duplicates of test texts, and of their own."""
    for family, text in enumerate(seen):
        for user in random.permutation(len(users.texts))[:holders]:
            users = users.with_texts(user, _copies(config, text, 1, random), family)
    family = len(seen)
    for user in random.permutation(len(users.texts))[: config.repeating]:
        long = [k for k, text in enumerate(users.texts[user]) if _long(config, text)]
        for place in long[:1]:
            text = users.texts[user][place]
            users = users.marked(user, place, family)
            own = _copies(config, text, config.repeats, random)
            users = users.with_texts(user, own, family)
            other = int(random.integers(len(users.texts)))
            given = _copies(config, text, 1, random)
            users = users.with_texts(other, given, family)
            family += 1
    return users


def _copies(config: Any, text: str, n: int, random: Random) -> list[str]:
    """Near duplicates, each with 0 to `changed` words that are others."""
    common, found = sorted(vocabulary(config.vocabulary)), []
    for _ in range(n):
        words = text.split()
        n_changed = int(random.integers(config.changed + 1))
        for place in random.permutation(len(words))[:n_changed]:
            words[place] = str(random.choice(common))
        found.append(" ".join(words))
    return found


def _canaries(config: Any, canaries: leaks.Canaries) -> list[tuple[int, str]]:
    """(number, text) of those that the coins have planted."""
    words = {code: word for word, code in vocabulary(config.vocabulary).items()}
    rows = np.concatenate([canaries.prefixes, canaries.secrets], axis=1)
    return [
        (int(k), " ".join(words[int(code)] for code in rows[k]))
        for k in np.flatnonzero(canaries.is_planted)
    ]


def _number(config: Any, canary: int) -> int:
    """The family of a canary, behind those of speeches."""
    return config.test_texts + config.repeating + canary


def _n_words(texts: list[str]) -> int:
    return len(" ".join(texts).split())


def _long(config: Any, text: str) -> bool:
    return _n_words([text]) >= config.long


def _first(texts: list[str], most: int) -> list[str]:
    """The first texts, until there are enough words."""
    found: list[str] = []
    for text in texts:
        if _n_words(found) < most:
            found.append(text)
    return found
