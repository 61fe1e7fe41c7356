"""Differences of losses by hand, and the comparison on a small network."""

import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.bench import precision
from tests import tiny
from tests.training.test_loss_scaling import toy, toy_batch

ROOT = pathlib.Path(__file__).resolve().parents[2]


def experiment():
  trainer = toy(policy='float32')
  batches = [toy_batch(i) for i in range(20)]
  dataset = tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(lambda *x: tf.stack(x), *batches))
  data = types.SimpleNamespace(dataset=lambda: dataset)
  return types.SimpleNamespace(trainer=trainer, train_input=data)


def test_differences_by_hand():
  reference = np.ones(25)
  losses = reference.copy()
  losses[3], losses[24] = 1.2, 3.0  # the last is in an incomplete window
  found = precision.differences(losses, reference)
  assert found.step == pytest.approx(2.0) and found.window == pytest.approx(0.02)
  assert found.running == pytest.approx(2.2 / 25) and found.whole == pytest.approx(2.2 / 25)


@pytest.mark.slow
def test_equal_initial_weights_give_equal_losses_and_perturbed_ones_nearly_equal_losses(tmp_path):
  folder = str(tmp_path)
  reference = precision.losses_of(experiment(), 12, folder, record=True)
  again = precision.losses_of(experiment(), 12, folder)
  perturbed = precision.losses_of(experiment(), 12, folder, perturb=True)
  np.testing.assert_array_equal(again.total, reference.total)
  np.testing.assert_allclose(again.same_weights, reference.total, rtol=1e-6)
  np.testing.assert_array_equal(perturbed.same_weights, again.same_weights)
  assert (perturbed.total != reference.total).any()
  np.testing.assert_allclose(perturbed.total, reference.total, rtol=1e-3)
  untrained = precision.losses_of(experiment(), 12, folder, train=False)
  assert not len(untrained.total)
  np.testing.assert_array_equal(untrained.same_weights, again.same_weights)
  text = precision.table({precision.REFERENCE: reference, 'untrained': untrained})
  assert '| untrained | - | - | - | - | - | - | 0.00 % | 0.00 % |' in text
  assert len(os.listdir(folder)) == 12
  text = precision.table({precision.REFERENCE: reference, 'again': again, 'perturbed': perturbed})
  assert text.splitlines()[3].startswith(f'| again | {reference.total.mean():.4f} | 0 | 0.00 % | 0.00 %')
  assert len({line.count('|') for line in text.splitlines()}) == 1
  page = precision.document({precision.REFERENCE: reference, 'again': again}, ['a.gin'], 'the command')
  assert '`the command`' in page and f'| 12 | {reference.total[-1]:.4f} | {reference.total[-1]:.4f} |' in page


@pytest.mark.slow
def test_losses_in_16_bits_are_near_float32(tmp_path):
  """With the weights of float32, mean losses in bfloat16 and float16 are within one percent."""
  bindings = [f'--gin_param={binding}' for binding in (
    *tiny.GIN, 'ResNet.depth = 14', 'synthetic.image_size = (64, 64)', 'synthetic.object_size = (16, 40)',
    'train/synthetic.num_images = 40', 'eval/synthetic.num_images = 2', 'BATCH_SIZE = 2')]
  path = tmp_path / 'precision.md'
  ran = subprocess.run(
    [sys.executable, '-m', 'rethink_tf.bench.precision', '--steps=10', f'--output={path}', *bindings], cwd=ROOT,
    text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, timeout=1500)
  assert ran.returncode == 0, ran.stderr
  text = path.read_text()
  for policy in ('mixed_bfloat16', 'mixed_float16'):
    row = next(line for line in text.splitlines() if line.startswith(f'| {policy} |'))
    assert float(row.split('|')[-2].rstrip(' %')) < 1.0
