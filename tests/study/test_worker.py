"""The process that trains the runs of a study: equal to the training command, one run after another."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rethink_tf import experiment
from rethink_tf.errors import UserError
from rethink_tf.study import processes, worker
from rethink_tf.study.processes import Pool
from rethink_tf.study.worker import Request, arguments
from tests import tiny
from tests.study.test___main__ import weights
from tests.test_command_line import ROOT, call_process

FILES = ('gin_configs/demo.gin', 'gin_configs/runtime/deterministic.gin')


def request(folder, name, *params, **fields):
  values = {'command': 'train', 'files': FILES, 'params': (*tiny.PARAMS, *params), 'data_dir': None,
            'path': str(folder / name), 'log': str(folder / f'{name}.log')}
  return Request(**(values | fields))


def test_arguments_are_those_of_the_training_command():
  assert arguments(['a.gin'], ['b = 1'], 'runs/a', None) == ['--gin_file=a.gin', '--gin_param=b = 1',
                                                            '--model_dir=runs/a']
  assert arguments([], [], 'runs/a', 'coco')[-1] == '--data_dir=coco'


@pytest.mark.usefixtures('no_configuration_is_left')
def test_fewer_held_out_images_for_a_calibration(tmp_path):
  experiment.configure(FILES, (*tiny.PARAMS, 'eval/synthetic.num_images = 8'))
  assert worker.hold_out_fewer(8) == 1.0
  assert worker.hold_out_fewer(2) == 0.25
  assert len(experiment.run('evaluate', str(tmp_path)).eval_input.source.image_ids) == 2


@pytest.mark.usefixtures('no_configuration_is_left')
def test_a_source_of_the_users_own_is_evaluated_whole():
  experiment.configure(FILES, (*tiny.PARAMS, 'run.eval_source = @VGG'))
  assert worker.hold_out_fewer(2) == 1.0


def test_it_ends_with_its_standard_input(tmp_path):
  done = subprocess.run([sys.executable, '-m', 'rethink_tf.study.worker'], input=b'', capture_output=True, cwd=ROOT)
  assert (done.returncode, done.stdout, done.stderr) == (0, b'', b'')


def test_a_log_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / 'a.log').mkdir()
  line = json.dumps(request(tmp_path, 'a')._asdict()).encode()
  # The standard input stays open: at its end a run that is under way is ended by a signal.
  with subprocess.Popen([sys.executable, '-m', 'rethink_tf.study.worker'], stdin=subprocess.PIPE, cwd=ROOT,
                        stderr=subprocess.DEVNULL) as process:
    process.stdin.write(line + b'\n')
    process.stdin.flush()
    assert process.wait(60) == 1


@pytest.fixture
def slot(monkeypatch):
  monkeypatch.chdir(ROOT)
  with Pool() as pool:
    yield pool.slots[0]


RUNS = {'first': ('run.seed = 0',), 'other_seed': ('run.seed = 1', 'CocoEvaluator.every = 0'),
        'longer': ('KTimesSchedule.unit = 1', 'KTimesSchedule.warmup_steps = 3'),
        'less_data': ('train/synthetic.num_images = 6',)}


def files_of(folder):
  """All files of a run folder; event files by their folder."""
  found = {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
  return {name if 'tfevents' not in name else os.path.dirname(name) for name in found}


def metrics_of(folder):
  """Metrics of a run without what is measured by a clock."""
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  clock = ('time', 'seconds', 'eval_seconds', 'predict_seconds', 'images_per_second')
  return [{name: value for name, value in line.items() if name not in clock} for line in lines]


@pytest.mark.slow
def test_runs_of_one_process_equal_runs_alone(slot, tmp_path):
  """Weights and metrics to the last bit, the same files; a run that fails does not count; memory is returned."""
  memory = []
  for i, (name, params) in enumerate(RUNS.items()):
    slot.start(request(tmp_path, name, *params), name, 'graph')
    reply = slot.result()
    assert reply.shared == (i > 0)
    memory.append(reply.megabytes)
  slot.start(request(tmp_path, 'diverges', 'KTimesSchedule.base_rate = 1e30'), 'diverges', 'graph')
  with pytest.raises(UserError, match='failed with exit code 1: .*not finite'):
    slot.result()
  slot.start(request(tmp_path, 'after', *RUNS['first']), 'after', 'graph')
  assert not slot.result().shared
  for name, params in {**RUNS, 'after': RUNS['first']}.items():
    alone = tmp_path / 'alone' / name
    done = call_process('train', *arguments(FILES, (*tiny.PARAMS, *params), str(alone), None), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    one, other = weights(tmp_path / name), weights(alone)
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one), name
    assert metrics_of(tmp_path / name) == metrics_of(alone)
    assert files_of(tmp_path / name) == files_of(alone)
    commands = [json.loads((folder / 'command.json').read_text())['argv'] for folder in (tmp_path / name, alone)]
    assert commands[0][0] == commands[1][0] and commands[0][1:-1] == commands[1][1:-1]
    assert (tmp_path / name / 'config.gin').read_text() == (alone / 'config.gin').read_text()
  print('memory', memory)


@pytest.mark.slow
def test_signals_aborts_and_the_end_of_the_study(slot, tmp_path, monkeypatch):
  """SIGTERM saves a checkpoint and the same request resumes; an abort is an error of that run alone."""
  long = ('KTimesSchedule.unit = 100', 'CocoEvaluator.every = 0', 'run.checkpoint_every = 1000')
  for how in ('signal', 'abort', 'end of the study'):
    run = tmp_path / how.split()[0]
    slot.start(request(tmp_path, run.name, *long), 'long')
    while not (run / 'metrics.jsonl').exists() or len(metrics_of(run)) < 4:
      time.sleep(0.2)
    if how == 'end of the study':
      process = slot._process
      process.stdin.close()
      assert process.wait() == 75
      break
    slot._process.send_signal(signal.SIGTERM if how == 'signal' else signal.SIGABRT)
    with pytest.raises(UserError, match='failed with exit code 75' if how == 'signal' else 'was ended by SIGABRT'):
      slot.result()
    assert bool(list(run.glob('checkpoints/step-*'))) == (how == 'signal')
  assert list(run.glob('checkpoints/step-*'))
  slot._forget()
  stopped = int(max((tmp_path / 'signal/checkpoints').glob('step-*')).name[5:])
  slot.start(request(tmp_path, 'signal', *long, 'KTimesSchedule.stop_k = %r' % ((stopped + 2) / 800)), 'resumed')
  slot.result()
  steps = [line['step'] for line in metrics_of(tmp_path / 'signal') if line['kind'] == 'train']
  assert stopped in steps and steps[-1] == stopped + 2 and steps == sorted(set(steps))


def test_replies_are_read_as_they_are_written():
  assert processes._COMMAND[1:] == ('-m', 'rethink_tf.study.worker')
