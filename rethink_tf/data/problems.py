"""What is wrong with annotations, counted by kind."""

from collections import Counter

from absl import logging


class Problems:
  """What was left out or changed: reason -> number of annotations, with an example of each."""

  def __init__(self, counts: dict[str, int] | None = None) -> None:
    self.counts = Counter(counts or {})
    self._examples: dict[str, str] = {}

  def add(self, reason: str, count: int, example: str) -> None:
    self.counts[reason] += count
    self._examples.setdefault(reason, example)

  def log(self, name: str) -> None:
    """One warning with all the counts, or nothing."""
    if self.counts:
      logging.warning('%s: annotations left out or changed: %s', name, '; '.join(
          f'{count} {reason}' + (f' (e.g. {self._examples[reason]})' if reason in self._examples else '')
          for reason, count in self.counts.most_common()))
