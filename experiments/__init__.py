"""Runnable studies; the only place with configurations, paths and seeds.

Installed as fedjax_fm.experiments.
"""

import sys

from fedjax_fm.runs.terminal import never_fails

# The tables hold signs that not every console has.
never_fails(sys.stdout, sys.stderr)
