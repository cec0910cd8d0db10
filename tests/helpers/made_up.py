"""Tables that are made up, for studies whose data are large."""

import numpy as np

from fedjax_fm.datasets import Table
from fedjax_fm.datasets.table import text_column
from fedjax_fm.models.language_modeling import IGNORED


def made_up_pictures(n):
    """Drawings of squares and circles, labelled as such."""
    shapes = ('<rect width="9" height="9"/>', '<circle cx="16" cy="16" r="9"/>')
    begin = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
    pictures = [
        f'{begin}<g transform="translate({k % 9},{k // 9})">{shapes[k % 2]}</g></svg>'
        for k in range(n)
    ]
    labels = np.arange(n, dtype=np.int32) % 2
    return Table({"svg": text_column(pictures), "label": labels}, {})


def made_up_states(n, seed=0, *, width, length, classes):
    """Hidden states of sentences, a third of them short, and a label for each token."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (n, length)).astype(np.int32)
    mask = np.ones((n, length), np.int32)
    mask[::3, 5:] = 0
    labels[mask == 0] = IGNORED
    hidden = rng.normal(size=(n, length, width)).astype(np.float32)
    return {"hidden": hidden, "attention_mask": mask, "labels": labels}
