"""Rows of the doctor's table, and its verdict. Does not import TensorFlow, which may be what is broken."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rethink_tf.errors import plain
from rethink_tf.redaction import redact

OK, WARNING, FAILED, NOT_RUN = 'ok', 'warning', 'FAILED', 'not run'


class Row(NamedTuple):
  """The outcome of a check on a device."""

  check: str
  device: str
  result: str
  error: float | None = None  # the largest one, relative to the largest value; None: nothing is compared
  tolerance: float | None = None
  note: str = ''
  seconds: float | None = None


def compared(check: str, device: str, error: float, tolerance: float, note: str = '') -> Row:
  """Return the row of a comparison; NaN fails."""
  return Row(check, device, OK if error <= tolerance else FAILED, float(error), tolerance, note)


def as_json(row: Row) -> dict[str, Any]:
  """Convert a row for JSON, which has no NaN or infinity."""
  fields = {name: redact(value) if isinstance(value, str) else value for name, value in row._asdict().items()}
  if row.error is not None and not math.isfinite(row.error):
    fields['error'] = str(row.error)
  return fields


def from_json(fields: Mapping[str, Any]) -> Row:
  """Inverse of as_json."""
  return Row(**{**fields, 'error': None if fields['error'] is None else float(fields['error'])})


def table(rows: Sequence[Row]) -> str:
  """Return the rows as text in columns, without control characters and credentials."""
  head = ('check', 'device', 'result', 'error', 'tolerance', 'time', 'note')
  cells = [head]
  for row in rows:
    numbers = ['' if number is None else f'{number:.1e}' if number else '0' for number in (row.error, row.tolerance)]
    time = '' if row.seconds is None else f'{row.seconds:.1f} s'
    cells.append((row.check, row.device, row.result, *numbers, time, row.note))
  cells = [[plain(redact(cell)) for cell in line] for line in cells]
  widths = [max(len(line[i]) for line in cells) for i in range(len(head) - 1)]
  padded = [[*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]] for line in cells]
  return '\n'.join('  '.join(line).rstrip() for line in padded)


def verdict(rows: Sequence[Row]) -> tuple[str, int]:
  """Return one line and the exit code: 1 if a check has failed or could not run."""
  bad = [row for row in rows if row.result in (FAILED, NOT_RUN)]
  warnings = sum(row.result == WARNING for row in rows)
  if bad:
    names = ', '.join(dict.fromkeys(f'{row.check} on {row.device}' if row.device else row.check for row in bad))
    return plain(redact(f'{len(bad)} of {len(rows)} checks failed: {names}')), 1
  if warnings:
    return f'works, with {warnings} {"warning" if warnings == 1 else "warnings"}: {len(rows)} checks', 0
  return f'works: {len(rows)} checks', 0


def report(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
  """Return everything as JSON."""
  text, code = verdict(rows)
  content = {'verdict': text, 'exit_code': code, 'facts': {name: plain(redact(value)) for name, value in facts.items()},
             'checks': [as_json(row) for row in rows]}
  return json.dumps(content, indent=1, allow_nan=False)


def facts_table(facts: Mapping[str, str]) -> str:
  """Return facts as text in two columns."""
  width = max(map(len, facts), default=0)
  return '\n'.join(f'{plain(name):{width}}  {plain(redact(value))}' for name, value in facts.items())
