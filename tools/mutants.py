"""Mutation proof of the golden checks: errors planted in the package, each of which a check must notice.

  python -m tools.mutants --output=results/mutants.md

Each mutant replaces a function or a setting of the package in the memory of a process, builds a golden case with it and
compares it with Detectron2 by the checks of tests/golden_cases.py; nothing in the tree changes. One process tries the
mutants of one case, after the unmutated case, which must pass. An interrupted run is resumed by the same command:
what is done is in OUTPUT.partial until the table is complete. `--only=TEXT` tries the mutants whose name contains it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.test_golden import ENVIRONMENT, FOLDER, ROOT

UNMUTATED = 'none'

Row = dict[str, Any]


def checks() -> dict[str, Callable[[Any], None]]:
  from tests import golden_cases as golden
  return {
    'losses': golden.test_losses,
    'gradient norms': golden.test_gradient_norms,
    'gradients': golden.test_gradients,
    'update (detectron2)': lambda case: golden.test_update(case, 'detectron2'),
    'update (detectron)': lambda case: golden.test_update(case, 'detectron'),
    'moving statistics': golden.test_moving_statistics,
    'trajectory': golden.test_trajectory,
  }


def failures(case: Any, names: Iterable[str]) -> list[Row]:
  """The stages at which checks of a case fail, the worst first."""
  case.report.clear()
  for name in names:
    try:
      checks()[name](case)
    except AssertionError:
      if not case.report or case.report[-1][1] <= case.report[-1][2]:
        raise  # not by Case.check: the mutant is broken
  failed = [dict(stage=stage, error=error, limit=limit, where=where) for stage, error, limit, where in case.report
            if not error <= limit]
  return sorted(failed, key=lambda row: -row['error'] / max(row['limit'], 1e-12))


def attempt(names: Sequence[str], partial: pathlib.Path) -> None:
  """Try mutants of one case, in this process; append a row each to `partial`."""
  from tests import golden
  from tools.mutant_kinds import MUTANTS
  mutants = [mutant for mutant in MUTANTS if mutant.name in names]
  sound = golden.Case(mutants[0].case)
  every = dict.fromkeys(check for mutant in mutants for check in mutant.checks)
  write(partial, name=f'{UNMUTATED}: {sound.name}', case=sound.name, failed=failures(sound, every), seconds=0.,
        passed=len(sound.report))
  for mutant in mutants:
    start = time.process_time()
    with mutant.patch():
      sound.__dict__.pop('steps', None)
      case = golden.Case(mutant.case) if mutant.built else sound
      failed = failures(case, mutant.checks)
    write(partial, name=mutant.name, case=mutant.case, failed=failed, seconds=time.process_time() - start,
          passed=len(case.report) - len(failed))
    del case
    gc.collect()


def write(partial: pathlib.Path, **row: Any) -> None:
  with partial.open('a') as file:
    print(json.dumps(row), file=file)
  caught = row['failed']
  print(f'{row["name"]:<64}', f'{caught[0]["stage"]}: {caught[0]["error"]:.2g}' if caught else 'passes', flush=True)


def read(partial: pathlib.Path) -> dict[str, Row]:
  """The rows of an earlier run; one that was interrupted while it was written is removed."""
  if not partial.exists():
    return {}
  lines = [line for line in partial.read_text().splitlines(keepends=True) if line.endswith('\n')]
  partial.write_text(''.join(lines))
  return {row['name']: row for row in map(json.loads, lines)}


def table(rows: dict[str, Row], names: Sequence[str]) -> str:
  caught = sum(bool(rows[name]['failed']) for name in names if name in rows)
  cases = [row for name, row in rows.items() if name.startswith(UNMUTATED)]
  seconds = sum(row['seconds'] for row in rows.values())
  lines = [
    '# Mutants of the golden checks', '',
    'Each row is an error planted in the package, and the value of `tests/golden_cases.py` that exceeds its limit by',
    'the largest factor. Gradients and updates are compared parameter by parameter: *where* names the worst one.',
    '*Others* is the number of further values that exceed their limits.', '',
    f'`python -m tools.mutants --output=results/mutants.md`: {caught} of {len(names)} mutants caught, '
    f'{seconds / 60:.0f} minutes of CPU.', '',
    '| mutant | case | caught by | error | limit | where | others |', '|---|---|---|---:|---:|---|---:|']
  for row in cases:
    found = f'{worst(row)}' if row['failed'] else f'nothing fails of {row["passed"]} values | | | | '
    lines.append(f'| none | {row["case"]} | {found} |')
  for name in names:
    if name not in rows:
      lines.append(f'| {name} | | not tried yet | | | | |')
      continue
    row = rows[name]
    lines.append(f'| {name} | {row["case"]} | {worst(row) if row["failed"] else "**NOT CAUGHT** | | | | "} |')
  return '\n'.join(lines) + '\n'


def worst(row: Row) -> str:
  first, *others = row['failed']
  return f'{first["stage"]} | {first["error"]:.2g} | {first["limit"]:.2g} | {first["where"]} | {len(others)}'


def run(names: Sequence[str], output: pathlib.Path) -> bool:
  """Try mutants, in a process for each case, and write the table. Return whether all were caught."""
  from tools.mutant_kinds import MUTANTS
  partial = output.with_name(f'{output.name}.partial')
  missing = [mutant for mutant in MUTANTS if mutant.name in names and mutant.name not in read(partial)]
  for case in dict.fromkeys(mutant.case for mutant in missing):
    command = [sys.executable, '-m', 'tools.mutants', f'--output={output}',
               *(f'--attempt={mutant.name}' for mutant in missing if mutant.case == case)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, check=True)
    output.write_text(table(read(partial), names))
  rows = read(partial)
  output.write_text(table(rows, names))
  partial.unlink()
  return all(bool(row['failed']) != name.startswith(UNMUTATED) for name, row in rows.items())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', type=pathlib.Path, required=True)
  parser.add_argument('--only', default='')
  parser.add_argument('--attempt', action='append', help=argparse.SUPPRESS)
  flags = parser.parse_args()
  output = flags.output.resolve()
  if flags.attempt:
    attempt(flags.attempt, output.with_name(f'{output.name}.partial'))
    return
  if not any(FOLDER.glob('*.npz')):
    sys.exit(f'{FOLDER} holds no golden numbers: set RETHINK_TF_GOLDEN to their folder')
  from tools.mutant_kinds import MUTANTS
  names = [mutant.name for mutant in MUTANTS if flags.only in mutant.name]
  if not names:
    sys.exit(f'--only={flags.only}: no mutant has this in its name; tools/mutant_kinds.py lists them')
  sys.exit(0 if run(names, output) else 1)


if __name__ == '__main__':
  main()
