"""The fuzzer detects failures, and a few cases of every kind pass."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tools import fuzz, mutations
from tools.fuzz_kinds import ACCEPTED, SKIPPED, Target

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_few_cases_of_every_kind(tmp_path):
  """In a process that has not used TensorFlow, so that its forks may."""
  output = tmp_path / 'fuzz.md'
  ran = subprocess.run([sys.executable, '-m', 'tools.fuzz', '--cases=34', f'--output={output}'], cwd=ROOT, text=True,
                       capture_output=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert ran.returncode == 0, ran.stderr + ran.stdout
  assert '34 cases, 0 failures' in output.read_text()


def misbehave(rng, seeds, work):
  case = int(rng.integers(7))
  if case == 0:
    os.abort()
  if case == 1:
    os._exit(3)
  if case == 2:
    while True:
      pass
  if case == 3:
    return bytes(bytearray(64 << 20)) and ACCEPTED
  if case == 4:
    raise KeyError('x')
  if case == 5:
    from rethink_tf.errors import UserError
    raise UserError('two\nlines')
  return SKIPPED


@pytest.mark.slow
def test_crashes_hangs_and_memory_are_failures(monkeypatch, tmp_path):
  monkeypatch.setattr(fuzz, 'CPU_SECONDS', 1)
  monkeypatch.setattr(fuzz, 'MEMORY', 32 << 20)
  target, tally = Target('bad', lambda folder: None, misbehave), fuzz.Tally()
  cases = range(20)
  fuzz._chunk(target, 0, cases, tmp_path, tmp_path / 'work', tally)
  drawn = [int(fuzz.generator(0, 'bad', case).integers(7)) for case in cases]
  assert set(drawn) == set(range(7))
  failures = dict(tally.failures)
  assert sorted(failures) == [case for case in cases if drawn[case] != 6]
  assert tally.outcomes == {SKIPPED: drawn.count(6), fuzz.FAILURE: 20 - drawn.count(6)}
  messages = ('SIGABRT', 'exits with 3', 'over 1 s', 'MB of memory', 'KeyError', 'several lines')
  for case, message in failures.items():
    assert messages[drawn[case]] in message


def test_a_case_is_the_same_every_time():
  def drawn():
    rng = fuzz.generator(5, 'kind', 3)
    tree = {'a': [1, {'b': 'text'}], 'c': None}
    return (mutations.corrupt_bytes(rng, bytes(100)), mutations.corrupt_json(rng, tree),
            mutations.corrupt_text(rng, 'a = 1\nb = 2'), repr(mutations.corrupt_tree(rng, tree)))
  assert drawn() == drawn()
  assert fuzz.generator(5, 'kind', 3).random() != fuzz.generator(5, 'kind', 4).random()


@pytest.mark.parametrize('seed', range(30))
def test_corruption_leaves_the_original_unchanged(seed):
  tree = {'a': [1, {'b': 'text'}], 'c': None}
  mutations.corrupt_tree(np.random.default_rng(seed), tree)
  assert tree == {'a': [1, {'b': 'text'}], 'c': None}
