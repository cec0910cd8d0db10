"""Length buckets visit every row once and cut no token off."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_fm.evaluation.buckets import length_batches


@given(
    st.lists(st.integers(0, 17), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(1, 20),
)
def test_every_row_once_and_whole(lengths, batch_size, bucket):
    mask = (np.arange(17) < np.array(lengths)[:, None]).astype(int)
    seen, widths = [], []
    for width, rows, padded in length_batches(mask, batch_size, bucket):
        assert len(padded) == batch_size >= len(rows)
        assert padded[: len(rows)].tolist() == rows.tolist()
        assert set(padded.tolist()) == set(rows.tolist())
        assert mask[rows, width:].sum() == 0
        assert width == 17 or width % bucket == 0
        seen += rows.tolist()
        widths.append(width)
    assert sorted(seen) == list(range(len(lengths)))
    assert len(set(widths)) <= -(-17 // bucket)


MASKS = {
    "right": [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
    "left": [[0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1]],
    "holes": [[1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0]],
    "packed": [[1, 1, 2, 2, 0, 0], [1, 2, 3, 0, 0, 0]],
    "none": [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
    "flags": np.array([[True, True, False, False, False, False]] * 2),
}


@pytest.mark.parametrize("form", MASKS)
def test_no_token_is_cut_off_whatever_side_is_padded(form):
    mask, seen = np.asarray(MASKS[form]), []
    for width, rows, _ in length_batches(mask, batch_size=1, bucket=2):
        assert not mask[rows, width:].any()
        seen += rows.tolist()
    assert sorted(seen) == [0, 1]


@pytest.mark.parametrize("name", ["batch_size", "bucket"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None, np.nan])
def test_sizes_of_batches_and_buckets_are_checked(name, value):
    how = {"batch_size": 1, "bucket": 1, name: value}
    with pytest.raises((TypeError, ValueError), match=f"{name}="):
        next(length_batches(np.ones((2, 3)), **how))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"attention_mask of shape \[n, T\]"):
        next(length_batches(np.ones(4), 1, 1))
