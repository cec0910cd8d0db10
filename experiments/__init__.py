"""Runnable studies; the only place with configurations, paths and seeds.

Installed as fedjax_fm.experiments.
"""

import sys

from fedjax_fm.runs.terminal import never_fails

never_fails(
    sys.stdout, sys.stderr
)  # their tables hold signs that not every console has
