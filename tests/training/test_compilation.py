"""Compilation beside tracing: the forms that a step meets are known before, and are those that XLA compiles."""

import math
import threading
import types

import pytest
import tensorflow as tf

from rethink_tf import api
from rethink_tf.models import norms
from rethink_tf.ops.group_norm import NormalisedMaps
from rethink_tf.structures import Devices
from rethink_tf.training import compilation
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer
from tests import tiny

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


@pytest.fixture(scope='module')
def trainer():
  made = Trainer(tiny.detector(), MaskRCNNLoss())
  made.compile(SGD(0.05, weight_decay=0.0))
  made.make_variables(tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), tiny.batch(2)))
  return made


def experiment(trainer, replicas=1, shape=(64, 96)):
  """What compilation asks of an experiment: micro-batches of two images of a padded shape."""
  facts = types.SimpleNamespace(padded_shape=shape)
  return types.SimpleNamespace(trainer=trainer, devices=Devices(replicas, 1, 2),
                               train_input=types.SimpleNamespace(facts=lambda step: facts))


def form(shape, channels=32):
  return NormalisedMaps((*shape, channels), tf.float32, 32, 1e-5, False)


@pytest.mark.parametrize('shape', [(64, 96), (96, 64), (160, 224)])
def test_the_maps_of_a_batch_are_those_of_the_blank_image_resized(trainer, shape, monkeypatch):
  met = []
  monkeypatch.setattr(norms, 'normalise_groups', lambda x, *arguments: met.append(tuple(x.shape)) or x)
  images = tf.zeros([2, *shape, 3], tf.uint8)
  trainer.detector(images, tf.constant([shape] * 2, tf.float32), training=False)
  of_images = [each for each in met if each[0] == 2 and each[1:3] != (7, 7)]
  found = [each.shape for each in compilation.resized(trainer.blank_maps, trainer.blank_shape, 2, shape)]
  assert sorted(found) == sorted(set(of_images)) and len(of_images) > 8
  assert [math.prod(each) for each in found] == sorted(map(math.prod, found), reverse=True)


def test_maps_of_rois_and_each_form_twice_are_left_out():
  blank = [form((1, 32, 32)), form((1, 32, 32)), form((1, 16, 16)), form((7, 8, 8)), form((1, 14, 14)), form((1, 1, 1))]
  found = compilation.resized(blank, (64, 64), 4, (800, 1333))
  assert [each.shape[:3] for each in found] == [(4, 400, 667), (4, 200, 334), (4, 13, 21)]
  assert compilation.resized(blank[:1], (72, 72), 4, (72, 72)) == []


def test_the_graph_of_a_step_calls_the_functions_that_are_compiled_ahead(trainer):
  """By name: a function of another name would be compiled again."""
  def called(graph):
    return {node.attr['f'].func.name for node in graph.as_graph_def().node if node.op == 'PartitionedCall'}

  step = tf.function(lambda batch: trainer.gradients(batch)[1], autograph=False).get_concrete_function(tiny.batch(2))
  ahead = tf.function(lambda x: form((2, 8, 8)).passes()(x), autograph=False).get_concrete_function(
    tf.TensorSpec([None, None, None, 32]))
  nodes = [node for function in ahead.graph.as_graph_def().library.function for node in function.node_def]
  names = {node.attr['f'].func.name for node in nodes if node.op == 'PartitionedCall'}
  assert len(names) == 2 and names <= called(step.graph)


def threads():
  return [thread for thread in threading.enumerate() if thread.name == 'compilation']


def test_the_thread_ends_with_what_runs_inside(trainer):
  with compilation.ahead(experiment(trainer, shape=(128, 64)), 0):
    running = threads()
  assert len(running) == 1 and not running[0].is_alive()
  with pytest.raises(KeyError), compilation.ahead(experiment(trainer, shape=(64, 128)), 0):
    raise KeyError
  assert not threads()


def test_what_was_compiled_is_not_compiled_again(trainer):
  with compilation.ahead(experiment(trainer), 0):
    for thread in threads():
      thread.join()
  with compilation.ahead(experiment(trainer), 0):
    assert not threads()


def test_several_replicas_compile_for_themselves(trainer):
  with compilation.ahead(experiment(trainer, replicas=2, shape=(64, 160)), 0):
    assert not threads()


def test_an_error_is_left_to_the_step(trainer, monkeypatch):
  met = []

  def fail(x):
    met.append(tuple(x.shape))
    raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating')

  monkeypatch.setattr(NormalisedMaps, 'passes', lambda self: fail)
  for _ in range(2):  # nothing is taken for compiled
    with compilation.ahead(experiment(trainer, shape=(96, 160)), 0):
      for thread in threads():
        thread.join()
  assert len(met) == 2 and met[0] == met[1] == (2, 48, 80, 32)


def test_training_compiles_ahead(monkeypatch, tmp_path):
  """Every form of the first batch."""
  met = []
  passes = NormalisedMaps.passes
  monkeypatch.setattr(NormalisedMaps, 'passes', lambda self: met.append(self.shape) or passes(self))
  monkeypatch.setattr(compilation, '_compiled', set())  # by other tests of this process
  api.train(('gin_configs/demo.gin', 'gin_configs/models/faster_rcnn.gin'), (
    *tiny.PARAMS, 'KTimesSchedule.unit = 0.125', 'CocoEvaluator.every = 0', 'CocoEvaluator.at_end = False'),
    tmp_path / 'run')
  assert {shape[:3] for shape in met} == {(2, side, side) for side in (32, 16, 8, 4, 2)}
