"""The filters, reason by reason, against plain counts and on texts that are made."""

import dataclasses
import math

import numpy as np
import pytest
from bad_values import BAD
from hypothesis import given
from hypothesis import strategies as st

from fedjax_fm.datasets.quality import (
    INSTRUCTION,
    WEB,
    Rules,
    correct_lines,
    filter_texts,
    first_reason,
)
from fedjax_fm.datasets.quality.measures import measured, repeated_ngrams, top_ngram

NOUNS = [
    "lark",
    "rose",
    "king",
    "moon",
    "sword",
    "ship",
    "river",
    "storm",
    "tower",
    "garden",
    "harbour",
    "winter",
]
OFF = Rules(
    **{
        field.name: (
            () if "ngrams" in field.name else 0 if "least" in field.name else math.inf
        )
        for field in dataclasses.fields(Rules)
    }
)


def plain(n=80, seed=0):
    """Words that break no rule, with all stop words."""
    random = np.random.default_rng(seed)
    stop = ["the", "be", "to", "of", "and", "that", "have", "with"]
    words = [f"{x}{i}" for i, x in enumerate(random.choice(NOUNS, n - 8))]
    return " ".join(stop + words)


def test_a_plain_text_stays_and_its_bounds_are_sharp():
    assert first_reason(plain()) is None
    assert first_reason(plain(50)) is None
    assert first_reason(plain(49)) == "few words"


BROKEN = {
    "few words": "to be or not to be",
    "many words": (plain(), {"most_words": 79}),
    "short words": " ".join(["of to"] * 10 + [f"a{i}" for i in range(40)]),
    "long words": "the of " + " ".join(f"extraordinarily{i}" for i in range(60)),
    "symbols": plain() + " #" * 10,
    "bullets": "\n".join(f"• {plain(seed=i)}" for i in range(3)),
    "ellipses": f"{plain()} ...\n{plain(seed=1)}",
    "few letters": plain(60) + " 1234" * 20,
    "few stop words": " ".join(f"{NOUNS[i % 12]}{i}" for i in range(60)),
    "repeated paragraphs": "\n\n".join(["one of the"] * 2 + [plain()] + ["one of the"] * 2),
    "repeated lines": "\n".join(["one of the"] * 3 + [plain()]),
    "characters of repeated lines": "\n".join([plain(70)] * 2 + [plain(30, k) for k in range(4)]),
    "the most frequent run of 2 words": plain(60) + " lovely garden" * 15,
    "the most frequent run of 3 words": (
        plain(60) + " a most lovely garden of" * 12,
        {"top_ngrams": ((3, 0.18),)},
    ),
    "repeated runs of 5 words": (
        f"{plain(60)} " + " and ".join([plain(30, 4)] * 2),
        {"top_ngrams": ()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", BROKEN)
def test_each_reason_is_found_and_can_be_switched_off(reason):
    made = BROKEN[reason]
    text, changed = made if isinstance(made, tuple) else (made, {})
    assert first_reason(text, dataclasses.replace(WEB, **changed)) == reason
    assert first_reason(text, OFF) is None


def test_gophers_numbers():
    web = dataclasses.asdict(WEB)
    assert (web["least_words"], web["most_words"]) == (50, 100_000)
    assert (web["least_mean_length"], web["most_mean_length"]) == (3, 10)
    assert (web["most_symbols"], web["most_bullets"], web["most_ellipses"]) == (
        0.1,
        0.9,
        0.3,
    )
    assert (web["least_alphabetic"], web["least_stop_words"]) == (0.8, 2)
    assert dict(web["top_ngrams"]) == {2: 0.20, 3: 0.18, 4: 0.16}
    falling = {n: round(0.20 - 0.01 * n, 2) for n in range(5, 11)}
    assert dict(web["repeated_ngrams"]) == falling
    lines = (web["most_repeated_lines"], web["most_repeated_line_characters"])
    assert lines == (0.3, 0.2)
    assert (web["most_uppercase"], web["short_line"], web["most_removed"]) == (
        0.5,
        10,
        0.05,
    )


WORDS = st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=14)


@given(WORDS, st.integers(1, 4))
def test_the_most_frequent_run_by_a_plain_loop(words, n):
    runs = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    most = max((runs.count(run) for run in runs), default=0)
    sizes = [most * len(run) for run in runs if runs.count(run) == most > 1]
    assert top_ngram(words, n) == max(sizes, default=0)


@given(WORDS, st.integers(1, 4))
def test_repeated_runs_by_a_plain_loop(words, n):
    found, place = 0, 0
    before: list[list[str]] = []
    while place <= len(words) - n:
        if words[place : place + n] in before:
            found += len("".join(words[place : place + n]))
            place += n
        else:
            before.append(words[place : place + n])
            place += 1
    assert repeated_ngrams(words, n) == found <= len("".join(words))


def test_measures_by_hand():
    found = measured("• the end…\n\n# 42 of\n• the end…")
    assert found.words == ["•", "the", "end…", "#", "42", "of", "•", "the", "end…"]
    assert found.symbols == 2 / 9
    assert (found.bullets, found.ellipses, found.alphabetic) == (2 / 3, 2 / 3, 5 / 9)
    assert found.stop_words == 2
    assert found.lines.share == 1 / 3
    assert found.lines.characters == 10 / 30


# Lines


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("THE WHOLE LINE", None),
        ("1234567", None),
        ("3 likes", None),
        ("1.2k Views!", None),
        ("Menu", None),
        ("three likes of mine", "three likes of mine"),
        ("He read more... and slept", "He read more... and slept"),
        ("It was cold. Read more...", "It was cold."),
        ("Sign-in here or there", "here or there"),
        ("two items in cart now", "two now"),
        ("Read more...", None),
        ("Sign-in " + "and on " * 10, "Sign-in " + "and on " * 10),
        ("half OF IT up", "half OF IT up"),
    ],
)
def test_lines(line, left):
    before, behind = "A line that stays.", "Another one."
    found = correct_lines("\n".join([before, line, behind]))
    kept = [before, behind] if left is None else [before, left, behind]
    assert found.text == "\n".join(kept)
    flagged = len(line.split()) if left != line else 0
    assert found.removed == flagged / (6 + len(line.split()))


LINES = st.lists(
    st.lists(
        st.sampled_from(
            [
                "the",
                "SEA",
                "3",
                "likes",
                "sign-in",
                "read more...",
                "items in cart",
                "",
                "x",
            ]
        ),
        max_size=7,
    ).map(" ".join),
    max_size=6,
).map("\n".join)


@given(LINES)
def test_lines_are_corrected_once(text):
    once = correct_lines(text)
    twice = correct_lines(once.text)
    assert twice.text == once.text
    assert twice.removed == 0
    assert 0 <= once.removed <= 1


# All filters


@given(st.lists(LINES, max_size=5), st.sampled_from([WEB, INSTRUCTION, OFF]))
def test_what_stays_stays_once_more_and_each_text_is_looked_at_alone(texts, rules):
    found = filter_texts(texts, rules)
    again = filter_texts(found.texts, rules)
    assert again.texts == found.texts
    assert not again.reasons
    assert len(found.texts) + sum(found.reasons.values()) == len(texts)
    one_by_one = [x for text in texts for x in filter_texts([text], rules).texts]
    assert one_by_one == found.texts


def test_a_page_with_many_buttons_goes_and_one_with_few_is_mended():
    page = plain() + "\n3 likes"
    found = filter_texts([page, page + "\nSIGN UP HERE NOW"])
    assert found.texts == [plain()]
    assert found.reasons == {"lines that say nothing": 1}
    assert found.kept.tolist() == [0]


def test_instructions_may_be_short():
    texts = ["What is 2 + 2?", "4", ""]
    found = filter_texts(texts, INSTRUCTION)
    assert found.texts == texts[:2]
    assert found.reasons == {"few words": 1}
    assert filter_texts(texts).texts == []


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(Rules) if "ngrams" not in f.name]
)
@pytest.mark.parametrize("value", [*BAD["real or infinite"], -0.1])
def test_bad_bounds(name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        Rules(**{name: value})


def test_bad_values():
    with pytest.raises(TypeError, match="top_ngrams as pairs"):
        Rules(top_ngrams=[(2, 0.2)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="repeated_ngrams"):
        Rules(repeated_ngrams=((0, 0.2),))
    with pytest.raises(TypeError, match="expected several texts"):
        filter_texts("one text")
    with pytest.raises(TypeError, match="rules"):
        filter_texts(["text"], "web")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected text"):
        first_reason(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected text"):
        correct_lines(3)  # type: ignore[arg-type]
