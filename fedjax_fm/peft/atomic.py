"""Writes folders that appear whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Opens a temporary folder whose files move to `folder` when the block ends.

    If the block fails, nothing of it is left and `folder` is as before. If `folder`
    exists already, its other files stay, and each new file replaces the old one in one
    step.

    Args:
      folder: where the files go in the end.

    Yields:
      The temporary folder, beside `folder`.

    Raises:
      NotADirectoryError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"expected a folder to write into, got the file {folder}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    final = folder.absolute()
    beside = final.parent / f".{final.name}.{secrets.token_hex(4)}.partial"
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
