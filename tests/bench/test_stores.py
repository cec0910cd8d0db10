"""The two store benchmarks at small sizes: both stores agree, and the files are streamed."""

from fedjax_fm.experiments.bench.stores import disk, stateful
from fedjax_fm.models import BertConfig


def test_stateful_stores_agree():
    config = BertConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    rows = list(stateful(24, (6,), config, rounds=2))
    assert [row.get("states") for row in rows] == ["device", "host", None]
    assert (
        rows[0]["bytes_of_states"]
        == rows[1]["bytes_of_states"]
        > 24 * 2 * 4 * 2 * 2 * 2 * 16 * 8
    )
    assert rows[2]["largest_difference"] < 1e-5
    assert 6 < rows[2]["clients_seen"] <= 18  # three cohorts of six


def test_examples_on_disk(tmp_path):
    row = disk(5000, tmp_path / "population")
    assert row["clients"] == row["cohort"] == 50
    assert row["bytes_on_disk"] == 5000 * 33 * 4
