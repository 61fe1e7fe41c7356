"""Training batches without Python: those of the Python input, on one host or several, from any step on."""

import pathlib
import types

import cv2
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data.augment import LargeScaleJitter, Resize
from rethink_tf.data.batching import errors_of
from rethink_tf.data.conversion import convert
from rethink_tf.data.detection import graph_input
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.detection.records import RecordSource
from rethink_tf.data.mixing import Mosaic
from rethink_tf.errors import UserError
from rethink_tf.structures import Experiment
from tests.small_coco import annotation, crowd, image, write

# Operations that call back into the Python of the process that made the graph.
PYTHON = {'PyFunc', 'PyFuncStateless', 'EagerPyFunc', 'GeneratorDataset', 'GeneratorDatasetV2'}
NAMES = ['nose', 'left_eye', 'right_eye']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Records of 14 images of three aspects, with masks, keypoints and a crowd."""
  data, out = tmp_path_factory.mktemp('json'), tmp_path_factory.mktemp('records')
  rng = np.random.default_rng(0)
  images = [image(i, *((60, 80), (80, 60), (50, 90))[i % 3]) for i in range(1, 15)]
  annotations = [crowd(1, 1, 80, 60)]
  for i in range(1, 15):
    for k in range(i % 4 + 1):
      x, y, w, h = rng.uniform(2, 25, 4).round(2).tolist()
      points = [[x + 1, y + 2, 2], [x + w / 2, y + 1, 1], [0, 0, 0]]
      annotations.append(annotation(10 * i + k, i, (x, y, w, h), segmentation=[[x, y, x + w, y + h / 2, x, y + h]],
                                    category_id=k % 2 + 1, keypoints=sum(points, []) if k % 2 == 0 else []))
  write(data, images, annotations, [{'id': 1, 'name': 'a', 'keypoints': NAMES}, {'id': 2, 'name': 'b'}])
  for entry in images:
    coarse = rng.integers(0, 256, [5, 7, 3]).astype(np.uint8)
    cv2.imwrite(str(data / 'train2017' / entry['file_name']), cv2.resize(coarse, (entry['width'], entry['height'])))
  convert(CocoSource(str(data), keypoints=True), str(out), 'train2017', num_shards=3, png_masks=False)
  return str(out)


@pytest.fixture(scope='module')
def inputs(folder):
  source = RecordSource(folder, training=True, keypoints=True)
  return TrainInput(source, 4, seed=5, resize=Resize((96, 128), 160), max_instances=3)


def assert_batch(ours, expected, levels=0):
  """The same batch, image values apart by `levels`."""
  for name, one, other in zip(ours._fields, ours, expected, strict=True):
    one, other = np.asarray(one), np.asarray(other)
    assert one.dtype == other.dtype and one.shape == other.shape, name
    assert (np.abs(one.astype(np.int16) - other) <= levels).all() if name == 'images' else (one == other).all(), name


def test_batches_are_those_of_the_python_input(inputs):
  made = graph_input.dataset(inputs, 2, 12)
  assert made.element_spec == inputs.dataset().element_spec
  flipped = []
  for step, batch in enumerate(made, 2):
    assert_batch(batch, inputs.batch(step), levels=1)
    planned = inputs.plan[step]
    flipped += inputs.sample(planned.indices, planned.epochs)[0].tolist()
  assert step == 13 and 0 < sum(flipped) < len(flipped)
  assert inputs.dropped_instances > 0  # of images with more than max_instances


@pytest.mark.parametrize('tighten', [True, False])
def test_large_scale_jitter_crops_as_in_python(inputs, tighten):
  jittered = TrainInput(inputs.source, 4, seed=1, resize=LargeScaleJitter(64, (0.3, 2.5), tighten))
  for step, batch in enumerate(graph_input.dataset(jittered, 0, 8)):
    assert_batch(batch, jittered.batch(step), levels=1)


def test_a_resumed_run_and_several_hosts_have_the_same_batches(inputs):
  whole = list(graph_input.dataset(inputs, 0, 7))
  resumed = next(iter(graph_input.dataset(inputs, 5, 2)))
  assert_batch(resumed, whole[5])
  for hosts, replicas in ((2, 2), (2, 4)):
    shares = [list(graph_input.dataset(inputs, 5, 2, tf.distribute.InputContext(hosts, host, replicas)))
              for host in range(hosts)]
    local = replicas // hosts
    for k in range(2):  # replicas of host 0, then of host 1; a host yields the shares of its replicas in turn
      rows = [share for host in shares for share in host[k * local:(k + 1) * local]]
      assert_batch(tf.nest.map_structure(lambda *rows: np.concatenate(rows), *rows), whole[5 + k])


def test_every_image_once_an_epoch(inputs):
  images = len(inputs.source.image_ids)
  steps = inputs.plan.batches_before(2)
  rows = [graph_input.numbers(inputs, 0, steps, slice(2 * host, 2 * host + 2))[:, 0] for host in range(2)]
  indices = np.stack([one.reshape(steps, 2) for one in rows], axis=1).ravel()
  epochs = np.concatenate([inputs.plan[step].epochs for step in range(steps)])
  for epoch in range(2):  # its last images may wait for the next one
    counts = np.bincount(indices[epochs == epoch], minlength=images)
    assert counts.max() == 1 and (epoch or counts.sum() > images - 4 * len(inputs.padded_shapes))
  assert np.bincount(indices[epochs == 0], minlength=images).tolist() == [1] * images


def operations(dataset):
  """All operations of a data set, of its functions too."""
  graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
  nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
  return {node.op for node in nodes}


def test_there_is_no_python_in_the_graph(inputs):
  found = operations(graph_input.dataset(inputs, 0, 2, tf.distribute.InputContext(2, 1, 2)))
  assert {'TFRecordDatasetV2', 'DecodeJpeg', 'ResizeBilinear'} <= found and not found & PYTHON
  assert operations(inputs.dataset()) & PYTHON  # the walk would find it


def _copied(folder, target):
  for path in tf.io.gfile.glob(f'{folder}/*'):
    tf.io.gfile.copy(path, str(target / path.split('/')[-1]))
  return str(target)


def test_only_converted_records_are_read(folder, tmp_path):
  from rethink_tf.data.detection.synthetic import SyntheticSource
  with pytest.raises(UserError, match='is read by Python, which runs on one host of this TPU only: convert it'):
    TrainInput(SyntheticSource(num_images=2)).check_graph()
  with pytest.raises(UserError, match=r'TrainInput.mix = @Mosaic\(\) works on images in Python'):
    TrainInput(SyntheticSource(num_images=2), mix=Mosaic()).check_graph()
  source = RecordSource(folder)
  record = tf.train.Example.FromString(next(iter(tf.data.TFRecordDataset(source.locations.paths[0]))).numpy())
  for name in [name for name in record.features.feature if name.startswith('rethink_tf/')]:
    del record.features.feature[name]
  with tf.io.TFRecordWriter(str(tmp_path / 'other-00000-of-00001.tfrecord')) as writer:
    writer.write(record.SerializeToString())
  with pytest.raises(UserError, match='its records have no masks that TensorFlow can read'):
    TrainInput(RecordSource(str(tmp_path), 'other')).check_graph()


def test_one_shard_of_another_converter(folder, tmp_path):
  """As of an earlier version, in a folder that was converted in parts: TensorFlow failed at the step of its image."""
  source = RecordSource(_copied(folder, tmp_path), training=True)
  last = source.locations.paths[-1]
  records = [tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(last)]
  inputs = TrainInput(source, 4, resize=Resize(64, 96))
  with tf.io.TFRecordWriter(last) as writer:
    for record in records:
      kept = {name: feature for name, feature in record.features.feature.items() if not name.startswith('rethink_tf/')}
      writer.write(tf.train.Example(features=tf.train.Features(feature=kept)).SerializeToString())
  with pytest.raises(UserError, match=f'{last}: its records have no masks'):
    inputs.check_graph()
  next(pathlib.Path(tmp_path).glob('*-index.json')).unlink()  # else the shard is refused, as another than the converted
  inputs = TrainInput(RecordSource(str(tmp_path), training=True), 4, resize=Resize(64, 96))
  inputs.is_graph = True  # as after a check
  with pytest.raises(UserError, match='an image cannot be read: .*Feature: '), errors_of(inputs):
    list(graph_input.dataset(inputs, 0, 8))


def test_an_experiment_on_several_hosts_reads_the_graph(inputs, two_replicas):
  experiment = types.SimpleNamespace(hosts=2, strategy=two_replicas, train_input=inputs, total_steps=5)
  batches = list(Experiment.batches(experiment, 3))
  assert len(batches) == 2 and len(list(Experiment.batches(experiment, 5, 1))) == 1
  shares = tf.nest.map_structure(lambda x: np.concatenate(two_replicas.experimental_local_results(x)), batches[1])
  assert_batch(shares, next(iter(graph_input.dataset(inputs, 4, 1))))


def test_a_damaged_record_is_an_error_of_one_line(folder, tmp_path):
  source = RecordSource(_copied(folder, tmp_path), training=True)
  damaged = source.locations.paths[1]
  content = bytearray(tf.io.gfile.GFile(damaged, 'rb').read())
  content[len(content) // 2] ^= 1
  tf.io.gfile.GFile(damaged, 'wb').write(bytes(content))
  inputs = TrainInput(source, 4, resize=Resize(64, 96))
  with pytest.raises(UserError, match='an image cannot be read: .*orrupt.*inspect_data') as caught, errors_of(inputs):
    list(inputs.graph_dataset(0, 8))
  assert '\n' not in str(caught.value)
