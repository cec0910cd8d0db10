"""The protocol of ../protocol.py, for processes in which our package cannot be imported.

That folder is not put on their path: it holds a `kernels.py`, which transformers would
take for Hugging Face's package.
"""

import importlib.util
from pathlib import Path
from typing import Any

_PATH = Path(__file__).resolve().parent.parent / "protocol.py"
_SPEC = importlib.util.spec_from_file_location(__name__, _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
_PROTOCOL = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_PROTOCOL)


def __getattr__(name: str) -> Any:
    """A name that ../protocol.py defines."""
    return getattr(_PROTOCOL, name)
