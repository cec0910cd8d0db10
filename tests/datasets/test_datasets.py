"""The shipped data is what its README says, and a loader refuses anything else."""

import hashlib
import itertools
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedjax_fm.datasets import DataFileError, Table, load_sentiment, load_shakespeare
from fedjax_fm.datasets import table as table_module
from fedjax_fm.datasets.sentiment import SOURCES, duplicate_key, read_sentences
from fedjax_fm.population.splits import assert_disjoint, split_by_group

# domain: sentences, groups, share with a rating above zero; from the README of the data
README = {
    "tweets": (4200, 4200, 0.69),
    "amazon": (3708, 300, 0.57),
    "movies": (10605, 10605, 0.49),
    "editorials": (5190, 498, 0.42),
}


@pytest.fixture(scope="module")
def sentiment() -> Table:
    return load_sentiment()


@pytest.fixture(scope="module")
def shakespeare() -> Table:
    return load_shakespeare()


@pytest.fixture
def files_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped files that a test may damage."""
    copy = tmp_path / "files"
    shutil.copytree(str(table_module.FILES_ROOT), copy)
    monkeypatch.setattr(table_module, "FILES_ROOT", copy)
    return copy


@pytest.mark.parametrize("domain", README)
def test_a_domain_before_dropping_has_the_counts_of_the_readme(domain: str) -> None:
    sentences = read_sentences(domain)
    n_rows, n_groups, share = README[domain]
    assert len(sentences) == n_rows
    assert len({sentence.group for sentence in sentences}) == n_groups
    assert np.mean([sentence.rating > 0 for sentence in sentences]) == pytest.approx(
        share, abs=0.01
    )
    assert all(
        -4.0 <= sentence.rating <= 4.0 and sentence.text.strip()
        for sentence in sentences
    )


def test_an_unknown_domain_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"domain='news'"):
        read_sentences("news")


def test_every_dropped_sentence_is_counted(sentiment: Table) -> None:
    provenance = sentiment.provenance
    assert provenance["rows"] == len(sentiment)
    assert provenance["dropped"] == {
        "zero_rating": 383,
        "conflicting_duplicate": 12,
        "repeated_duplicate": 132,
    }
    assert len(sentiment) + sum(provenance["dropped"].values()) == 23703


def test_kept_rows_are_the_first_of_each_text_in_file_order(sentiment: Table) -> None:
    signed = [
        s for domain in SOURCES for s in read_sentences(domain) if s.rating != 0.0
    ]
    labels: dict[str, set[bool]] = {}
    for sentence in signed:
        labels.setdefault(duplicate_key(sentence.text), set()).add(sentence.rating > 0)
    expected, seen = [], set()
    for sentence in signed:
        key = duplicate_key(sentence.text)
        if len(labels[key]) == 1 and key not in seen:
            expected.append(sentence.text)
        seen.add(key)
    assert sentiment["text"].tolist() == expected


def test_sentiment_columns_have_the_promised_types(sentiment: Table) -> None:
    assert list(sentiment.columns) == ["text", "label", "rating", "domain", "group"]
    assert sentiment["text"].dtype == object
    assert sentiment["label"].dtype == np.int32
    assert sentiment["rating"].dtype == np.float32
    assert set(sentiment["domain"].tolist()) == set(README)
    np.testing.assert_array_equal(
        sentiment["label"], (sentiment["rating"] > 0).astype(np.int32)
    )
    assert (sentiment["rating"] != 0).all()


def test_a_group_lies_in_one_domain(sentiment: Table) -> None:
    domain_of_group = [group.split("/")[0] for group in sentiment["group"].tolist()]
    assert domain_of_group == sentiment["domain"].tolist()


def test_entities_are_decoded_and_none_is_left(sentiment: Table) -> None:
    texts = sentiment["text"].tolist()
    assert any("last night & the love was so strong" in text for text in texts)
    assert any(
        "conveniently, lying on bed & phone" in text for text in texts
    )  # escaped twice in the file
    assert not any(
        entity in text
        for text in texts
        for entity in ("&amp;", "&lt;", "&gt;", "&#38;")
    )


def test_no_text_occurs_in_two_splits(sentiment: Table) -> None:
    splits = split_by_group(
        sentiment["group"],
        {"train": 0.8, "validation": 0.1, "test": 0.1},
        seed=0,
        strata=sentiment["domain"],
    )
    assert_disjoint(**splits)
    keys = [
        {duplicate_key(text) for text in sentiment["text"][rows]}
        for rows in splits.values()
    ]
    groups = [set(sentiment["group"][rows].tolist()) for rows in splits.values()]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not keys[first] & keys[second]
        assert not groups[first] & groups[second]
    for domain in README:
        n_rows = np.sum(sentiment["domain"] == domain)
        shares = [
            np.sum(sentiment["domain"][rows] == domain) / n_rows
            for rows in splits.values()
        ]
        assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_shakespeare_has_the_counts_of_the_readme(shakespeare: Table) -> None:
    assert list(shakespeare.columns) == ["play", "role", "client", "speech"]
    assert len(shakespeare) == shakespeare.provenance["rows"] == 27708
    assert len(set(shakespeare["play"].tolist())) == 36
    clients, speeches = np.unique(shakespeare["client"], return_counts=True)
    assert len(clients) == 1056
    assert speeches.min() == 2


def test_shakespeare_restores_line_breaks_and_keeps_the_order(
    shakespeare: Table,
) -> None:
    assert shakespeare["client"][:3].tolist() == [
        f"alls_well_that_ends_well/{role}" for role in ("COUNTESS", "BERTRAM", "LAFEU")
    ]
    assert shakespeare["speech"][1].splitlines() == [
        "And I in going, madam, weep o'er my father's death anew;",
        "but I must attend his majesty's command, to whom I am now in",
        "ward, evermore in subjection.",
    ]
    assert not any("\\" in speech for speech in shakespeare["speech"])
    plays = shakespeare["play"].tolist()
    assert sum(first != second for first, second in itertools.pairwise(plays)) == 35


def test_provenance_says_where_the_rows_come_from(
    sentiment: Table, shakespeare: Table
) -> None:
    for table, licence in ((sentiment, "MIT"), (shakespeare, "CC BY 2.5")):
        provenance = table.provenance
        assert {
            "name",
            "kind",
            "citation",
            "licence",
            "sha256",
            "rows",
            "dropped",
        } == set(provenance)
        assert provenance["kind"] == "real"
        assert licence in provenance["licence"]
        folder = table_module.FILES_ROOT / provenance["name"]
        assert (folder / "README.md").is_file()
    assert "Permission is hereby granted" in (
        table_module.FILES_ROOT / "vader_icwsm2014" / "LICENSE"
    ).read_text(encoding="utf-8")


def test_combined_hash_is_that_of_the_sha256sum_listing(sentiment: Table) -> None:
    lines = []
    for source in SOURCES.values():
        packed = (
            table_module.FILES_ROOT / source.folder / f"{source.name}.xz"
        ).read_bytes()
        lines.append(
            f"{hashlib.sha256(lzma.decompress(packed)).hexdigest()}  {source.name}\n"
        )
    assert (
        sentiment.provenance["sha256"]
        == hashlib.sha256("".join(lines).encode()).hexdigest()
    )


def test_a_changed_file_is_refused(files_copy: Path) -> None:
    path = files_copy / "vader_icwsm2014" / "tweets.tsv.xz"
    raw = lzma.decompress(path.read_bytes()).replace(b"blessed", b"cursed!")
    path.write_bytes(lzma.compress(raw))
    with pytest.raises(DataFileError) as error:
        load_sentiment()
    for part in (
        "tweets.tsv",
        SOURCES["tweets"].sha256,
        hashlib.sha256(raw).hexdigest(),
        "reinstall fedjax_fm",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "missing"])
def test_a_damaged_or_missing_file_is_refused(files_copy: Path, damage: str) -> None:
    path = files_copy / "shakespeare" / "speeches.tsv.xz"
    packed = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flip":
        packed[len(packed) // 2] ^= 1
        path.write_bytes(packed)
    else:
        path.write_bytes(packed[: len(packed) // 2] if damage == "cut" else b"")
    with pytest.raises(
        DataFileError,
        match=r"speeches\.tsv\.xz: expected sha256 552ec1.*reinstall fedjax_fm",
    ):
        load_shakespeare()


def make_table() -> Table:
    return Table(
        {"text": np.array(["a", "b", "c"], dtype=object), "label": np.array([0, 1, 1])},
        {"name": "toy", "rows": 3},
    )


def test_an_unknown_column_names_the_columns_and_the_nearest() -> None:
    with pytest.raises(
        KeyError, match=r"'lable'.*\['text', 'label'\].*did you mean 'label'"
    ):
        make_table()["lable"]
    with pytest.raises(KeyError) as error:
        make_table()["zzz"]
    assert "did you mean" not in str(error.value)


def test_select_takes_rows_in_the_order_asked_and_keeps_the_provenance() -> None:
    selected = make_table().select([2, 0]).select(np.array([0]))
    assert selected["text"].tolist() == ["c"]
    assert len(selected) == 1
    assert selected.provenance == {"name": "toy", "rows": 1, "selected_from": 3}
    assert len(make_table().select([])) == 0


def test_select_refuses_masks_and_rows_outside() -> None:
    with pytest.raises(TypeError, match="flatnonzero"):
        make_table().select(np.array([True, False, True]))
    for outside in (3, -1):
        with pytest.raises(IndexError, match=rf"\[0, 3\), got {outside}"):
            make_table().select([outside])


def test_a_table_cannot_be_edited_and_leaves_the_callers_array_alone() -> None:
    labels = np.array([0, 1])
    table = Table({"label": labels}, {})
    with pytest.raises(ValueError, match="read-only"):
        table["label"][0] = 1
    labels[0] = 7  # the caller's own array stays writable


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"a": np.zeros(2), "b": np.zeros(3)},
        {"a": np.zeros((2, 2))},
        {"a": np.array(1.0)},
    ],
)
def test_columns_of_other_shapes_are_refused(columns: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Table(columns, {})
