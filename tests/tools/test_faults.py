"""Runs with injected faults, by the usual command, end with the weights of a run without faults."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def rows(tmp_path, *flags):
  """The rows of the table: fault, times, runs, outcome, steps lost, exit codes, equal."""
  output = tmp_path / 'faults.md'
  command = [sys.executable, '-m', 'tools.faults', f'--output={output}', *flags]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout + result.stderr[-3000:]
  lines = [line for line in output.read_text().splitlines() if line.startswith('| ')]
  return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[1:]]


@pytest.mark.slow
def test_sigterm_sigkill_and_a_damaged_checkpoint(tmp_path):
  ((_, times, runs, outcome, lost, codes, equal),) = rows(tmp_path, '--quick', '--epochs=3')
  assert (times, runs, equal) == ('3', '1', 'yes')
  assert outcome == 'completed; 1 damaged checkpoint detected'
  assert codes == '-9 ×1, 0 ×1, 75 ×1'
  # SIGTERM loses nothing; SIGKILL at most an interval of 5 steps, and the damaged checkpoint one interval more.
  assert int(lost.split(', ')[1]) <= 10


@pytest.mark.slow
def test_every_fault(tmp_path):
  found = rows(tmp_path, '--epochs=8')
  assert len(found) == 17
  assert {row[-1] for row in found} <= {'yes', '–'}
