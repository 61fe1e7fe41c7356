"""Runs of one process that share a traced trainer compute what they compute alone."""

from typing import NamedTuple

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf import experiment, gin_files
from rethink_tf.training import sharing
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.schedules import EpochSchedule, KTimesSchedule
from rethink_tf.training.sharing import SettableRates, SharedGraphs
from rethink_tf.training.trainer import Trainer

DEMO = 'gin_configs/demo.gin'


def keys(*params):
  """Graph and process key of a configuration."""
  assert experiment.run  # registers what gin files name
  gin_files.parse([word for word in (DEMO, *params) if word.endswith('.gin')],
                  [word for word in params if not word.endswith('.gin')])
  try:
    return sharing.graph_key(gin_files.text()), sharing.process_key(gin_files.text())
  finally:
    gin.clear_config()


@pytest.fixture(scope='module')
def demo():
  return keys()


@pytest.mark.parametrize('params', [
  ('run.seed = 3',), ('SCHEDULE = 2',), ('train/synthetic.num_images = 50',), ('CocoEvaluator.every = 7',),
  ('KTimesSchedule.stop_k = 0.5',), ('gin_configs/init/pretrained_run.gin', "WEIGHTS = 'a'"), ('synthetic.seed = 4',),
  ('gin_configs/init/scratch.gin',)])
def test_seeds_schedules_data_and_initial_weights_do_not_enter_the_graph(demo, params):
  pixels = ('MaskRCNN.pixel_std = (58.0, 58.0, 58.0)',) if 'init' in params[0] else ()
  assert keys(*params, *pixels) == demo


@pytest.mark.parametrize('params', [
  ('FPN.channels = 32',), ('BATCH_SIZE = 2',), ('SGD.momentum = 0.8',), ('DetectionGenerator.score_threshold = 0.3',),
  ('NORM = @sync_batch_norm',), ('MaskRCNN.pixel_std = (1.0, 1.0, 1.0)',), ('RoISampler.batch_size = 32',),
  ('run.images_per_device = 2',), ('run.ema = @ExponentialMovingAverage',), ('SGD.clip_norm = 1.0',)])
def test_what_a_step_computes_enters_the_graph(demo, params):
  assert keys(*params)[0] != demo[0] and keys(*params)[1] == demo[1]


@pytest.mark.parametrize('params', [
  ('run.deterministic = True',), ("strategy.kind = 'mirrored'",), ("run.precision = 'mixed_bfloat16'",),
  ('import json',)])
def test_settings_of_a_process(demo, params):
  assert keys(*params)[1] != demo[1]


@pytest.mark.parametrize('text, reason', [
  ('import my_parts\n', 'my_parts may draw'), ('import rethink_tf.models.vgg\n', ''),
  ("run.precision = 'mixed_float16'\n", 'loss scale'), ('MaskRCNN.xla = True\n', 'XLA'), ('', '')])
def test_what_cannot_be_shared(text, reason):
  assert (reason in sharing.obstacle(text)) and bool(reason) == bool(sharing.obstacle(text))


def test_rates_are_those_of_the_schedule_to_the_last_bit():
  schedules = (KTimesSchedule(0.01, 16, warmup_steps=7, warmup_factor=0.3),
               KTimesSchedule(0.02, 16, base_rate=0.13, warmup_steps=0),
               KTimesSchedule(boundaries=[5, 9, 20], total=30, warmup_steps=3),
               EpochSchedule(100, 10, epochs=9, drops=(2, 5), warmup_epochs=1.1))
  rates = SettableRates(schedules[0])
  traced = tf.function(rates.__call__, input_signature=[tf.TensorSpec([], tf.int64)])
  for schedule in schedules:
    rates.set(schedule)
    alone = tf.function(schedule.__call__, input_signature=[tf.TensorSpec([], tf.int64)])
    steps = range(0, schedule.total_steps + 1, max(schedule.total_steps // 20, 1))
    for step in {*steps, *schedule.changes, *(change - 1 for change in schedule.changes if change)}:
      assert traced(tf.constant(step, tf.int64)).numpy() == alone(tf.constant(step, tf.int64)).numpy(), step
    assert rates.get_config() == schedule.get_config()
  assert traced.experimental_get_tracing_count() == 1


class Images(NamedTuple):
  images: tf.Tensor
  image_sizes: tf.Tensor


class Slope(tf_keras.layers.Layer):
  """The smallest detector."""

  def __init__(self, units=3):
    super().__init__()
    self.dense = tf_keras.layers.Dense(units)

  def call(self, images, image_sizes, labels=None, training=False):
    return self.dense(images)


def build(seed, schedule, units=3, graphs=None, shape='a'):
  tf_keras.utils.set_random_seed(seed)
  with tf.distribute.get_strategy().scope():
    trainer = Trainer(Slope(units), lambda outputs, batch: {'square': tf.reduce_mean(outputs ** 2)})
    trainer.compile(SGD(schedule if graphs is None else graphs.rates(schedule)))
    trainer.make_variables(Images(tf.TensorSpec([2, 4]), tf.TensorSpec([2, 2])))
    return trainer if graphs is None else graphs.share(trainer, shape)


def train(trainer, steps=3):
  batch = Images(tf.reshape(tf.range(8.0), [2, 4]), tf.ones([2, 2]))
  trainer.fit(tf.data.Dataset.from_tensors(batch).repeat(), steps_per_epoch=steps, verbose=0)
  variables = [*trainer.detector.variables, *trainer.optimizer.variables]
  return [variable.numpy() for variable in variables], trainer.get_metrics_result()['loss/total'].numpy()


def test_a_run_in_the_graph_of_another_one_equals_the_run_alone():
  runs = [(0, KTimesSchedule(0.001, warmup_steps=2)), (1, KTimesSchedule(0.002, warmup_steps=0)),
          (0, KTimesSchedule(0.001, warmup_steps=2))]
  graphs, results, trainers = SharedGraphs(), [], []
  for seed, schedule in runs:
    trainers.append(build(seed, schedule, graphs=graphs))
    results.append((graphs.shared, *train(trainers[-1])))
  assert [shared for shared, *_ in results] == [False, True, True] and len({id(one) for one in trainers}) == 1
  assert trainers[0].train_tf_function.experimental_get_tracing_count() == 1
  for (seed, schedule), (_, values, loss) in zip(runs, results, strict=True):
    expected, expected_loss = train(build(seed, schedule))
    assert all(map(np.array_equal, values, expected)) and loss == expected_loss
  assert not np.array_equal(results[0][1][0], results[1][1][0])


@pytest.mark.slow
def test_other_graphs_are_not_shared():
  graphs, schedule = SharedGraphs(), KTimesSchedule(0.001, warmup_steps=2)
  first = build(0, schedule, graphs=graphs)
  assert build(0, schedule, units=5, graphs=graphs) is not first  # what the data decides: other shapes
  second = build(0, schedule, graphs=graphs, shape='b')
  assert not graphs.shared and build(1, schedule, graphs=graphs, shape='b') is second and graphs.shared
  assert build(0, tf_keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5), graphs=graphs) is not second
  assert not graphs.shared
