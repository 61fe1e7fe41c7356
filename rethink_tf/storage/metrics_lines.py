"""The lines of metrics.jsonl: parsing what may be half-written or edited, and the steps that a resumed run repeats."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from absl import logging

ON_DEMAND = 'on_demand'  # field of the lines of evaluations outside of training
STARTS = 'starts'  # field of the lines of another process than training: how often training had begun or resumed
_MOST_STEPS = 2**62


def parse(content: bytes, path: str) -> Iterator[tuple[float, dict[str, Any]]]:
  """Yield the lines of a file in order, each with a time to merge files by; invalid lines are skipped, with one
  warning.

  A valid line is a JSON object with an integer 'step' and, if it has a 'kind', text there.
  """
  now, skipped, first = -math.inf, 0, ''
  for number, raw in enumerate(content.split(b'\n'), 1):
    if not raw.strip():
      continue
    try:
      line = json.loads(raw, parse_float=_finite, parse_int=_finite, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
      line = None
    reason = 'is incomplete' if line is None else _problem(line)
    if reason:
      skipped, first = skipped + 1, first or f'line {number} {reason}'
      continue
    time = line.get('time')
    now = max(now, time) if isinstance(time, (int, float)) and math.isfinite(time) else now
    yield now, line
  if skipped:
    logging.warning('%s: skipped %d line(s): %s', path, skipped, first)


def _finite(digits: str) -> int | float | None:
  """Parse a number; None if it exceeds a float, which would break every plot of the file."""
  value = float(digits)
  if not math.isfinite(value):
    return None
  return int(digits) if digits.lstrip('-').isdecimal() and abs(value) < 2**63 else value


def _problem(line: Any) -> str:
  if not isinstance(line, dict):
    return 'is not an object'
  step = line.get('step')
  if type(step) is not int or not 0 <= step < _MOST_STEPS:
    return 'has no "step", or one that is not a number of steps'
  return '' if isinstance(line.get('kind', ''), str) else 'has a "kind" that is not text'


def merged(files: Iterable[Iterable[tuple[float, dict[str, Any]]]]) -> Iterable[dict[str, Any]]:
  """Return the lines of several files in order, those of training first; each comes with its time, as `parse` yields
  it.

  If lines of another process record how often training had begun (STARTS), that decides where they belong, whatever the
  clocks of the two machines. Lines of earlier versions do not; there the time decides.
  """
  begun: list[float] = []  # time of each start
  keyed: list[tuple[int, bool, float, dict[str, Any]]] = []
  for number, lines in enumerate(files):
    for time, line in lines:
      if number == 0 and line.get('kind') == 'resume':
        begun.append(time)
      starts = line.get(STARTS)
      if number == 0:
        starts = len(begun)
      elif type(starts) is not int:
        starts = bisect.bisect_right(begun, time)
      keyed.append((starts, line.get('kind') != 'resume', time, line))
  return (line for *_, line in sorted(keyed, key=lambda entry: entry[:3]))


def evaluated_steps(lines: Iterable[Mapping[str, Any]], on_demand: bool = True, kind: str = 'eval') -> set[int]:
  """Return the steps that have an evaluation.

  on_demand: whether evaluations outside of training count, which may have had other settings or other data.
  kind: of the lines; 'eval/ema' for averages of the weights.
  """
  return {line['step'] for line in lines if line.get('kind') == kind and (on_demand or not is_on_demand(line))}


def is_on_demand(line: Mapping[str, Any]) -> bool:
  """Whether a line is of an evaluation outside of training; all names in lines of averages begin with 'ema/'."""
  return any(line.get(name) for name in line if name.rpartition('/')[2] == ON_DEMAND)


def without_repeated(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Return the lines without those of steps that a resumed run repeats.

  A line {'kind': 'resume', 'step': s} cancels earlier lines of steps after s.
  """
  kept: list[dict[str, Any]] = []
  for line in lines:
    if line.get('kind') == 'resume':
      kept = [other for other in kept if other['step'] <= line['step']]
    else:
      kept.append(line)
  return kept
