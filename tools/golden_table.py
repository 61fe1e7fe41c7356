"""Largest errors against Detectron2, stage by stage and case by case, as a table from the report of the golden tests.

  python -m tools.golden_table --output=results/golden.md

Runs tests/golden_cases.py whole, a process for each case. `--log=FILE`, repeatable, reads what a run printed instead
(`pytest tests/test_golden.py -m 'slow or not slow' -s`).
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable

from tests.test_golden import ENVIRONMENT, FOLDER, ROOT

# Row, and the beginnings of the stages whose largest error it shows.
ROWS = {
  'maps C2–P6': ('backbone', 'pyramid'),
  'anchors': ('anchors',),
  'RPN logits and deltas': ('RPN',),
  'sorted logits of proposals (absolute)': ('proposals of image',),
  'proposals without partner': ('proposals without',),
  'RoI features': ('RoI features',),
  'class logits and box deltas': ('class logits', 'box deltas'),
  'detections without partner': ('detections without',),
  'mask probabilities (absolute)': ('masks of image',),
  'keypoints further than 0.1 pixels': ('keypoints of image 0: further', 'keypoints of image 1: further'),
  'scores of keypoints': ('keypoints of image 0: scores', 'keypoints of image 1: scores'),
  'losses': ('loss ',),
  'mask targets from crops: cells': ('mask targets from crops: cells',),
  'mask targets from crops: loss': ('mask targets from crops: loss',),
  'gradient norms: predictors': ('gradient norms: predictors',),
  'gradient norms: median': ('gradient norms: median',),
  'gradient norms: largest': ('gradient norms: all',),
  'gradients, 1 - cosine: predictors': ('gradients, 1 - cosine: predictors',),
  'gradients, 1 - cosine: largest': ('gradients, 1 - cosine: all',),
  'one update at a rate of 0.02': ('update (',),
  'decay in this update': ('decay in the update',),
  'moving statistics of the stem': ('moving',),
  'trajectory: first total': ('trajectory: first',),
  'trajectory: second total': ('trajectory: second',),
  'trajectory: sum of five totals': ('trajectory: sum',),
  'trajectory: any total or loss': ('trajectory: any',),
}

Report = dict[str, tuple[float, float]]  # stage -> error, limit


def run() -> str:
  """Run all golden cases, one after the other, and return what they print."""
  printed = []
  for case in sorted(path.stem for path in FOLDER.glob('*.npz')):
    # Exactly this case: the name of one is the beginning of another's.
    command = [sys.executable, '-m', 'pytest', '-q', '-s', '-n0', '-m', 'slow or not slow', 'tests/golden_cases.py',
               '-k', f'{case}] or {case}-']
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    print(case, result.stdout.strip().splitlines()[-1], flush=True)
    printed.append(result.stdout)
  return '\n'.join(printed)


def parse(printed: str) -> dict[str, Report]:
  """Reports of all cases in what the golden tests print."""
  reports, case = {}, ''
  for line in printed.splitlines():
    found = re.fullmatch(r'  (\S.*?) +([\d.e+-]+|nan|inf) +([\d.e+-]+)(  \S+)?', line)
    if found and case:
      reports.setdefault(case, {})[found[1]] = float(found[2]), float(found[3])
    elif re.fullmatch(r'\w+', line):
      case = line
  return reports


def table(reports: dict[str, Report]) -> str:
  cases = sorted(reports)
  lines = ['# Against Detectron2', '',
           'Largest error of each stage, relative to the largest value or to a norm unless stated otherwise, written',
           'by `python -m tools.golden_table --output=results/golden.md`. `tests/golden_cases.py` explains the',
           'tolerances; [mutants.md](mutants.md) lists planted errors that these checks catch.', '',
           f'| | allowed | {" | ".join(cases)} |', f'|---|---:|{"---:|" * len(cases)}']
  for row, beginnings in ROWS.items():
    found = [of_row(reports[case], beginnings) for case in cases]
    limits = sorted({limit for errors in found for _, limit in errors})
    if limits:
      cells = [f'{max(error for error, _ in errors):.1e}' if errors else '–' for errors in found]
      lines.append(f'| {row} | {" or ".join(f"{limit:g}" for limit in limits)} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def of_row(report: Report, beginnings: Iterable[str]) -> list[tuple[float, float]]:
  return [values for stage, values in report.items() if stage.startswith(tuple(beginnings))]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', type=pathlib.Path, required=True)
  parser.add_argument('--log', type=pathlib.Path, action='append')
  flags = parser.parse_args()
  if not flags.log and not any(FOLDER.glob('*.npz')):
    sys.exit(f'{FOLDER} holds no golden numbers: set RETHINK_TF_GOLDEN to their folder')
  printed = '\n'.join(path.read_text() for path in flags.log) if flags.log else run()
  flags.output.write_text(table(parse(printed)))


if __name__ == '__main__':
  main()
