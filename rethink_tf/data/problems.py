"""Problems found in annotations, counted by reason, with examples: one table for training, evaluation and inspect_data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from rethink_tf.data.categories import is_text

REPAIRED, LEFT_OUT, SUSPICIOUS = 'repaired', 'left out', 'suspicious'  # outcomes, in the order of the table
_EXAMPLES = 6  # that are kept for each reason
_NAMED = 2  # of these in the table
_ROWS = 12  # of the table


class Case(NamedTuple):
  """An example of a problem."""

  text: str  # file and id: '000001.jpg, annotation 12'
  image_id: int | None = None
  annotation_id: int | None = None
  box: tuple[float, ...] | None = None  # y0 x0 y1 x1 in pixels
  other: tuple[float, ...] | None = None  # of the annotation that it duplicates, or the extent of its mask
  label: str | None = None  # name of the category


class Problem(NamedTuple):
  """The count, outcome and examples of the problems of one reason."""

  outcome: str
  cases: list[Case]


class Problems:
  """Annotations that were repaired, left out or look wrong, by reason.

  Attributes:
    counts: reason -> number of annotations.
  """

  def __init__(self) -> None:
    self.counts: Counter[str] = Counter()
    self._problems: dict[str, Problem] = {}

  def add(self, reason: str, count: int, examples: str | Iterable[Case], outcome: str = LEFT_OUT) -> None:
    """Count `count` more annotations; the first examples of each reason are kept."""
    self.counts[reason] += count
    cases = self._problems.setdefault(reason, Problem(outcome, [])).cases
    cases += ([Case(examples)] if isinstance(examples, str) else list(examples))[:_EXAMPLES - len(cases)]

  def update(self, other: Problems) -> None:
    """Add all problems of another object."""
    for reason, (outcome, cases) in other.by_reason().items():
      self.add(reason, other.counts[reason], cases, outcome)

  def by_reason(self) -> dict[str, Problem]:
    """Return the problems in the order of the table: by outcome, then the most frequent first."""
    outcomes = (REPAIRED, LEFT_OUT, SUSPICIOUS)
    return dict(sorted(self._problems.items(), key=lambda item: (outcomes.index(item[1].outcome),
                                                                 -self.counts[item[0]])))

  def changed(self) -> dict[str, int]:
    """Return reason -> number of annotations that were repaired or left out."""
    return {reason: self.counts[reason] for reason, (outcome, _) in self._problems.items() if outcome != SUSPICIOUS}

  def log(self, name: str) -> None:
    """Log one warning with all counts, if there are any."""
    if self.counts:
      logging.warning('%s: annotations dropped or changed: %s', name, '; '.join(
          f'{count} {reason}' + ''.join(f' (e.g. {case.text})' for case in self._problems[reason].cases[:1])
          for reason, count in self.counts.most_common()))

  def to_json(self) -> dict[str, dict[str, Any]]:
    """Return reason -> outcome, count and examples."""
    return {reason: {'outcome': outcome, 'count': self.counts[reason], 'examples': [
        {field: value for field, value in case._asdict().items() if value is not None} for case in cases]}
        for reason, (outcome, cases) in self.by_reason().items()}

  @classmethod
  def from_json(cls, content: Mapping[str, Any]) -> Problems:
    """Inverse of to_json; a plain count in place of an object is accepted, without examples.

    Raises:
      TypeError: the content is not as to_json writes it.
    """
    problems = cls()
    for reason, entry in content.items():
      entry = {'count': entry} if type(entry) is int else entry
      try:
        outcome, count = entry.get('outcome', LEFT_OUT), entry['count']
        cases = [Case(**{**example, **{name: tuple(map(float, example[name])) for name in ('box', 'other')
                                       if name in example}}) for example in entry.get('examples', ())]
      except (AttributeError, LookupError, ValueError, OverflowError) as error:
        raise TypeError('a problem that is not as to_json writes it') from error
      if type(count) is not int or outcome not in (REPAIRED, LEFT_OUT, SUSPICIOUS) or not is_text(reason) or \
          not all(is_text(case.text) and isinstance(case.label, str | None)
                  and all(len(box) == 4 for box in (case.box, case.other) if box)
                  and all(type(id_) is int for id_ in (case.image_id, case.annotation_id) if id_ is not None)
                  for case in cases):
        raise TypeError('a problem without outcome, count or examples')
      problems.add(reason, count, cases, outcome)
    return problems


def table(splits: Sequence[tuple[str, Problems]]) -> list[str]:
  """Return one table of the problems of all splits, given as (title, problems): at most 15 lines; [] without any."""
  together = Problems()
  for _, problems in splits:
    together.update(problems)
  reasons = together.by_reason()
  if not reasons:
    return []
  shown = list(reasons)[:_ROWS] if len(reasons) > _ROWS + 1 else list(reasons)
  width = max(map(len, shown))
  titles = ' '.join(f'{title[:9]:>9}' for title, _ in splits)
  lines = [f'  {"outcome":10} {titles}  {"annotations":{width}}  e.g.']
  for reason in shown:
    cases = [case.text for case in reasons[reason].cases]
    lines.append(f'  {reasons[reason].outcome:10} '
                 + ' '.join(f'{problems.counts[reason] or "-":>9}' for _, problems in splits)
                 + f'  {reason:{width}}  {"; ".join(cases[:_NAMED])}{"; ..." if len(cases) > _NAMED else ""}'.rstrip())
  rest = list(reasons)[len(shown):]
  if rest:
    lines.append(f'  and {len(rest)} further reasons: {sum(together.counts[reason] for reason in rest)} annotations')
  return lines


def log_table(splits: Sequence[tuple[str, Problems]]) -> None:
  """Log the table of all splits as one warning, if there is anything to report."""
  lines = table(splits)
  if lines:
    logging.warning('annotations repaired, left out or suspicious (inspect_data shows them):\n%s', '\n'.join(lines))
