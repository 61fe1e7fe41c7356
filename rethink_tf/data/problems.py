"""Problems found in annotations, counted by reason."""

from collections import Counter

from absl import logging


class Problems:
  """Annotations that were dropped or changed: reason -> count, with an example of each."""

  def __init__(self, counts: dict[str, int] | None = None) -> None:
    self.counts = Counter(counts or {})
    self._examples: dict[str, str] = {}

  def add(self, reason: str, count: int, example: str) -> None:
    """Count `count` more annotations; the first example of each reason is kept."""
    self.counts[reason] += count
    self._examples.setdefault(reason, example)

  def log(self, name: str) -> None:
    """Log one warning with all counts, if there are any."""
    if self.counts:
      logging.warning('%s: annotations dropped or changed: %s', name, '; '.join(
          f'{count} {reason}' + (f' (e.g. {self._examples[reason]})' if reason in self._examples else '')
          for reason, count in self.counts.most_common()))
