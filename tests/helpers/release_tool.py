"""`tools/release_parts.py` as a module; it is a script's, in no package."""

import importlib.util
import sys

from style_tool import ROOT


def _loaded():
    place = ROOT / "tools" / "release_parts.py"
    spec = importlib.util.spec_from_file_location("fedjax_fm_release_parts", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuples look for their module
    spec.loader.exec_module(module)
    return module


release = _loaded()
