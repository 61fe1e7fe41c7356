"""SavedModels of a detector: without this package, their detections equal those of predict."""

import functools
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from rethink_tf.data.augment import Resize
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.data.detection.synthetic import KEYPOINTS, SyntheticSource
from rethink_tf.errors import UserError
from rethink_tf.export import comparison, saved_model
from rethink_tf.predict import detectors
from tests import tiny

# Random weights are never confident, so the threshold is low.
SERVER = '''
import sys, numpy as np, tensorflow as tf
folder, images, out = sys.argv[1:]
loaded = tf.saved_model.load(folder)
files = [open(path, 'rb').read() for path in images.split(',')]
results = {}
for i, file in enumerate(files):
  image = tf.io.decode_png(file, channels=3)
  for name, value in loaded.signatures['image'](image=image).items():
    results[f'image{i}/{name}'] = value.numpy()
for name, value in loaded.signatures['serving_default'](images=tf.constant(files)).items():
  results[f'batch/{name}'] = value.numpy()
for name, value in loaded.signatures['categories']().items():
  results[f'categories/{name}'] = value.numpy()
results['none'] = loaded.detect(image, 0.999)['num_detections'].numpy()
for name, value in loaded.detect_files(tf.constant(files), 0.3).items():
  results[f'high/{name}'] = value.numpy()
assert not any(name.split('.')[0] in ('rethink_tf', 'official') for name in sys.modules)
np.savez(out, **results)
'''


class Trained:
  """A tiny detector with some detections on synthetic images, exported."""

  def __init__(self, folder: pathlib.Path, detector):
    self.detector = detector
    batch = tiny.batch(1, keypoints=len(KEYPOINTS))
    self.detector(batch.images, batch.image_sizes, labels=batch, training=True)
    rng = np.random.default_rng(0)
    other_heads = detector.mask_predictor or detector.keypoint_predictor
    for variable in detector.box_predictor.variables + other_heads.variables:
      variable.assign(rng.normal(scale=0.2, size=variable.shape))
    self.source = SyntheticSource(3, num_classes=tiny.CLASSES, image_size=(60, 130),
                                  object_size=(20, 50))
    self.source.categories = tuple(one._replace(skeleton=((1, 2), (4, 3))) for one in self.source.categories)
    self.inputs = EvalInput(self.source, 1, Resize((64,), 96))
    self.path = str(folder / 'saved_model')
    saved_model.export(self.path, self.detector, self.predict, self.inputs, 0.1)
    self.left = sorted(one.name for one in folder.iterdir())

  def predict(self, batch):
    return self.detector(batch.images, batch.image_sizes, training=False).detections

  def expected(self, i):
    """Return the restored and pasted detections of image i."""
    step = [int(self.inputs.batch(step).image_ids[0]) for step in range(3)].index(int(self.source.image_ids[i]))
    batch = self.inputs.batch(step)
    generator = self.detector.detection_generator
    generator.score_threshold = 0.1
    return comparison.in_pixels(batch, tf.function(self.predict, autograph=False)(batch))


class Served(Trained):
  """With the results of a server that loads the SavedModel."""

  def __init__(self, folder: pathlib.Path):
    super().__init__(folder, tiny.detector())
    paths = [str(folder / f'{i}.png') for i in range(3)]
    for i, path in enumerate(paths):
      cv2.imwrite(path, self.source.load(i).image[..., ::-1])
    script, out = folder / 'server.py', folder / 'out.npz'
    script.write_text(SERVER)
    result = subprocess.run([sys.executable, str(script), self.path, ','.join(paths), str(out)], cwd=folder,
                            capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    self.served = dict(np.load(out, allow_pickle=True))  # names are objects


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  return Served(tmp_path_factory.mktemp('export'))


@functools.cache
def stub():
  """Two detections in an image, in place of a detector's: the batch signature without a detector."""
  def find(image, threshold):
    size = tf.cast(tf.shape(image)[:2], tf.float64)
    return {'boxes': tf.stack([tf.concat([[0.0, 0.0], size], 0)] * 2), 'scores': tf.stack([threshold + 0.5, threshold]),
            'classes': tf.constant([1, 2]), 'masks': tf.ones([2, 28, 28])}

  find = tf.function(find, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([])])
  return tf.function(lambda files: saved_model.detect_in_files(find, 3, files, 0.1), autograph=False,
                     input_signature=[tf.TensorSpec([None], tf.string)])


def encoded(extension, size=(20, 30)):
  image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
  return cv2.imencode(extension, image)[1].tobytes()


def test_a_batch_of_files_without_a_detector():
  found = stub()(tf.constant([encoded('.jpg'), encoded('.png', (10, 40))]))
  np.testing.assert_array_equal(found['num_detections'], [2, 2])
  np.testing.assert_array_equal(found['image_sizes'], [[20, 30], [10, 40]])
  assert found['masks'].shape == (2, 2, 20, 40) and found['boxes'].shape == (2, 3, 4)


def test_an_empty_batch():
  found = stub()(tf.zeros([0], tf.string))
  assert found['masks'].shape == (0, 0, 0, 0) and found['boxes'].shape == (0, 3, 4) and found['scores'].shape == (0, 3)


@pytest.mark.parametrize('wrong', [encoded('.bmp'), encoded('.webp'), encoded('.tiff'), encoded('.jpg')[:300],
                                   encoded('.png')[:300], b'', b'<html>'],
                         ids=['bmp', 'webp', 'tiff', 'cut jpeg', 'cut png', 'empty', 'page'])
def test_bad_rows_of_a_batch_are_named(wrong):
  good = encoded('.png')
  with pytest.raises(tf.errors.InvalidArgumentError, match=r'not readable .* are the rows \(from 0\)\] \[1 3\]'):
    stub()(tf.constant([good, wrong, good, wrong]))


@pytest.mark.slow
@pytest.mark.parametrize('i', range(3))
def test_a_server_returns_the_detections_of_predict(trained, i):
  expected = trained.expected(i)
  found = {name.split('/')[1]: value for name, value in trained.served.items() if name.startswith(f'image{i}/')}
  number = len(expected['scores'])
  assert number > 3 and found['num_detections'] == number
  np.testing.assert_allclose(found['scores'], expected['scores'], atol=1e-5)
  np.testing.assert_array_equal(found['classes'], expected['classes'])
  np.testing.assert_allclose(found['boxes'], expected['boxes'], atol=1e-2)
  height, width = trained.source.sizes[i]
  assert found['masks'].shape == (number, height, width) and found['masks'].dtype == np.uint8
  assert expected['masks'].any() and (found['masks'] != expected['masks']).mean() < 1e-4
  assert found['boxes'].min() >= 0 and (found['boxes'][:, 2:] <= [height, width]).all()


@pytest.mark.slow
def test_a_batch_of_files_equals_single_images(trained):
  served, sizes = trained.served, trained.source.sizes[:3]
  np.testing.assert_array_equal(served['batch/image_sizes'], sizes)
  most = max(int(served[f'image{i}/num_detections']) for i in range(3))
  assert served['batch/masks'].shape == (3, most, *sizes.max(0))
  for i, (height, width) in enumerate(sizes):
    number = int(served['batch/num_detections'][i])
    assert number == served[f'image{i}/num_detections']
    for name in ('boxes', 'scores', 'classes'):
      np.testing.assert_array_equal(served[f'batch/{name}'][i, :number], served[f'image{i}/{name}'])
      assert not served[f'batch/{name}'][i, number:].any()
    masks = served['batch/masks'][i]
    np.testing.assert_array_equal(masks[:number, :height, :width], served[f'image{i}/masks'])
    assert not masks[number:].any() and not masks[:, height:].any() and not masks[:, :, width:].any()


@pytest.mark.slow
def test_a_batch_at_another_threshold(trained):
  """The most confident of the same detections, and no masks for others."""
  served, fewer = trained.served, 0
  for i in range(3):
    number, all_scores = int(served['high/num_detections'][i]), served[f'image{i}/scores']
    assert number == (all_scores > 0.3).sum()
    np.testing.assert_allclose(served['high/scores'][i, :number], all_scores[:number], atol=1e-6)
    np.testing.assert_array_equal(served['high/masks'][i, :number], served['batch/masks'][i, :number])
    fewer += len(all_scores) - number
  assert fewer > 0 and served['high/masks'].shape[1] < served['batch/masks'].shape[1]


@pytest.mark.slow
def test_keypoints_equal_those_of_predict(tmp_path):
  """In pixels of the image, with their names."""
  trained = Trained(tmp_path, tiny.keypoint_detector(keypoints=len(KEYPOINTS)))
  loaded = saved_model.load(trained.path)
  images = [trained.source.load(i).image for i in range(3)]
  files = tf.stack([tf.io.encode_png(image) for image in images])
  batch = {name: value.numpy() for name, value in loaded.signatures['serving_default'](images=files).items()}
  assert 'masks' not in batch
  for i, image in enumerate(images):
    expected = trained.expected(i)
    found = {name: value.numpy() for name, value in loaded.signatures['image'](image=tf.constant(image)).items()}
    number = len(expected['scores'])
    assert number > 3 and found['keypoints'].shape == (number, len(KEYPOINTS), 3) and 'masks' not in found
    np.testing.assert_allclose(found['scores'], expected['scores'], atol=1e-5)
    apart = np.abs(found['keypoints'] - expected['keypoints']).max(-1)
    assert (apart < 0.01).mean() > 0.95  # rounding decides between equally high cells of a heat map
    low, high = found['boxes'][:, None, :2], found['boxes'][:, None, 2:]
    inside = (found['keypoints'][..., :2] >= low - 1) & (found['keypoints'][..., :2] <= high + 1)
    assert inside.mean() > 0.9  # boxes, unlike keypoints, are clipped to the image
    np.testing.assert_array_equal(batch['keypoints'][i, :number], found['keypoints'])
    assert not batch['keypoints'][i, number:].any()
  names = loaded.signatures['categories']()['keypoint_names'].numpy()
  assert [name.decode() for name in names] == list(KEYPOINTS)
  person = detectors.SavedModelDetector(trained.path).categories[0]
  assert person.keypoints == KEYPOINTS and person.skeleton == ((1, 2), (4, 3))


@pytest.mark.slow
def test_categories_and_threshold(trained):
  categories = trained.source.categories
  assert trained.served['categories/ids'].tolist() == [category.id for category in categories]
  assert [name.decode() for name in trained.served['categories/names']] == [category.name for category in categories]
  assert trained.served['none'] == 0 and 'categories/keypoint_names' not in trained.served


@pytest.mark.slow
def test_the_graph_needs_neither_xla_nor_python(trained):
  model = saved_model_pb2.SavedModel.FromString((pathlib.Path(trained.path) / 'saved_model.pb').read_bytes())
  graph = model.meta_graphs[0].graph_def
  nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
  assert len(nodes) > 1000
  assert not any('_XlaMustCompile' in node.attr for node in nodes)
  assert not any('_XlaMustCompile' in function.attr for function in graph.library.function)
  assert not any(node.op in ('PyFunc', 'EagerPyFunc', 'PyFuncStateless') for node in nodes)
  assert trained.left == ['saved_model']  # no temporary files


def test_jpeg_pixels_equal_those_of_the_input_pipeline(real_images):
  from rethink_tf.data.images import decode
  differences = []
  for path in sorted((real_images / 'coco_dev').rglob('*.jpg'))[:20]:
    data = path.read_bytes()
    expected = decode(data, path.name)
    differences.append(np.abs(saved_model.decode(tf.constant(data)).numpy().astype(int) - expected).max())
  assert differences and max(differences) == 0, differences


def test_png_pixels_grey_and_transparent():
  rng = np.random.default_rng(0)
  grey, coloured = rng.integers(0, 256, (9, 7)).astype(np.uint8), rng.integers(0, 256, (9, 7, 4)).astype(np.uint8)
  read = lambda image: saved_model.decode(cv2.imencode('.png', image)[1].tobytes()).numpy()  # noqa: E731
  np.testing.assert_array_equal(read(grey), np.repeat(grey[..., None], 3, 2))
  np.testing.assert_array_equal(read(coloured), coloured[..., 2::-1])


@pytest.mark.parametrize('highest', [255, 4095, 65535])
def test_png_pixels_of_16_bits(highest):
  from rethink_tf.data.images import decode
  values = np.linspace(0, highest, 9 * 7 * 3).reshape(9, 7, 3).astype(np.uint16)
  data = cv2.imencode('.png', values)[1].tobytes()
  found = saved_model.decode(tf.constant(data)).numpy()
  np.testing.assert_array_equal(found, decode(data, 'deep.png'))
  assert found.max() == 255


@pytest.mark.slow
def test_a_difference_is_an_error_and_leaves_no_files(trained, tmp_path):
  def wrong(batch):
    detections = trained.predict(batch)
    return detections._replace(boxes=detections.boxes * 0.9)

  with pytest.raises(UserError, match='differs from predict'):
    saved_model.export(str(tmp_path / 'model'), trained.detector, wrong, trained.inputs, 0.1)
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_existing_folders_and_impossible_thresholds_are_refused(trained, tmp_path):
  with pytest.raises(UserError, match='exists already'):
    saved_model.export(str(tmp_path), trained.detector, trained.predict, trained.inputs)
  with pytest.raises(UserError, match='score_threshold = 1.5'):
    saved_model.export(str(tmp_path / 'new'), trained.detector, trained.predict, trained.inputs, 1.5)
