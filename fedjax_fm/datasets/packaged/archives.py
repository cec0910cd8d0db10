"""Members of wheels, Debian packages and npm tarballs, read where they lie.

Nothing is unpacked to a disk, installed or imported. A `.deb` is an `ar` archive that
holds a tarball; see deb(5).
"""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fedjax_fm.datasets.table import DataFileError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60  # bytes: name 16, date 12, owner 6, group 6, mode 8, size 10, end 2
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError)
_COMPRESSION = {"": "", ".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst"}


class Archive(NamedTuple):
    """A package's archive, whose members are read by name.

    Attributes:
      path: of a `.whl`, `.zip`, `.deb`, `.tgz` or `.tar.gz`.

    Example:
      >>> import tempfile
      >>> folder = tempfile.TemporaryDirectory()
      >>> path = Path(folder.name) / "toy-1.0-py3-none-any.whl"
      >>> with zipfile.ZipFile(path, "w") as wheel:
      ...     wheel.writestr("toy/rows.csv", "a,b")
      >>> Archive(path).names()
      ['toy/rows.csv']
      >>> Archive(path).read("toy/rows.csv")
      b'a,b'
      >>> folder.cleanup()
    """

    path: Path

    def names(self) -> list[str]:
        """Names of all files inside, in the archive's order.

        Returns:
          Paths without "./" before them; folders and links are left out.

        Raises:
          DataFileError: not an archive of a kind that can be read.
        """
        return [name for name, _ in _members(self.path)]

    def read(self, name: str) -> bytes:
        """Reads one member.

        Args:
          name: as `names` gives it.

        Returns:
          The uncompressed bytes.

        Raises:
          DataFileError: there is no such member, or the archive cannot be read.
        """
        return self.read_all([name])[name]

    def read_all(self, names: list[str]) -> dict[str, bytes]:
        """Reads several members in one pass, which a compressed tarball needs.

        Args:
          names: as `names()` gives them.

        Returns:
          {name: uncompressed bytes}, in the order asked for.

        Raises:
          DataFileError: a member is missing, or the archive cannot be read.
        """
        wanted = set(names)
        found = {name: read() for name, read in _members(self.path) if name in wanted}
        if missing := [name for name in names if name not in found]:
            raise DataFileError(
                f"{self.path.name}: expected a member {missing[0]!r}, found none "
                f"({len(missing)} of {len(names)} members are missing)"
            )
        return {name: found[name] for name in names}


def _members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, function that reads it now) of every file in an archive."""
    try:
        if path.suffix in (".whl", ".zip"):
            yield from _zip_members(path)
        elif path.suffix == ".deb":
            tarball, compression = _data_of_deb(path)
            yield from _tar_members(tarball, compression)
        elif path.name.endswith((".tgz", ".tar.gz")):
            with path.open("rb") as file:
                yield from _tar_members(file, "gz")
        else:
            raise DataFileError(
                f"{path.name}: expected a .whl, .zip, .deb, .tgz or .tar.gz"
            )
    except _DAMAGED as error:
        raise DataFileError(f"{path.name}: cannot be read ({error})") from error


def _zip_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, _reader_of_zip(archive, info)


def _reader_of_zip(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> Callable[[], bytes]:
    def read() -> bytes:
        return archive.read(info)

    return read


def _tar_members(
    file: BinaryIO, compression: str
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """As a stream: to go back in a compressed tarball is to decompress it again."""
    mode = f"r|{compression}"
    with tarfile.open(fileobj=file, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for member in archive:
            if member.isfile():
                yield member.name.removeprefix("./"), _reader_of_tar(archive, member)


def _reader_of_tar(
    archive: tarfile.TarFile, member: tarfile.TarInfo
) -> Callable[[], bytes]:
    def read() -> bytes:
        file = archive.extractfile(member)
        assert file is not None  # it is a regular file
        return file.read()

    return read


def _data_of_deb(path: Path) -> tuple[BinaryIO, str]:
    """The tarball with a Debian package's files, and how it is compressed."""
    raw = path.read_bytes()
    if not raw.startswith(_AR_MAGIC):
        raise DataFileError(f"{path.name}: not a Debian package (no ar archive)")
    start = len(_AR_MAGIC)
    while start + _AR_HEADER <= len(raw):
        header = raw[start : start + _AR_HEADER]
        if header[58:] != b"`\n":
            raise DataFileError(f"{path.name}: no ar header at byte {start}")
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = int(header[48:58])
        start += _AR_HEADER
        if name.startswith("data.tar"):
            content = io.BytesIO(raw[start : start + size])
            return content, _compression(path, name.removeprefix("data.tar"))
        start += size + size % 2  # members begin at even offsets
    raise DataFileError(f"{path.name}: a Debian package without data.tar")


def _compression(path: Path, suffix: str) -> str:
    """How `tarfile` calls a compression; an error where this Python cannot read it."""
    if suffix not in _COMPRESSION:
        raise DataFileError(f"{path.name}: data.tar{suffix} is of an unknown kind")
    kind = _COMPRESSION[suffix]
    if kind == "zst" and "zst" not in tarfile.TarFile.OPEN_METH:
        raise DataFileError(
            f"{path.name}: data.tar.zst needs Python 3.14 or later, whose standard "
            "library reads Zstandard"
        )
    return kind
