"""`tools/style.py` as a module; it is a script, in no package."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _loaded():
    spec = importlib.util.spec_from_file_location(
        "fedjax_fm_style", ROOT / "tools" / "style.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuples look for their module
    spec.loader.exec_module(module)
    return module


style = _loaded()
