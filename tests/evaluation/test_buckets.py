"""Length buckets visit every row once and cut no token off."""

import numpy as np
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
