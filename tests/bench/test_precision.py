"""What is compared and how: differences by hand, and runs of a network that takes no time."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from tests.test_bench import ROOT
from tests.test_trainer import toy, toy_batch

from rethink_tf.bench import precision
from tests import tiny


def parts():
  trainer = toy(policy='float32')
  batches = [toy_batch(i) for i in range(20)]
  dataset = tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(lambda *parts: tf.stack(parts), *batches))
  data = types.SimpleNamespace(dataset=lambda: dataset)
  return types.SimpleNamespace(trainer=trainer, training_input=lambda: data)


def test_differences_by_hand():
  reference = np.ones(25)
  losses = reference.copy()
  losses[3], losses[24] = 1.2, 3.0  # the last is in no full window
  found = precision.differences(losses, reference)
  assert found.step == pytest.approx(2.0) and found.window == pytest.approx(0.02)
  assert found.running == pytest.approx(2.2 / 25) and found.whole == pytest.approx(2.2 / 25)


def test_the_same_start_gives_the_same_losses_and_a_nudged_one_nearly(tmp_path):
  folder = str(tmp_path)
  reference = precision.losses_of(parts(), 12, folder, record=True)
  again = precision.losses_of(parts(), 12, folder)
  nudged = precision.losses_of(parts(), 12, folder, nudge=True)
  np.testing.assert_array_equal(again.total, reference.total)
  np.testing.assert_allclose(again.same_weights, reference.total, rtol=1e-6)
  np.testing.assert_array_equal(nudged.same_weights, again.same_weights)
  assert (nudged.total != reference.total).any()
  np.testing.assert_allclose(nudged.total, reference.total, rtol=1e-3)
  untrained = precision.losses_of(parts(), 12, folder, train=False)
  assert not len(untrained.total)
  np.testing.assert_array_equal(untrained.same_weights, again.same_weights)
  text = precision.table({precision.REFERENCE: reference, 'untrained': untrained})
  assert '| untrained | - | - | - | - | - | - | 0.00 % | 0.00 % |' in text
  assert len(os.listdir(folder)) == 12
  text = precision.table({precision.REFERENCE: reference, 'again': again, 'nudged': nudged})
  assert text.splitlines()[3].startswith(f'| again | {reference.total.mean():.4f} | 0 | 0.00 % | 0.00 %')
  assert len({line.count('|') for line in text.splitlines()}) == 1
  page = precision.document({precision.REFERENCE: reference, 'again': again}, ['a.gin'], 'the command')
  assert '`the command`' in page and f'| 12 | {reference.total[-1]:.4f} | {reference.total[-1]:.4f} |' in page


@pytest.mark.slow
def test_the_command(tmp_path):
  """On float32's weights bfloat16 and float16 give its losses within one percent, on the mean."""
  bindings = [f'--gin_param={binding}' for binding in (
    *tiny.GIN, 'ResNet.depth = 14', 'synthetic.image_size = (64, 64)', 'synthetic.object_size = (16, 40)',
    'train/synthetic.num_images = 40', 'eval/synthetic.num_images = 2', 'BATCH_SIZE = 2')]
  path = tmp_path / 'precision.md'
  ran = subprocess.run(
    [sys.executable, '-m', 'rethink_tf.bench.precision', '--steps=10', f'--output={path}', *bindings], cwd=ROOT,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, timeout=1500)
  assert ran.returncode == 0, ran.stderr
  text = path.read_text()
  for policy in ('mixed_bfloat16', 'mixed_float16'):
    row = next(line for line in text.splitlines() if line.startswith(f'| {policy} |'))
    assert float(row.split('|')[-2].rstrip(' %')) < 1.0
