"""The command: a table or JSON for every task, one-line errors."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import in_process, tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = [f'--gin_param={binding}' for binding in (
  *tiny.GIN, 'ResNet.depth = 14', 'synthetic.image_size = (64, 64)', 'synthetic.object_size = (16, 40)',
  'train/synthetic.num_images = 4', 'eval/synthetic.num_images = 2', "strategy.kind = 'one_device'")]


def bench(*arguments):
  return in_process.call('bench', '--rounds=1', *arguments, cwd=ROOT)


@pytest.mark.parametrize('arguments, words', [
  (['--task=nms', '--gin_file=nope.gin'], '--gin_file has no effect on --task=nms, leave it out: only --task=train'),
  (['--task=evaluate', '--weights=nothing'], '--weights has no effect on --task=evaluate'),
  (['--task=padding', '--peers'], '--peers has no effect on --task=padding, leave it out: only --task=train, predict'),
  (['--task=train', '--images=5'], '--images has no effect on --task=train'),
  (['--task=predict', '--model_dir=runs/x'], '--model_dir has no effect on --task=predict, leave it out: no run is')])
def test_flags_without_effect_are_refused(arguments, words):
  ran = bench(*arguments)
  assert ran.returncode == 1 and ran.stderr.splitlines()[-1].startswith(f'error: {words}'), ran.stderr


@pytest.mark.parametrize('task', ['input', 'train'])
def test_the_configuration_of_a_classifier_is_refused(task):
  ran = bench(f'--task={task}', '--gin_file=gin_configs/pretraining/shapes.gin')
  assert ran.returncode == 1 and ran.stderr.splitlines()[-1] == (
    'error: gin_configs/pretraining/shapes.gin: is for a classifier: give the configuration of a detector')


@pytest.mark.slow
def test_a_train_step_is_reported_as_json():
  """In a process of its own."""
  ran = subprocess.run([sys.executable, '-m', 'rethink_tf.bench', '--rounds=1', '--task=train', '--json', *SMALL],
                       cwd=ROOT, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True,
                       timeout=570)
  assert ran.returncode == 0, ran.stderr
  report = json.loads(ran.stdout)
  row, = report['rows']
  assert row['group'] == 'train 2 x 64 x 64' and row['images'] == 2 and row['gflop'] > 0
  assert row['timing']['fastest'] <= row['timing']['median'] <= row['timing']['slowest']
  assert abs(sum(report['share_by_component'].values()) - 1) < 1e-6
  components = {'backbone', 'norms', 'RPN', 'RoIAlign', 'box head', 'mask head', 'optimizer'}
  assert components <= set(report['share_by_component'])
  assert report['peak_memory_mb'] > 100 and set(report['peak_gflops']) == {'float32', 'bfloat16'}


@pytest.mark.slow
def test_every_system_is_measured_beside_the_plain_one():
  ran = bench('--task=systems', '--json', *SMALL)
  assert ran.returncode == 0, ran.stderr
  rows = json.loads(ran.stdout)['rows']
  names = ['plain', 'CBNet dual', 'CBNet triple', 'Cascade R-CNN', 'keypoints for masks']
  assert [row['group'] for row in rows] == ['train 2 x 64 x 64'] * 5 + ['predict 1 x 64 x 64'] * 5
  assert [row['name'] for row in rows] == names * 2
  plain, dual, triple, cascade, _ = (row['parameters'] for row in rows[:5])
  assert triple - dual == dual - plain > 0 and cascade > plain
  assert all(row['timing']['rounds'] == 1 and row['timing']['fastest'] > 0 for row in rows)


@pytest.mark.slow
def test_recomputation_beside_the_plain_step():
  ran = bench('--task=recompute', '--json', *SMALL)
  assert ran.returncode == 0, ran.stderr
  plain, other = json.loads(ran.stdout)['rows']
  assert plain['group'] == other['group'] == 'train 2 x 64 x 64' and plain['parameters'] == other['parameters']
  assert (plain['name'], other['name']) == ('plain', 'recomputation') and 0 < other['memory']


@pytest.mark.slow
def test_prediction_with_peers_has_equal_numbers_of_proposals_and_detections():
  ran = bench('--task=predict', '--peers', '--json', *SMALL, '--gin_param=synthetic.image_size = (128, 128)',
              '--gin_param=Resize.short_side = (128,)', '--gin_param=Resize.max_side = 128')
  assert ran.returncode == 0, ran.stderr
  rows = json.loads(ran.stdout)['rows']
  assert [row['name'] for row in rows] == ['rethink_tf float32', 'rethink_tf mixed_bfloat16',
                                           'tf-models-official (BN) float32', 'tf-models-official (BN) mixed_bfloat16']
  assert {row['group'] for row in rows} == {'predict 2 x 128 x 128'}
  note, = {row['note'] for row in rows}
  assert note.endswith(' detections an image') and rows[0]['gflop'] == rows[1]['gflop'] > 0 == rows[2]['gflop']
  ran = bench('--task=predict', '--peers', *SMALL, "--gin_param=run.precision = 'mixed_bfloat16'")
  assert ran.returncode == 1 and 'leave out the binding of run.precision' in ran.stderr.splitlines()[-1]


@pytest.mark.slow
def test_every_padded_shape_has_its_share_of_the_images():
  small = [one for one in SMALL if 'synthetic' not in one]  # it writes images of its own
  ran = bench('--task=padding', *small, '--gin_param=Resize.max_side = 96', '--gin_param=BATCH_SIZE = 1')
  assert ran.returncode == 0, ran.stderr
  head, *lines, mixed = ran.stdout.splitlines()[:-1]
  assert head == 'padding' and 'times faster than the square; padding ' in mixed
  shares = [float(line.rsplit('  ', 1)[1].removesuffix(' % of the images')) for line in lines]
  assert len(shares) >= 2 and shares[-1] == 0 and abs(sum(shares) - 100) < 0.5  # the last is the square


@pytest.mark.slow
def test_the_table_has_ratios():
  ran = bench('--task=paste')
  assert ran.returncode == 0, ran.stderr
  assert 'rethink_tf' in ran.stdout and 'x rethink_tf' in ran.stdout and 'matrix product of this machine' in ran.stdout


@pytest.mark.parametrize('arguments, text', [
  (['--task=nms', '--rounds=0'], '--rounds'),
  (['--task=train', '--gin_file=gin_configs/nothing.gin'], 'gin_configs/nothing.gin'),
])
def test_errors_are_one_line(arguments, text):
  ran = bench(*arguments)
  assert ran.returncode == 1
  assert ran.stderr.strip().splitlines()[-1].startswith('error: ') and text in ran.stderr
