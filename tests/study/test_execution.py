"""Progress of a run in a study, and stages that are done."""

import json

from rethink_tf.study import execution
from rethink_tf.study.grid import Length, Trial
from rethink_tf.study.stages import Stage

LENGTH = Length(steps=100, batch_size=4, first_drop=60, unit=100, kind='', quiet=())
STAGE = Stage(Trial('scratch', {}, (), ()), LENGTH, 20, 100)


def write_metrics(folder, *lines):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_the_first_line_includes_tracing_and_gives_no_speed(tmp_path):
  runner = execution.Runner(str(tmp_path))
  folder = tmp_path / 'scratch'
  assert runner._progress(str(folder), STAGE, 'scratch', 0) == ''
  before = {'kind': 'train', 'step': 20, 'images_per_second': 9.0}
  first = {'kind': 'train', 'step': 21, 'images_per_second': 0.1}
  write_metrics(folder, before)
  assert runner._progress(str(folder), STAGE, 'scratch', 0) == ''
  write_metrics(folder, before, first)
  assert runner._progress(str(folder), STAGE, 'scratch', 400) == 'scratch: iteration 21/100'
  write_metrics(folder, before, first, {'kind': 'train', 'step': 60, 'images_per_second': 8.0})
  assert runner._progress(str(folder), STAGE, 'scratch', 400) == (
    'scratch: iteration 60/100, 8 images/s, ETA 20 s, study 1 min 10 s (evaluations not counted)')


def test_progress_of_pre_training_is_the_line_of_its_command(tmp_path):
  log = tmp_path / 'shapes.log'
  log.write_text('run folder shapes\n')
  assert execution._last_step(str(log)) == ''
  log.write_text('step 50/100  loss 1.2  ETA 3 s\nstep 60/100  loss 1.1  ETA 2 s\nevaluation at step 60: 71.2\n')
  assert execution._last_step(str(log)) == 'step 60/100  loss 1.1  ETA 2 s'


def test_a_run_without_a_complete_checkpoint_is_not_done(tmp_path):
  runner = execution.Runner(str(tmp_path))
  folder = tmp_path / 'scratch'
  assert not runner.done(STAGE) and not runner.evaluated('scratch')
  write_metrics(folder, {'kind': 'train', 'step': 100}, {'kind': 'eval', 'step': 100, 'box/AP': 30.0})
  assert not runner.done(STAGE) and runner.evaluated('scratch')
  (folder / 'checkpoints/step-00000100').mkdir(parents=True)  # without its manifest, which is written last
  assert not runner.done(STAGE)
