"""The error rate of studies that stop early, in a small version of results/early_stopping.md."""

import pytest

from tools import early_stopping
from tools.coverage import Study


@pytest.mark.parametrize('study', [Study(5, 5000, 2.3, 0.0, 1), Study(3, 100, 2.3, 0.0, 2), Study(8, 500, 1.0, 0.0, 1)],
                         ids=str)
def test_all_looks_together_are_wrong_in_at_most_5_percent(study):
  found = early_stopping.outcome(study, 4000, seed=1)
  assert 0.5 < found.wrong < 6.0  # a standard error of 0.35
  assert found.seeds < study.seeds


def test_a_difference_that_is_there_is_found_with_fewer_runs():
  found = early_stopping.outcome(Study(8, 5000, 0.3, -1.0, 2), 1000, seed=1)
  assert found.settled > 95 and found.wrong == 0 and found.seeds < 5 and found.settled_fixed >= found.settled


def test_the_bootstrap_itself_gives_the_same_rates():
  study = Study(4, 500, 0.3, -3.0, 1)
  drawn, bootstrapped = early_stopping.outcome(study, 4000, 1), early_stopping.exact(study, 100, 1)
  assert bootstrapped.settled == pytest.approx(drawn.settled, abs=15)
  assert bootstrapped.seeds == pytest.approx(drawn.seeds, abs=0.3)
