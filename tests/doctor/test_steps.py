"""Steps of the doctor's detector: in 16 bits and over two replicas as in float32; a broken form is found."""

import pytest
import tensorflow as tf

from rethink_tf.doctor import steps
from rethink_tf.ops import roi_align

pytestmark = pytest.mark.slow


def results(rows):
  return [(row.check, row.result) for row in rows]


def test_both_forms_agree_and_a_broken_one_is_found(monkeypatch):
  assert {result for _, result in results(steps.other_form())} == {'ok'}
  gathered = roi_align._gathered_product
  # Not a factor: the heads' GroupNorm takes it out, and only the check of the kernel itself finds it.
  monkeypatch.setattr(roi_align, '_gathered_product',
                      lambda flat, index, weight: gathered(flat, tf.roll(index, 1, axis=-1), weight))
  assert ('train step, both forms: gradients', 'FAILED') in results(steps.other_form())


@pytest.mark.parametrize('policy', ['mixed_bfloat16', 'mixed_float16'])
def test_a_step_in_each_precision_is_near_float32(policy):
  assert {result for _, result in results(steps.step(steps.CPU, policy))} == {'ok'}


def test_two_replicas_compute_what_one_device_does(two_replicas):
  found = results(steps.replicas(two_replicas, '2 CPUs'))
  assert len(found) == 3 and {result for _, result in found} == {'ok'}
