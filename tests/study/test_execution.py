"""Order of a study's stages, failures, progress of a run, and stages that are done."""

import json
import time

import pytest

from rethink_tf.errors import UserError
from rethink_tf.storage import manifests
from rethink_tf.study import execution
from rethink_tf.study import stages as staging
from rethink_tf.study.grid import Trial, TrialConfig
from rethink_tf.study.processes import Slot
from rethink_tf.study.stages import Stage
from rethink_tf.study.worker import Reply

CONFIG = TrialConfig(steps=100, batch_size=4, first_drop=60, unit=100, kind='', quiet=(), every=50)
STAGE = Stage(Trial('scratch', {}, (), ()), CONFIG, 20, 100)
REPLY = Reply(10.0, 0.0, 100, 1, 5.0, False, 900)


def write_metrics(folder, *lines):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


class Instant(Slot):
  """A slot whose runs are complete at once; those of `failing` fail."""

  failing = ()

  def start(self, request, job, graph='', settings=''):
    self.graph, self.job, self.request = graph, job, request
    self.began.append((job.stage.trial.name, job.stage.end))

  def result(self):
    job, self.job = self.job, None
    if job.stage.trial.name in self.failing:
      self.graph = ''
      raise UserError(f'failed with exit code 1: {job.stage.trial.name}.log')
    self.ended.append(job.number)
    return REPLY


class Runs(execution.Runner):
  """A runner of instant slots; `side_by_side` is how many ran at once at most."""

  def __init__(self, tmp_path, slots=1, failing=()):
    self.lines, self.began, self.ended, self.forked, self.side_by_side = [], [], [], [], 0
    super().__init__(str(tmp_path), log=self.lines.append, environments=[{}] * slots)
    self._pool.slots = [Instant({}) for _ in range(slots)]
    for slot in self._pool.slots:
      slot.failing, slot.began, slot.ended = failing, self.began, self.ended
    self._pool.wait = self._wait

  def _wait(self, seconds):
    busy = [slot for slot in self._pool.slots if slot.job]
    self.side_by_side = max(self.side_by_side, len(busy))
    return busy[-1:]  # the latest first

  def done(self, stage):
    return False

  def _fork(self, stage):
    self.forked.append((stage.trial.name, list(self.began)))


def stage(name, start=0, end=100, fork_of=None, graph=''):
  return Stage(Trial(name, {}, (), ()), CONFIG._replace(graph=graph), start, end, fork_of)


TRUNK = Trial('long', {}, (), ())
# As staging.plan orders them: a trunk that is forked twice, and a run of its own.
STAGES = [stage('long', 0, 20), stage('short', 20, 30, TRUNK), stage('long', 20, 40), stage('middle', 40, 60, TRUNK),
          stage('long', 40), stage('other')]


def test_stages_run_in_their_order(tmp_path):
  runner = Runs(tmp_path)
  assert runner.run(STAGES) == []
  assert runner.began == [(one.trial.name, one.end) for one in STAGES] and runner.side_by_side == 1
  assert '[1/6] long: iterations 0 to 20' in runner.lines[0] and '[6/6] other: done in' in runner.lines[-1]


def test_stages_run_side_by_side_once_what_they_continue_is_complete(tmp_path):
  runner = Runs(tmp_path, slots=3)
  assert runner.run(STAGES) == []
  assert runner.side_by_side == 3 and sorted(runner.began) == sorted((one.trial.name, one.end) for one in STAGES)
  assert [end for name, end in runner.began if name == 'long'] == [20, 40, 100]
  for name, trunk_end in (('short', 20), ('middle', 40)):  # copied before the trunk goes on
    before = next(began for forked, began in runner.forked if forked == name)
    assert [end for other, end in before if other == 'long'][-1] == trunk_end


@pytest.mark.parametrize('slots', [1, 2])
def test_a_failure_does_not_stop_the_others(tmp_path, slots):
  runner = Runs(tmp_path, slots, failing=('long', 'other'))
  failures = runner.run(STAGES[2:])
  assert [one.split(':')[0] for one in failures] == ['long', 'middle', 'long', 'other'][:len(failures)]
  assert 'failed with exit code 1' in failures[0] and 'skipped' in failures[1] and 'skipped' in failures[2]
  runner = Runs(tmp_path, slots, failing=('short',))
  assert [one.split(':')[0] for one in runner.run(STAGES)] == ['short']
  assert len(runner.ended) == 5


def test_runs_of_one_graph_follow_one_another(tmp_path):
  runner = Runs(tmp_path)
  runner.run([stage('gn_0', graph='gn'), stage('bn_0', graph='bn'), stage('gn_1', graph='gn'),
              stage('bn_1', graph='bn'), stage('none_0'), stage('none_1')])
  assert [name for name, _ in runner.began] == ['gn_0', 'gn_1', 'bn_0', 'bn_1', 'none_0', 'none_1']


def test_progress_counts_evaluations_and_the_start_of_later_runs(tmp_path):
  runner = execution.Runner(str(tmp_path))
  now = time.time()
  job = runner._pool.slots[0].job = execution.Job(STAGE, 0, 'scratch', 20, now, False)
  assert runner.progress(job, []) == ''
  before = {'kind': 'train', 'step': 20, 'images_per_second': 9.0, 'seconds': 10, 'time': now - 100}
  first = {'kind': 'train', 'step': 21, 'images_per_second': 0.1, 'seconds': 40, 'time': now + 30}
  write_metrics(tmp_path / 'scratch', before)
  assert runner.progress(job, []) == ''
  write_metrics(tmp_path / 'scratch', before, first)
  assert runner.progress(job, []) == 'scratch: iteration 21/100'
  evaluation = {'kind': 'eval', 'step': 50, 'eval_seconds': 6.0, 'time': now + 51}
  later = {'kind': 'train', 'step': 61, 'images_per_second': 8.0, 'seconds': 60, 'time': now + 56}
  write_metrics(tmp_path / 'scratch', before, first, evaluation, later)
  # 39 steps of 0.5 s and the evaluation at the end; a second run has 100 steps and two evaluations.
  assert runner.progress(job, []) == 'scratch: iteration 61/100, 8 images/s, ETA 26 s, study 26 s'
  assert runner.progress(job, [stage('other')]).endswith('ETA 26 s, study 1 min 28 s')


def test_several_runs_side_by_side_divide_the_time(tmp_path):
  runner = execution.Runner(str(tmp_path), environments=[{}, {}])
  assert str(runner.remaining([stage('a')])) == 'nan'
  write_metrics(tmp_path / 'a', *({'kind': 'train', 'step': step, 'seconds': step, 'time': step} for step in (1, 11)))
  runner._speeds.note_steps('', runner_lines(tmp_path / 'a'))
  assert runner.remaining([stage('b')]) == 100  # one run alone is not divided
  assert runner.remaining([stage('b'), stage('c'), stage('d')]) == 150


def runner_lines(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_progress_of_pre_training_is_the_line_of_its_command(tmp_path):
  log = tmp_path / 'shapes.log'
  assert execution.last_step(str(log)) == ''
  log.write_text('run folder shapes\n')
  assert execution.last_step(str(log)) == ''
  log.write_text('step 50/100  loss 1.2  ETA 3 s\nstep 60/100  loss 1.1  ETA 2 s\nevaluation at step 60: 71.2\n')
  assert execution.last_step(str(log)) == 'step 60/100  loss 1.1  ETA 2 s'


def test_a_run_without_a_complete_checkpoint_is_not_done(tmp_path):
  runner = execution.Runner(str(tmp_path))
  folder = tmp_path / 'scratch'
  assert not runner.done(STAGE) and not runner.evaluated('scratch')
  write_metrics(folder, {'kind': 'train', 'step': 100}, {'kind': 'eval', 'step': 100, 'box/AP': 30.0})
  assert not runner.done(STAGE) and runner.evaluated('scratch')
  (folder / 'checkpoints/step-00000100').mkdir(parents=True)  # without its manifest, which is written last
  assert not runner.done(STAGE)


def test_images_that_are_left(tmp_path):
  """Of the trunk's first part none; of its second those after the latest checkpoint; all of a run not begun."""
  runner = execution.Runner(str(tmp_path))
  for step in (30, 90):  # the second has no manifest yet
    (tmp_path / f'long/checkpoints/step-{step:08d}').mkdir(parents=True)
  (tmp_path / 'long/checkpoints/step-00000030/weights').write_text('weights')
  manifests.write(f'{tmp_path}/long/checkpoints/step-00000030', 30, {})
  assert runner.images_left(STAGES[:4]) == 4 * (0 + 10 + 10 + 20)
  assert runner.images_left(STAGES[:1]) == 0
  assert execution.Runner(f'{tmp_path}/new').images_left(STAGES) == staging.images(STAGES)


def test_needed_stages_come_first():
  assert staging.needed(STAGES, 1) == [0] and staging.needed(STAGES, 3) == [0, 2] and staging.needed(STAGES, 5) == []
  assert staging.forks_before(STAGES, 2) == [1] and staging.forks_before(STAGES, 4) == [1, 3]


def test_evaluations_of_a_pre_training_are_not_run_but_counted(tmp_path, monkeypatch):
  runner, asked = execution.Runner(str(tmp_path)), []

  def calibrate(kind, request, graph, process):
    asked.append(request)
    runner._speeds.note_whole(kind, REPLY)
    runner._speeds._found[kind] = runner._speeds.of(kind)._replace(step=0.6)
    return REPLY._replace(total_steps=1000, evaluations=10, batches_per_evaluation=50.0)

  monkeypatch.setattr(execution.grid, 'keys', lambda *_: ('', ''))
  monkeypatch.setattr(runner, '_calibrate', calibrate)
  assert runner.calibrate_pretraining(str(tmp_path / 'net'), (), (), None) == pytest.approx(10 + 600 + 10 * 10)
  assert not asked[0].evaluates and runner._speeds.of('other') is None


@pytest.mark.parametrize('total, steps, share', [(100, (6, 22), 1.0), (8, (6, 8), 0.1), (5, (5,), 1.0), (5, (5,), 0.1)])
def test_a_calibration_has_two_parts(tmp_path, monkeypatch, total, steps, share):
  """0.5 s a step, 4 s an evaluation, 30 s of tracing in the first part; as much time for more steps as there is.

  share: of the held-out images, which is evaluated.
  """
  runner, asked = execution.Runner(str(tmp_path)), []

  def call(request, graph, process):
    before = asked[-1] if asked else 0
    assert request.held_out == execution.CALIBRATION_IMAGES
    asked.append(min(request.steps, total))
    now = time.time() + (1 if before else -1000)
    found = [] if before else [{'kind': 'resume', 'step': 0, 'time': now}]
    first = 0.5 if before else 30.0
    found += [{'kind': 'train', 'step': step, 'seconds': now + first + 0.5 * i, 'time': now + first + 0.5 * i}
              for i, step in enumerate(range(before + 1, asked[-1] + 1))]
    found.append({'kind': 'eval', 'step': asked[-1], 'eval_seconds': 4.0, 'time': now + 60})
    path = tmp_path / request.path
    old = (path / 'metrics.jsonl').read_text() if before else ''
    write_metrics(path, *found)
    (path / 'metrics.jsonl').write_text(old + (path / 'metrics.jsonl').read_text())
    seconds = first + 0.5 * (asked[-1] - before) + 4 + 2
    return REPLY._replace(seconds=seconds, shared=bool(before), total_steps=total, evaluated_share=share)

  monkeypatch.setattr(runner, '_call', call)
  runner.calibrate(STAGE)
  assert tuple(asked) == steps
  speed = runner._speeds.of('')
  if total > 5:
    assert speed.step == pytest.approx(0.5, abs=0.01) and speed.evaluation == pytest.approx(4.0 / share)
    assert speed.first == pytest.approx(32, abs=1)
  else:
    assert speed.start(False) == pytest.approx(30 + 2.5 + 2 + 4 / share)
