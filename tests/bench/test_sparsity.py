"""What `bench.sparsity` prints: a tiny model, numbers by hand where there are some."""

import pytest

from fedjax_fm.experiments.bench import sparsity
from fedjax_fm.experiments.bench.sparsity_cases import MASKED, ROWS, SMALLER, Sizes

SIZES = Sizes(layers=4, hidden=16, heads=2, batch=2, length=4)
KERNELS = 4 * (4 * 16 * 16 + 2 * 16 * 64)
OTHERS = 4 * (4 * 16 + 64 + 16 + 4 * 16)  # biases and norms of the layers


@pytest.fixture(scope="module")
def found():
    made = {row.name: row.make(SIZES) for row in ROWS}
    return {k: sparsity.measured(case, SIZES, 1, False) for k, case in made.items()}


def test_bytes_and_parameters_of_masks(found):
    """A quarter of each kernel; a mask that everybody has does not travel again."""
    dense = found["FedAvg"]
    head = dense.parameters - KERNELS - OTHERS
    assert dense.up == dense.down == 4 * dense.parameters
    assert 0 < head < 1000
    kept = KERNELS // 4 + OTHERS + head
    for name in ("gradual pruning", "PruneFL", "FedTiny"):
        assert found[name].parameters == kept, name
        assert found[name].up == found[name].down == 4 * kept, name
    assert found["lottery ticket"].down == 4 * kept + KERNELS // 8
    # Scores travel, too, and nothing is left out.
    assert found["movement pruning, entries"].up == dense.up + 4 * KERNELS


def test_masks_are_coded_below_a_bit(found):
    """A quarter of ones: H2(1/4) = 0.811 bits, and 32 for the law."""
    for name in (
        "gradual pruning",
        "lottery ticket",
        "PruneFL",
        "LotteryFL",
        "FedTiny",
    ):
        assert 0.811 <= found[name].coded < 0.811 + 64 / 1024, name
    assert found["FedAvg"].coded is None


def test_what_is_taken_out_is_smaller(found):
    whole, cut = (found[row.name] for row in ROWS[-4:-2])
    assert ROWS[-3].kind == SMALLER
    assert cut.parameters < found["FedAvg"].parameters
    assert cut.products < 0.8 * found["FedAvg"].products
    assert cut.memory < found["FedAvg"].memory
    masked = [found[row.name] for row in ROWS if row.kind == MASKED]
    assert all(one.products >= found["FedAvg"].products for one in masked)
    assert whole.products >= found["FedAvg"].products


def test_the_command_writes_its_table(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("a <!-- sparsity --> <!-- end of sparsity --> b", encoding="utf-8")
    sparsity.main(["--smoke", str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("a <!-- sparsity -->")
    assert text.count("\n| ") == len(ROWS) + 1
    assert "masked, not faster" in text
    assert "take 52.3 % of the dense bytes" in text  # 16.75 of 32 bits


def test_a_page_without_the_place_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="has no place for it"):
        sparsity.put_into(page, "sparsity", "x")
