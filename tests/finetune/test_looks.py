"""How often a run is scored, against counts of rows by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedjax_fm.finetune.looks import planned, rows_a_round, told
from fedjax_fm.finetune.settings import Settings


def data_of(judged, clients=(8, 8, 8, 8)):
    def rows(n):
        return {"x": np.zeros(n)}

    return SimpleNamespace(judged=[rows(judged)], train=[rows(n) for n in clients])


@pytest.mark.parametrize("rounds", [1, 7, 20, 100, 333])
@pytest.mark.parametrize("judged", [1, 40, 512, 5000])
def test_the_share_is_counted_and_kept_under_a_tenth(rounds, judged):
    found = planned(Settings(), data_of(judged), rounds, rows_a_round=64)
    looked = [r for r in range(1, rounds + 1) if r % found.every == 0 or r == rounds]
    assert found.count == len(looked) <= 10
    cost = 0.5 * judged * len(looked)
    assert found.share == pytest.approx(cost / (cost + 64 * rounds))
    assert found.share <= 0.1 or found.count == 1
    # One look more would be too many, in number or in cost.
    if found.every > 1:
        n = len([r for r in range(1, rounds + 1) if r % (found.every - 1) == 0])
        n += rounds % (found.every - 1) > 0
        assert n > 10 or 0.5 * judged * n > 64 * rounds / 9


def test_few_rows_are_scored_ten_times_and_as_asked_where_asked():
    assert planned(Settings(), data_of(8), 100, rows_a_round=64).every == 10
    # 6400 / 9 = 711 rows are two times 0.5 * 512 and a part of a third.
    assert planned(Settings(), data_of(512), 100, rows_a_round=64).every == 50
    asked = planned(Settings(every=1), data_of(512), 100, rows_a_round=64)
    assert (asked.every, asked.count) == (1, 100)
    assert asked.share == pytest.approx(0.8)
    assert "100 times a seed, about 80 % of the cost" in told(asked)


def test_rows_of_a_round():
    settings = Settings(cohort=3, local_steps=5, batch_size=2)
    assert rows_a_round(settings, data_of(1)) == 30
    assert (
        rows_a_round(Settings(cohort=9, local_steps=5, batch_size=2), data_of(1)) == 40
    )
    settings = Settings(cohort=2, epochs=3)
    assert rows_a_round(settings, data_of(1, (4, 8, 12))) == 2 * 3 * 8
