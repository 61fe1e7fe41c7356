"""The golden checks notice planted errors. `python -m tools.mutants` tries all of them (results/mutants.md)."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.test_golden import FOLDER
from tools import mutants

ROOT = pathlib.Path(__file__).resolve().parents[2]


def row(name, *failed):
  return {'name': name, 'case': 'small', 'failed': list(failed), 'seconds': 60.0, 'passed': 3}


def failed(stage, error, limit):
  return {'stage': stage, 'error': error, 'limit': limit, 'where': 'a.weight'}


def test_the_table_names_what_is_not_caught():
  rows = {'none: small': row('none: small'), 'no decay': row('no decay', failed('update', 0.5, 0.03)),
          'harmless': row('harmless')}
  text = mutants.table(rows, ['no decay', 'harmless', 'later'])
  assert '1 of 3 mutants caught, 3 minutes' in text
  assert '| none | small | nothing fails of 3 values |' in text
  assert '| no decay | small | update | 0.5 | 0.03 | a.weight | 0 |' in text
  assert '| harmless | small | **NOT CAUGHT** |' in text
  assert '| later | | not tried yet |' in text
  cells = {line.count('|') for line in text.splitlines() if line.startswith('|')}
  assert cells == {8}


def test_the_worst_value_is_first_and_a_broken_mutant_raises(monkeypatch):
  class Case:
    def __init__(self):
      self.report = []

    def check(self, stage, error, limit):
      self.report.append((stage, error, limit, ''))
      assert error <= limit

  def broken(case):
    raise AssertionError('shapes differ')

  monkeypatch.setattr(mutants, 'checks', lambda: {
    'sound': lambda case: case.check('sound', 0.1, 1), 'bad': lambda case: case.check('bad', 2, 1),
    'worse': lambda case: case.check('worse', 1, 0.1), 'nan': lambda case: case.check('nan', float('nan'), 1),
    'broken': broken})
  found = mutants.failures(Case(), ['sound', 'bad', 'worse'])
  assert [row['stage'] for row in found] == ['worse', 'bad']
  assert [row['stage'] for row in mutants.failures(Case(), ['sound', 'nan'])] == ['nan']
  with pytest.raises(AssertionError, match='shapes differ'):
    mutants.failures(Case(), ['sound', 'broken'])


def test_a_half_written_row_is_tried_again(tmp_path):
  partial = tmp_path / 'mutants.md.partial'
  mutants.write(partial, **row('no decay', failed('update', 0.5, 0.03)))
  partial.write_text(partial.read_text() + '{"name": "mask hea')
  assert list(mutants.read(partial)) == ['no decay']
  mutants.write(partial, **row('harmless'))
  assert list(mutants.read(partial)) == ['no decay', 'harmless']


@pytest.mark.slow
def test_errors_of_the_optimizer_are_caught_and_a_run_is_resumed(tmp_path):
  if not any(FOLDER.glob('*.npz')):
    pytest.skip(f'no golden numbers in {FOLDER} (set RETHINK_TF_GOLDEN)')
  output = tmp_path / 'mutants.md'
  partial = tmp_path / 'mutants.md.partial'
  mutants.write(partial, **row('no weight decay', failed('update', 0.5, 0.03)))
  command = [sys.executable, '-m', 'tools.mutants', f'--output={output}', '--only=decay']
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout + result.stderr[-3000:]
  text = output.read_text()
  assert '| no weight decay | small |' in text and 'NOT CAUGHT' not in text and not partial.exists()
