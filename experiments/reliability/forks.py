"""Sessions, each in a process that is forked where everything is imported.

`python -m fedjax_fm.experiments.reliability.forks`: requests in, endings out, a line of
JSON each. No backend of JAX may have begun where it forks.
"""

import json
import os
import resource
import sys
import traceback
from importlib import import_module
from typing import Any

from fedjax_fm.experiments.reliability.session import Request, go

# Each private session would import it for seconds.
import_module("dp_accounting")


def _child(request: Request, answers: int) -> int:
    """The exit code of a session, whose ending goes into a pipe."""
    try:
        found, code = go(request), 0
    except BaseException as error:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (most, most)
        )  # a fault may have set it
        traceback.print_exc()
        notes = getattr(error, "__notes__", [])
        message = "\n".join([str(error), *notes])
        found, code = {"error": type(error).__name__, "message": message}, 1
    with os.fdopen(answers, "w", encoding="utf-8") as pipe:
        json.dump(found, pipe)
    return code


def _answer(request: Request) -> dict[str, Any]:
    """How a session ended, in a process of its own."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        code = _child(request, writes)
        sys.stderr.flush()
        os._exit(code)
    os.close(writes)
    with os.fdopen(reads, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    found = json.loads(text) if text else {}
    return {"code": os.waitstatus_to_exitcode(status), **found}


def main() -> None:
    """One session for each line that comes in."""
    for line in sys.stdin:
        fields = json.loads(line)
        print(json.dumps(_answer(Request(**fields))), flush=True)


if __name__ == "__main__":
    main()
