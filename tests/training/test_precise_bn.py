"""Precise statistics: population moments over batches, micro-batches and replicas; training is not affected."""

import json

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf import experiment, gin_files
from rethink_tf.errors import UserError
from rethink_tf.evaluation import on_demand
from rethink_tf.models.norms import EPSILON, group_norm, sync_batch_norm
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.training import loop
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.precise_bn import Moments, PreciseStatistics
from rethink_tf.training.trainer import Trainer
from tests import tiny


class Norms(tf_keras.layers.Layer):
  """Norms in place of a detector: one on the pixels, then one on the images that have an object."""

  def __init__(self, norm=sync_batch_norm):
    super().__init__(autocast=False)
    self.body, self.head = norm('body'), norm('head')

  def call(self, images, image_sizes, labels=None, training=False):
    del image_sizes
    x = self.body(tf.tile(tf.cast(images, tf.float32), [1, 1, 1, 32]), training=training)
    used = {'used': labels.gt_classes[:, 0] > 0} if getattr(self.head, 'over_batch', False) else {}
    return self.head(x, **used, training=training)


def batches(number, used=(1, 1, 1, 1)):
  """Different batches of four images, alternately dark and bright; used: which images have an object."""
  made = []
  for k in range(number):
    batch = tiny.batch(4, seed=k, side=16)
    images = batch.images // 2 if k % 2 else batch.images
    made.append(batch._replace(images=images, gt_classes=batch.gt_classes * np.int32(used)[:, None]))
  return made


def trainer_of(batch, norm=sync_batch_norm, micro_batches=1):
  trainer = Trainer(Norms(norm), None, micro_batches)
  trainer.compile(SGD(0.1))
  trainer.detector(batch.images, batch.image_sizes, labels=batch)
  return trainer


def precise(trainer, made, due=lambda step: True, number=None):
  """The callback on a list of batches, of which it uses `number`, by default all."""
  def data(step, number):
    stacked = tf.nest.map_structure(lambda *x: tf.stack(x), *made)
    whole = tf.data.Dataset.from_tensor_slices(stacked).skip(step).take(number)
    strategy = trainer.distribute_strategy
    return strategy.experimental_distribute_dataset(whole) if strategy.num_replicas_in_sync > 1 else whole
  return PreciseStatistics(trainer, data, due, batches=number or len(made))


def reference(made, micro_batches=1):
  """Mean and population variance in float64: of all pixels, and of normalised pixels of images with an object."""
  pixels, inside = [], []
  for batch in made:
    for images, classes in zip(np.split(batch.images.numpy(), micro_batches),
                               np.split(batch.gt_classes.numpy(), micro_batches), strict=True):
      x = np.tile(np.float64(images), 32)
      pixels.append(x.reshape(-1, 96))
      y = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + EPSILON)
      inside.append(y[classes[:, 0] > 0].reshape(-1, 96))
  return [(np.mean(x, 0), np.var(x, 0)) for x in (np.concatenate(pixels), np.concatenate(inside))]


def check(trainer, expected, rtol=1e-5):
  for layer, (mean, variance) in zip((trainer.detector.body, trainer.detector.head), expected, strict=True):
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, rtol=rtol, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, rtol=rtol)


def test_equal_batches_give_the_statistics_of_one():
  made = batches(1)
  trainer = trainer_of(made[0])
  precise(trainer, made * 3).compute(0)
  check(trainer, reference(made))


@pytest.mark.parametrize('micro_batches', [1, 2])
@pytest.mark.parametrize('used', [(1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 0, 0)])
def test_several_batches_give_the_statistics_of_their_concatenation(used, micro_batches):
  """The variance between dark and bright batches counts, images without an object do not."""
  made = [*batches(3, used), *batches(1, (0, 0, 0, 0))]
  trainer = trainer_of(made[0], micro_batches=micro_batches)
  precise(trainer, made).compute(0)
  check(trainer, reference(made, micro_batches))
  inside = np.mean([np.var(np.tile(np.float64(b.images), 32), (0, 1, 2)) for b in made], 0)
  assert (trainer.detector.body.moving_variance.numpy() > 1.1 * inside).all()


@pytest.mark.parametrize('micro_batches', [1, 2])
def test_unequal_replicas_give_the_statistics_of_the_global_batch(two_replicas, micro_batches):
  """One replica has two images with an object, the other has one; the last batch has none."""
  made = [*batches(3, (1, 1, 1, 0)), *batches(1, (0, 0, 0, 0))]
  with two_replicas.scope():
    trainer = trainer_of(made[0], micro_batches=micro_batches)
  precise(trainer, made).compute(0)
  order = [0, 2, 1, 3]  # the first micro-batch holds the first image of each replica
  arranged = [tf.nest.map_structure(lambda x: tf.gather(x, order), batch) for batch in made]
  check(trainer, reference(arranged if micro_batches == 2 else made, micro_batches))


@pytest.mark.slow
def test_a_detector_on_a_replica_without_objects(two_replicas):
  """The mask head's statistics are those of the other replica's RoIs; all are equal to those of one device."""
  batch = tiny.batch(2)
  batch = batch._replace(gt_classes=batch.gt_classes * np.int32([[1], [0]]))
  empty = batch._replace(gt_classes=batch.gt_classes * 0)

  def statistics(made):
    tf_keras.utils.set_random_seed(3)
    trainer = Trainer(tiny.detector(norm=sync_batch_norm), MaskRCNNLoss())
    trainer.compile(SGD(0.1))
    trainer.make_variables(batch)
    precise(trainer, made).compute(0)
    return {v.name: v.numpy() for v in trainer.detector.non_trainable_variables}

  alone = statistics([batch, empty])
  with two_replicas.scope():
    shared = statistics([batch, empty])
  assert alone.keys() == shared.keys() and any('mask_head' in name for name in alone)
  for name, value in alone.items():
    assert np.isfinite(value).all() and not (value == (0 if 'mean' in name else 1)).all(), name
    np.testing.assert_allclose(shared[name], value, rtol=1e-3, atol=1e-3, err_msg=name)


def test_a_norm_without_elements_keeps_its_statistics():
  made = batches(2, (0, 0, 0, 0))
  trainer = trainer_of(made[0])
  trainer.detector.head.moving_mean.assign(np.full(96, 0.5, np.float32))
  precise(trainer, made).compute(0)
  np.testing.assert_array_equal(trainer.detector.head.moving_mean, np.full(96, 0.5))
  np.testing.assert_array_equal(trainer.detector.head.moving_variance, np.ones(96))
  assert trainer.detector.body.moving_mean.numpy().mean() > 10


def test_a_frozen_norm_keeps_its_statistics():
  made = batches(2)
  trainer = trainer_of(made[0])
  trainer.detector.body.trainable = False
  precise(trainer, made).compute(0)
  np.testing.assert_array_equal(trainer.detector.body.moving_mean, np.zeros(96))
  assert np.any(trainer.detector.head.moving_mean)


def test_the_batches_are_those_of_the_next_steps():
  made = batches(5)
  trainer = trainer_of(made[0])
  precise(trainer, made, number=2).compute(3)
  check(trainer, reference(made[3:]))


def test_statistics_are_computed_when_an_evaluation_is_due():
  made = batches(3)
  trainer = trainer_of(made[0])
  callback = precise(trainer, made, due=lambda step: step == 2, number=1)
  for step in (1, 2):
    trainer.optimizer.iterations.assign(step)
    callback.on_train_batch_end(0)
    assert np.any(trainer.detector.body.moving_mean) == (step == 2)


def test_without_sync_batch_norm_nothing_is_computed(see_logs, caplog):
  made = batches(1)
  trainer = trainer_of(made[0], norm=group_norm)
  callback = PreciseStatistics(trainer, training_batches=None, due=None)  # neither is called
  callback.on_train_begin()
  callback.on_train_batch_end(0)
  assert 'no SyncBatchNorm is trainable' in caplog.text


def test_batches_out_of_range():
  made = batches(1)
  with pytest.raises(UserError, match='PreciseStatistics.batches = 0'):
    PreciseStatistics(trainer_of(made[0]), lambda step, number: made, lambda step: True, batches=0)


def test_moments_of_unequal_batches_are_those_of_their_concatenation():
  """Far from zero, where a difference of means of squares would cancel."""
  rng = np.random.default_rng(0)
  chunks = [rng.normal(1e7 + k, 0.1, (n, 3)) for k, n in enumerate((1, 5, 300, 2))]
  moments = Moments()
  for chunk in chunks:
    moments.add(chunk.mean(0), chunk.var(0) * len(chunk) / max(len(chunk) - 1, 1), len(chunk))
  moments.add(np.full(3, np.nan), np.full(3, np.nan), 0)
  whole = np.concatenate(chunks)
  np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-15)
  np.testing.assert_allclose(moments.variance, whole.var(0), rtol=1e-6)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Folders of a run of four steps without precise statistics and with them."""
  folders = {}
  for name, binding in (('moving', 'None'), ('precise', '@PreciseStatistics')):
    folders[name] = tmp_path_factory.mktemp(name)
    configure(f'run.precise_statistics = {binding}')
    loop.train(experiment.run('train', str(folders[name])))
    gin.clear_config()
  return folders


def configure(*params):
  gin_files.parse(['gin_configs/demo.gin'], [
    *tiny.GIN, 'NORM = @sync_batch_norm', 'train/synthetic.num_images = 8', 'eval/synthetic.num_images = 2',
    'ResNet.depth = 14', "strategy.kind = 'one_device'", 'synthetic.image_size = (64, 64)',
    'synthetic.object_size = (16, 40)', 'BATCH_SIZE = 2',
    'KTimesSchedule.unit = 0.5',  # 0.5 steps of 16 images are 4 of 2
    'CocoEvaluator.every = 2', 'run.log_every = 1', 'run.checkpoint_every = 3',
    'PreciseStatistics.batches = 3', *params])


def scored(folder):
  """Detections of the newest evaluation of a run."""
  return json.loads(sorted((folder / 'eval').glob('*/bbox.json'))[-1].read_text())


@pytest.mark.slow
def test_training_is_the_same_with_and_without_precise_statistics(runs):
  moving, exact = ([line for line in RunFolder(runs[name], create=False).read_metrics() if line['kind'] == 'train']
                   for name in ('moving', 'precise'))
  assert [line['step'] for line in exact] == [1, 2, 3, 4]
  for a, b in zip(moving, exact, strict=True):
    assert {k: v for k, v in a.items() if 'loss' in k} == {k: v for k, v in b.items() if 'loss' in k}


@pytest.mark.slow
def test_evaluations_after_few_steps_are_finite_and_differ(runs):
  boxes = {name: np.array([found['bbox'] for found in scored(folder)]) for name, folder in runs.items()}
  assert all(np.isfinite(b).all() for b in boxes.values()) and len(boxes['precise'])
  assert boxes['precise'].shape != boxes['moving'].shape or not np.allclose(boxes['precise'], boxes['moving'])
  for name in runs:
    lines = [line for line in RunFolder(runs[name], create=False).read_metrics() if line['kind'] == 'eval']
    assert all(np.isfinite(value) for line in lines for key, value in line.items() if 'AP' in key)


@pytest.mark.slow
def test_the_checkpoint_holds_the_weights_that_were_scored(runs):
  before = scored(runs['precise'])
  gin_files.parse([str(runs['precise'] / 'config.gin')])
  assert gin.query_parameter('PreciseStatistics.batches') == 3
  on_demand.evaluate(experiment.run('evaluate', str(runs['precise'])))
  gin.clear_config()
  after = scored(runs['precise'])
  assert len(before) == len(after)
  for a, b in zip(before, after, strict=True):
    np.testing.assert_allclose([*a['bbox'], a['score']], [*b['bbox'], b['score']], rtol=1e-4, atol=1e-3)
