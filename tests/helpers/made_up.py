"""Tables that are made up, for studies whose data are large."""

import numpy as np

from fedjax_fm.datasets import Table
from fedjax_fm.datasets.table import text_column


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
