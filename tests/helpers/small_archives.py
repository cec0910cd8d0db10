"""Small packages of the layouts that registries serve, made by hand."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from fedjax_fm.datasets.packaged import sources
from fedjax_fm.datasets.packaged.sources import SOURCES, Release


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarball(members: dict[str, bytes], compression: str, before: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:
        folder = tarfile.TarInfo(f"{before}folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        link = tarfile.TarInfo(f"{before}link")
        link.type, link.linkname = tarfile.SYMTYPE, "folder"
        archive.addfile(link)
        for name, content in members.items():
            info = tarfile.TarInfo(f"{before}{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def npm(path: Path, members: dict[str, bytes]) -> Path:
    path.write_bytes(tarball(members, "gz"))
    return path


def ar(members: dict[str, bytes]) -> bytes:
    """The container of deb(5); members of odd length are followed by a line break."""
    packed = b"!<arch>\n"
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        packed += header.encode() + content + b"\n" * (len(content) % 2)
    return packed


def deb(path: Path, members: dict[str, bytes], compression: str = "xz") -> Path:
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tarball({"control": b"Package: toy\n"}, "gz") + b"\0",  # odd
        f"data.tar.{compression}": tarball(members, compression, "./"),
    }
    path.write_bytes(ar(parts))
    return path


MAKERS = {"pypi": wheel, "debian": deb, "npm": npm}


def register(monkeypatch, folder: Path, name: str, members: dict[str, bytes]) -> Path:
    """A small archive in a cache, in the place of a source's own; returns its path."""
    source = SOURCES[name]
    path = folder / source.releases[0].file
    MAKERS[source.registry](path, members)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    release = Release("0-toy", path.name, sha256)
    monkeypatch.setitem(SOURCES, name, source._replace(releases=(release,)))
    monkeypatch.setenv(sources.CACHE_VARIABLE, str(folder))
    return path


def needs(name: str) -> None:
    """Skips a test where the package itself was not fetched."""
    if not sources.is_fetched(name):
        pytest.skip(f"{name} was not fetched: fedjax-fm fetch {name}")
