"""Speeches of some length, and near duplicates of them."""

import numpy as np

from fedjax_fm.datasets import load_shakespeare

SPEECHES = [str(x) for x in load_shakespeare()["speech"] if len(str(x).split()) > 40]


def planted(n=60, copies=20, changed=1, seed=0):
    """Speeches, and copies of some of them with a few words changed; (texts, origins)."""
    random = np.random.default_rng(seed)
    texts, origins = SPEECHES[:n], list(range(n))
    for k in range(copies):
        words = texts[k].split()
        for place in random.permutation(len(words))[:changed]:
            words[place] = "zounds"
        texts = [*texts, " ".join(words)]
        origins.append(k)
    return texts, np.array(origins)
