"""The doctor's parent process with workers that abort, hang and do not start; the worker itself, once."""

import json
import os
import subprocess
import sys

import pytest

from rethink_tf.doctor import examination
from tests import commands

# A worker whose checks are scripted: {name: Python code}, run in order unless done.
WORKER = '''
import json, os, sys, time
options, done, facts = (json.loads(sys.argv[1])[key] for key in ('options', 'done', 'facts'))
put = lambda **fields: print(json.dumps(fields), flush=True)
exec(options.get('start', ''))
put(plan=list(options['checks']), facts={'python': '3'} if facts else {})
for name, code in options['checks'].items():
  if name not in done:
    put(begin=name)
    exec(code)
    put(end=name, rows=[dict(check=name, device='', result='ok', error=0.0, tolerance=0.0, note='', seconds=0.1)])
exec(options.get('end', ''))
'''


def examine(timeout=30.0, **options):
  return examination.examine([sys.executable, '-S', '-c', WORKER], options, timeout)


def test_a_check_that_ends_the_process_is_a_row_and_not_the_end(capfd):
  abort = 'os.write(2, b"noise\\nLLVM ERROR: token=abcdefgh1 does not support sm_120\\n"); os.abort()'
  found = examine(checks={'a': '', 'b': abort, 'c': '', 'd': 'sys.exit(3)', 'e': ''})
  assert [(row.check, row.result) for row in found.rows] == [
    ('a', 'ok'), ('b', 'FAILED'), ('c', 'ok'), ('d', 'FAILED'), ('e', 'ok')]
  assert 'SIGABRT' in found.rows[1].note and 'does not support sm_120' in found.rows[1].note
  assert 'noise' not in found.rows[1].note and 'abcdefgh1' not in found.rows[1].note
  assert 'exit code 3' in found.rows[3].note and found.facts == {'python': '3'}
  assert capfd.readouterr().err.splitlines() == ['1/5 a', '2/5 b', '3/5 c', '4/5 d', '5/5 e']


def test_a_check_that_does_not_return():
  found = examine(1.0, checks={'a': 'time.sleep(60)', 'b': ''})
  assert [row.result for row in found.rows] == ['FAILED', 'ok'] and 'did not end within' in found.rows[0].note


def test_a_worker_that_does_not_start():
  found = examine(start='raise ImportError("no libcudart")', checks={'a': ''})
  assert [(row.check, row.result) for row in found.rows] == [('TensorFlow starts', 'FAILED')]
  assert 'no libcudart' in found.rows[0].note


def test_a_worker_that_ends_badly_after_its_last_check_has_done_them():
  assert [row.result for row in examine(checks={'a': ''}, end='os.abort()').rows] == ['ok']


@pytest.mark.slow
@pytest.mark.parametrize('flags, code', [('', 0), ('--no_such_flag=1', 1)], ids=['sound', 'XLA aborts'])
def test_the_exit_code_tells_whether_a_check_failed(flags, code, tmp_path):
  command = [sys.executable, '-m', 'rethink_tf.doctor', '--quick', '--json', f'--model_dir={tmp_path}/a/run']
  ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=commands.ROOT,
                       env={**os.environ, 'XLA_FLAGS': flags})
  assert ran.returncode == code, ran.stdout + ran.stderr
  content = json.loads(ran.stdout)
  results = {row['check']: row['result'] for row in content['checks']}
  assert results['RoIAlign csr'] == results['matching'] == results['run folder'] == 'ok'
  assert 'tensorflow' in content['facts'] and not list(tmp_path.iterdir())
  if code:
    assert results['group_norm on /CPU:0'] == 'FAILED' and content['verdict'].startswith('1 of ')
  else:
    assert len(results) > 15 and set(results.values()) == {'ok'}
