"""Tagged sentences: a small corpus by hand, and the real one's published counts."""

import numpy as np
import pytest
from small_archives import needs, register

from fedjax_fm.datasets import load_brown, split_of
from fedjax_fm.datasets.packaged.brown import GENRES, base_tag
from fedjax_fm.datasets.table import DataFileError

NEWS = b"\n\n\tThe/at County/nn-tl won't/md* go/vb ./.\n\n\n\tAnd/or/cc ``/`` ./.\n"
FICTION = "\tThey're/ppss+ber déjà/fw-rb-tl here/rn ./.\n".encode()
MEMBERS = {
    "package/ck01": FICTION,
    "package/ca01": NEWS,
    "package/README": b"not/a text",
    "package/ci01": b"no/genre",
    "package/cats.txt": b"ca01 news",
}


def test_a_small_corpus(monkeypatch, tmp_path):
    register(monkeypatch, tmp_path, "brown", MEMBERS)
    table = load_brown()
    assert table["tokens"].tolist() == [
        ("The", "County", "won't", "go", "."),
        ("And/or", "``", "."),
        ("They're", "déjà", "here", "."),
    ]
    assert table["tags"].tolist() == [
        ("at", "nn", "md", "vb", "."),
        ("cc", "``", "."),
        ("ppss", "rb", "rn", "."),
    ]
    assert table["genre"].tolist() == ["news", "news", "fiction"]
    assert table["document"].tolist() == ["ca01", "ca01", "ck01"]
    assert table["split"].tolist() == [
        split_of(name) for name in ("ca01", "ca01", "ck01")
    ]
    assert table.provenance["tags"] == [".", "``", "at", "cc", "md", "nn", "ppss", "rb", "rn", "vb"]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("nn-tl-hl", "nn"), ("fw-in+at-tl", "in"), ("---hl", "--"), ("*-nc", "*"),
        ("bez*", "bez"), ("ppss+ber-n", "ppss"), ("pp$$", "pp$$"), ("(-hl", "("),
        ("do*-hl", "do"), ("fw-*", "*"),
    ],
)  # fmt: skip
def test_base_tags(tag, expected):
    assert base_tag(tag) == expected


def test_a_token_without_a_tag(monkeypatch, tmp_path):
    register(monkeypatch, tmp_path, "brown", {"package/cr09": b"The/at end\n"})
    with pytest.raises(DataFileError, match=r"cr09: expected word/tag, got 'end'"):
        load_brown()


def test_an_archive_without_texts(monkeypatch, tmp_path):
    register(monkeypatch, tmp_path, "brown", {"package/README": b""})
    with pytest.raises(DataFileError, match="no text such as package/ca01"):
        load_brown()


def test_the_real_one():
    needs("brown")
    table = load_brown()
    assert len(table) == 57_340
    assert sum(map(len, table["tokens"])) == 1_161_192
    assert [len(x) for x in table["tokens"]] == [len(x) for x in table["tags"]]
    genres, counts = np.unique(table["genre"], return_counts=True)
    found = dict(zip(genres.tolist(), counts.tolist(), strict=True))
    assert set(found) == set(GENRES.values())
    assert (found["science_fiction"], found["learned"]) == (948, 7734)
    # The manual's number of texts of each genre.
    texts = (44, 27, 17, 17, 36, 48, 75, 30, 80, 29, 24, 6, 29, 29, 9)
    for genre, count in zip(GENRES.values(), texts, strict=True):
        assert len(set(table["document"][table["genre"] == genre].tolist())) == count
    assert len(table.provenance["tags"]) == 92
    sides = {
        (str(d), str(s)) for d, s in zip(table["document"], table["split"], strict=True)
    }
    assert len(sides) == 500  # a document is on one side
