"""A synthesiser: a program that stands for it, its refusals, and the real one."""

import shutil
import stat
import sys

import numpy as np
import pytest

from fedjax_fm.datasets import espeak, make_spoken_numbers, speak, split_of
from fedjax_fm.datasets.packaged.spoken import NUMBERS

# Writes as many samples as the text's number, as loud as the speed; knows two languages.
STAND_IN = f"""#!{sys.executable}
import sys, wave
words = sys.argv[1:]
if words == ["--version"]:
    print("eSpeak NG text-to-speech: 9.9  Data at: /somewhere")
    sys.exit()
given = dict(zip(words[:6:2], words[1:6:2]))
if given["-v"].split("+")[0] not in ("en", "es"):
    print("Error: The specified espeak-ng voice does not exist.", file=sys.stderr)
    sys.exit(1)
assert words[6] == "--"
with wave.open(given["-w"], "wb") as out:
    out.setparams((1, 2, 22050, 0, "NONE", ""))
    out.writeframes(int(given["-s"]).to_bytes(2, "little") * (5 + int(words[7])))
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "espeak-ng"
    path.write_text(STAND_IN, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_each_voice_says_each_number_at_each_speed(program):
    variants = ["m1", "f2", "zac"]
    how = {"speeds": [100, 200], "numbers": [7, 30], "program": program}
    table = make_spoken_numbers(["en", "es"], variants, **how)
    assert len(table) == 2 * 3 * 2 * 2
    assert sorted(set(table["voice"])) == sorted(
        f"{language}+{variant}" for language in ("en", "es") for variant in variants
    )
    for row in range(len(table)):
        number = int(table["number"][row])
        assert NUMBERS[table["label"][row]] == number
        assert len(table["sound"][row]) == 5 + number
        assert table["rate"][row] == 22050
        variant = str(table["voice"][row]).partition("+")[2]
        assert table["split"][row] == split_of(variant)
    louder = [float(sound[0] * 32768) for sound in table["sound"][:4]]
    assert louder == [100, 100, 200, 200]
    assert table.provenance["kind"] == "synthetic"
    assert table.provenance["program"] == "eSpeak NG text-to-speech: 9.9"


def test_what_it_does_not_say(program):
    with pytest.raises(ValueError, match=r"voice='xx\+m1': Error: The specified"):
        speak("7", "xx+m1", program=program)
    with pytest.raises(FileNotFoundError, match="apt-get install espeak-ng"):
        speak("7", "en", program="no-such-program")
    with pytest.raises(ValueError, match="speed"):
        speak("7", "en", speed=10, program=program)
    with pytest.raises(ValueError, match=r"expected numbers of .*, got 21"):
        make_spoken_numbers(["en"], ["m1"], numbers=[21], program=program)
    with pytest.raises(ValueError, match="at least one of languages"):
        make_spoken_numbers([], program=program)


def test_the_real_program():
    if shutil.which(espeak.PROGRAM) is None:
        pytest.skip("espeak-ng is not installed")
    one, rate = speak("17", "ru+m3")
    again, _ = speak("17", "ru+m3")
    np.testing.assert_array_equal(one, again)
    slower, _ = speak("17", "ru+m3", speed=100)
    other, _ = speak("17", "it+m3")
    assert rate == 22050
    assert 0.3 * rate < len(one) < len(slower)
    assert len(other) != len(one) or np.any(other != one)
    assert np.abs(one).max() > 0.1
