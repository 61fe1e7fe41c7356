"""Processes that train side by side: replies, errors, aborts, signals, shares of the devices."""

import os
import signal
import sys

import pytest

from rethink_tf.errors import Interrupted, UserError
from rethink_tf.study import processes
from rethink_tf.study.processes import Pool, environments, last_error
from rethink_tf.study.worker import Request

# Stands for rethink_tf.study.worker: it does what the path of a request says.
WORKER = '''
import json, os, signal, sys, time
def ends(signum, frame):
  open(request['log'], 'a').write('saved')
  os._exit(75)
signal.signal(signal.SIGTERM, ends)
for number, line in enumerate(sys.stdin):
  request = json.loads(line)
  if request['path'] == 'error':
    open(request['log'], 'a').write('step 1\\nerror: the loss is not finite\\n')
    sys.exit(1)
  if request['path'] == 'abort':
    os.abort()
  if request['path'] == 'ending':  # a signal after the last step: the run completes
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    open(request['log'], 'a').write('begun ')
    while not asked:
      time.sleep(0.01)
  if request['path'] == 'endless':
    open(request['log'], 'a').write('begun ')
    time.sleep(60)
  threads = os.environ.get('TF_NUM_INTRAOP_THREADS', '0')
  print(json.dumps({'seconds': 1.0, 'import_seconds': os.getpid(), 'total_steps': 10, 'evaluations': 1,
                    'batches_per_evaluation': 5.0, 'shared': number > 0, 'megabytes': int(threads)}), flush=True)
'''


@pytest.fixture
def pool(monkeypatch):
  """Two slots of fast processes."""
  monkeypatch.setattr(processes, '_COMMAND', (sys.executable, '-c', WORKER))
  return Pool(({}, {'TF_NUM_INTRAOP_THREADS': '1'}))


def request(tmp_path, path='run'):
  return Request('train', ('a.gin',), (), None, path, str(tmp_path / 'logs' / 'a.log'))


def finish(pool, slot):
  assert slot in pool.wait(20)
  return slot.result()


def test_a_process_trains_several_runs_and_another_one_after_an_error(pool, tmp_path):
  with pool:
    slot, other = pool.slots
    slot.start(request(tmp_path), 'a', graph='g')
    first = finish(pool, slot)
    assert slot.job is None and slot.graph == 'g' and pool.wait(0) == []
    slot.start(request(tmp_path), 'b', graph='g')
    second = finish(pool, slot)
    assert second.shared and second.import_seconds == first.import_seconds  # the fake's process id
    other.start(request(tmp_path), 'c')
    assert finish(pool, other).megabytes == 1  # its environment
    for path, message in (('error', 'failed with exit code 1: the loss is not finite'), ('abort', 'ended by SIGABRT')):
      slot.start(request(tmp_path, path), 'd', graph='g')
      with pytest.raises(UserError, match=message) as error:
        finish(pool, slot)
      assert '\n' not in error.value.line() and slot.graph == '' and slot.job is None
    slot.start(request(tmp_path), 'e')
    assert finish(pool, slot).import_seconds != first.import_seconds


def test_a_process_that_has_grown_is_replaced(pool, tmp_path, monkeypatch):
  found = []
  with pool:
    for growth in (0, -1, 0):
      monkeypatch.setattr(processes, 'GROWTH_MEGABYTES', growth)
      pool.slots[0].start(request(tmp_path), 'a', 'g')
      found.append(finish(pool, pool.slots[0]).import_seconds)
  assert found[0] == found[1] != found[2]


def test_other_settings_of_a_process_need_another_one(pool, tmp_path):
  with pool:
    slot = pool.slots[0]
    found = []
    for settings, graph in (('', 'g'), ('deterministic', 'g'), ('deterministic', 'h'), ('deterministic', '')):
      slot.start(request(tmp_path), 'a', graph, settings)
      found.append(finish(pool, slot).import_seconds)
  assert found[0] != found[1] == found[2] != found[3]


def test_a_signal_reaches_every_process(pool, tmp_path):
  logs = [tmp_path / 'logs' / name for name in ('a.log', 'b.log')]
  with pytest.raises(Interrupted), pool:
    for slot, log in zip(pool.slots, logs, strict=True):
      slot.start(request(tmp_path, 'endless')._replace(log=str(log)), 'a')
    while not all(log.exists() and log.read_text() for log in logs):
      pool.wait(0.05)
    raise Interrupted(signal.SIGTERM)
  assert [log.read_text() for log in logs] == ['begun saved', 'begun saved']


def test_a_run_that_completes_at_a_signal_is_waited_for(pool, tmp_path):
  log = tmp_path / 'logs/a.log'
  with pytest.raises(Interrupted), pool:
    pool.slots[0].start(request(tmp_path, 'ending'), 'a')
    while not (log.exists() and log.read_text()):
      pool.wait(0.05)
    raise Interrupted(signal.SIGTERM)
  assert log.read_text() == 'begun '


def test_each_run_has_its_share_of_the_devices(monkeypatch):
  for name in ('TF_NUM_INTRAOP_THREADS', 'TF_NUM_INTEROP_THREADS'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(os, 'cpu_count', lambda: 8)
  monkeypatch.setattr(processes, '_gpus', lambda: [])
  assert environments(None, True) == environments(1, True) == [{}]
  assert environments(3, True) == [{'TF_NUM_INTRAOP_THREADS': '2', 'TF_NUM_INTEROP_THREADS': '2'}] * 3
  monkeypatch.setattr(processes, '_gpus', lambda: ['2', '3', '4', '5'])
  assert [one['CUDA_VISIBLE_DEVICES'] for one in environments(None, True)] == ['2', '3', '4', '5']
  assert [one['CUDA_VISIBLE_DEVICES'] for one in environments(2, False)] == ['2,3', '4,5']
  assert environments(None, False) == [{}]
  with pytest.raises(UserError, match='--parallel=5: this machine has 4 GPUs'):
    environments(5, True)


def test_the_error_is_the_one_of_this_run(tmp_path):
  log = tmp_path / 'a.log'
  log.write_text('error: an earlier one\n')
  begin = log.stat().st_size
  assert last_error(str(log), begin) == 'no output' and last_error(str(log)) == 'an earlier one'
  log.write_text(log.read_text() + 'step 1\nerror: disk full\ntraceback\n')
  assert last_error(str(log), begin) == 'disk full'
