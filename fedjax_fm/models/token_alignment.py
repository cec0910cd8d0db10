"""Two tokenizers' views of the same texts: which token stands for which, and where.

Wan et al., Knowledge Fusion of Large Language Models, 2024, arXiv 2401.10491, whose
rules FedMKT takes: tokens are matched by the least edit distance of their texts, and
sequences by dynamic time warping.
"""

from collections.abc import Callable, Sequence

import numpy as np

MARKS = (("##", ""), ("\u0120", " "), ("\u2581", " "), ("\u010a", "\n"))


def token_text(token: str) -> str:
    """A token without its tokenizer's marks: "##ing" -> "ing", "▁the" -> " the".

    Args:
      token: as the vocabulary has it.

    Example:
      >>> token_text("##ing"), token_text("\u2581the")
      ('ing', ' the')
    """
    for mark, text in MARKS:
        token = token.replace(mark, text)
    return token


def edit_distances(word: str, others: Sequence[str]) -> np.ndarray:
    """How many letters have to be put in, taken out or changed, of each pair.

    Args:
      word: one text.
      others: texts.

    Returns:
      i32[len(others)].

    References:
      Levenshtein 1966.

    Example:
      >>> edit_distances("kitten", ["sitting", "kitten", ""]).tolist()
      [3, 0, 6]
    """
    longest = max(map(len, others), default=0)
    letters = np.zeros((len(others), longest), np.int32)
    for row, other in zip(letters, others, strict=True):
        row[: len(other)] = [ord(letter) for letter in other]
    # One row of the table for all texts: what it takes to make their first j letters.
    table = np.tile(np.arange(longest + 1, dtype=np.int32), (len(others), 1))
    for i, letter in enumerate(word):
        before, table = table, np.empty_like(table)
        table[:, 0] = i + 1
        changed = before[:, :-1] + (letters != ord(letter))
        best = np.minimum(changed, before[:, 1:] + 1)
        for j in range(longest):
            table[:, j + 1] = np.minimum(best[:, j], table[:, j] + 1)
    lengths = [len(other) for other in others]
    return table[np.arange(len(others)), lengths]


def match_vocabulary(
    source: Sequence[str],
    target: Sequence[str],
    text_of: Callable[[str], str] = token_text,
) -> np.ndarray:
    """The target's token that is nearest to each of the source's.

    The same text if it is there, else the least edit distance, the first of several.
    A vocabulary of 50,000 takes about 20 ms for each token without a counterpart: keep
    the result.

    Args:
      source: V tokens, in the order of their numbers.
      target: W tokens.
      text_of: the text of a token.

    Returns:
      i32[V], numbers below W.

    Raises:
      ValueError: a vocabulary without tokens.

    References:
      Wan et al. 2024, arXiv 2401.10491.

    Example:
      >>> match_vocabulary(["\u2581cat", "s", "dogs"], ["s", " cat", "dog"]).tolist()
      [1, 0, 2]
    """
    if not len(source) or not len(target):
        raise ValueError(
            f"expected tokens in both vocabularies, got {len(source)} and {len(target)}"
        )
    texts = [text_of(token) for token in target]
    known: dict[str, int] = {}
    for number, text in enumerate(texts):
        known.setdefault(text, number)
    found = np.zeros(len(source), np.int32)
    for number, token in enumerate(source):
        text = text_of(token)
        if text not in known:
            known[text] = int(np.argmin(edit_distances(text, texts)))
        found[number] = known[text]
    return found


def warp(target: Sequence[str], source: Sequence[str]) -> np.ndarray:
    """The source's position that belongs to each of the target's.

    The path through both that starts and ends together, never goes back and has the
    least sum of edit distances; of several positions on it the nearest token's, and
    the first of these. Of paths of the same sum the one that goes on in both.

    Args:
      target: texts of T tokens.
      source: texts of S tokens, of the same text.

    Returns:
      i32[T]; -1 where the source has no token.

    References:
      Sakoe and Chiba 1978; Wan et al. 2024, arXiv 2401.10491.

    Example:
      >>> warp(["un", "like", "ly"], ["unlike", "ly"]).tolist()
      [0, 0, 1]
    """
    t, s = len(target), len(source)
    if not s:
        return np.full(t, -1, np.int32)
    costs = np.array([edit_distances(text, source) for text in target], np.float64)
    sums = np.full((t + 1, s + 1), np.inf)
    sums[0, 0] = 0
    for i in range(t):
        for j in range(s):
            ways = (sums[i, j], sums[i, j + 1], sums[i + 1, j])
            sums[i + 1, j + 1] = costs[i, j] + min(ways)
    best = np.full(t, -1, np.int32)
    i, j = t - 1, s - 1
    while i >= 0:
        if best[i] < 0 or costs[i, j] <= costs[i, best[i]]:
            best[i] = j
        ways = (sums[i, j], sums[i, j + 1], sums[i + 1, j])
        step = int(np.argmin(ways))
        i, j = i - (step != 2), j - (step != 1)
    return best


def align_texts(
    target_ids: np.ndarray,
    source_ids: np.ndarray,
    target: Sequence[str],
    source: Sequence[str],
    *,
    ignored: int = -100,
    text_of: Callable[[str], str] = token_text,
) -> np.ndarray:
    """`warp` of every text of a set that both tokenizers have split.

    Args:
      target_ids: i32[n, T], numbers of the target's tokens, `ignored` for none.
      source_ids: i32[n, S], of the source's.
      target: its vocabulary.
      source: its vocabulary.
      ignored: the number of positions that do not count.
      text_of: the text of a token.

    Returns:
      i32[n, T]: positions below S; -1 where nothing belongs together.

    Raises:
      ValueError: sets of different size.

    Example:
      >>> align_texts(np.array([[0, 1, -100]]), np.array([[0]]), "ab", ["ab"]).tolist()
      [[0, 0, -1]]
    """
    if len(target_ids) != len(source_ids):
        raise ValueError(
            f"expected the same texts twice, got {len(target_ids)} and "
            f"{len(source_ids)}"
        )
    found = np.full(np.shape(target_ids), -1, np.int32)
    for row, mine, theirs in zip(found, target_ids, source_ids, strict=True):
        places = np.flatnonzero(np.asarray(mine) != ignored)
        others = np.flatnonzero(np.asarray(theirs) != ignored)
        texts = [text_of(target[int(mine[i])]) for i in places]
        source_texts = [text_of(source[int(theirs[i])]) for i in others]
        warped = warp(texts, source_texts)
        row[places] = others[warped] if len(others) else -1
    return found
