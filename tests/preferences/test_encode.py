"""Pairs and questions as arrays, and what is refused."""

import numpy as np
import pytest

from fedjax_fm.preferences import encode_pairs, encode_questions

PROMPT, GOOD, BAD = [5, 6, 7], [8], [9, 10]


def test_pairs():
    found = encode_pairs([PROMPT], [GOOD], [BAD], pad_token_id=0, eos_token_id=2)
    assert found["chosen_input_ids"].tolist() == [[5, 6, 7, 8, 2, 0]]
    assert found["chosen_attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0]]
    assert found["chosen_labels"].tolist() == [[-100, -100, -100, 8, 2, -100]]
    assert found["rejected_labels"].tolist() == [[-100, -100, -100, 9, 10, 2]]
    assert {column.dtype for column in found.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("given", "more", "error"),
    [
        (([PROMPT], [GOOD], [GOOD]), {}, "answers of pair 0 are equal"),
        (([PROMPT], [GOOD], [BAD]), {"length": 3}, "3 tokens and fills a row"),
        (([PROMPT], [GOOD], [BAD]), {"length": 4}, "pair 0 has 5 tokens"),
        (([PROMPT], [GOOD], []), {}, "got 1, 1 and 0"),
        (([], [], []), {}, "at least one"),
        (([PROMPT], [[]], [BAD]), {}, "without a token"),
        ((["text"], [GOOD], [BAD]), {}, "tokenizer first"),
        (([PROMPT], [[-3]], [BAD]), {}, "token id -3"),
    ],
)
def test_pairs_that_are_refused(given, more, error):
    with pytest.raises((TypeError, ValueError), match=error):
        encode_pairs(*given, pad_token_id=0, **more)


def test_questions():
    found = encode_questions([PROMPT, [4]], [GOOD, BAD], pad_token_id=0, eos_token_id=2)
    assert found["input_ids"].tolist() == [[5, 6, 7], [0, 0, 4]]
    assert found["answer_ids"].tolist() == [[8, 2, -100], [9, 10, 2]]
    assert found["question"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="expected 2 answers, one a prompt, got 1"):
        encode_questions([PROMPT, [4]], [GOOD], pad_token_id=0)
    with pytest.raises(ValueError, match="prompt 0 has 3 tokens; expected 1 to 2"):
        encode_questions([PROMPT], pad_token_id=0, length=2)
