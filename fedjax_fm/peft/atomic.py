"""Folders that appear whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside `folder` to write into.

    Its files move to `folder` when the block ends well.

    Where the block fails, nothing is left of it and `folder` is as it was. Where
    `folder` is there already, its other files stay, and each new file replaces its old
    one in one step.

    Raises:
      NotADirectoryError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"expected a folder to write into, got the file {folder}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = (
        folder.absolute().parent
        / f".{folder.absolute().name}.{secrets.token_hex(4)}.partial"
    )
    beside.mkdir()
    try:
        yield beside
        if folder.exists():
            for path in sorted(beside.iterdir()):
                os.replace(path, folder / path.name)
        else:
            os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
