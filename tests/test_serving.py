"""SavedModels of a detector: loaded by a process that knows nothing of this package, they find what predict finds."""

import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from rethink_tf import serving
from rethink_tf.data.augment import Resize
from rethink_tf.data.pipeline import EvalInput
from rethink_tf.data.synthetic import SyntheticSource
from rethink_tf.errors import UserError
from tests import tiny

# What a server does. Random weights are sure of nothing: the threshold is low.
SERVER = '''
import sys, numpy as np, tensorflow as tf
folder, pictures, out = sys.argv[1:]
loaded = tf.saved_model.load(folder)
files = [open(path, 'rb').read() for path in pictures.split(',')]
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
assert not any(name.split('.')[0] in ('rethink_tf', 'official') for name in sys.modules), 'not alone'
np.savez(out, **results)
'''


class Trained:
  """A tiny detector that finds something on drawn pictures, exported, and what a server made of the file."""

  def __init__(self, folder: pathlib.Path):
    self.detector = tiny.detector()
    batch = tiny.batch(1)
    tf.function(lambda b: self.detector(b.images, b.image_sizes, labels=b, training=True),
                autograph=False).get_concrete_function(batch)
    rng = np.random.default_rng(0)
    for variable in self.detector.box_predictor.variables + self.detector.mask_predictor.variables:
      variable.assign(rng.normal(scale=0.2, size=variable.shape))
    self.source = SyntheticSource(3, num_classes=tiny.CLASSES, image_size=(60, 130),
                                  object_size=(20, 50))
    self.scoring = EvalInput(self.source, 1, Resize((64,), 96))
    self.path = str(folder / 'saved_model')
    serving.export(self.path, self.detector, self.predict, self.scoring, 0.1)
    self.left = sorted(one.name for one in folder.iterdir())
    pictures = [str(folder / f'{i}.png') for i in range(3)]
    for i, picture in enumerate(pictures):
      cv2.imwrite(picture, self.source.load(i).image[..., ::-1])
    script, out = folder / 'server.py', folder / 'out.npz'
    script.write_text(SERVER)
    result = subprocess.run([sys.executable, str(script), self.path, ','.join(pictures), str(out)], cwd=folder,
                            capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    self.served = dict(np.load(out, allow_pickle=True))  # names are objects

  def predict(self, batch):
    return self.detector(batch.images, batch.image_sizes, training=False).detections

  def expected(self, i):
    """predict and paste, picture i."""
    step = [int(self.scoring.batch(step).image_ids[0]) for step in range(3)].index(int(self.source.image_ids[i]))
    batch = self.scoring.batch(step)
    generator = self.detector.detection_generator
    generator.score_threshold = 0.1
    return serving._in_pixels(batch, tf.function(self.predict, autograph=False)(batch))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  return Trained(tmp_path_factory.mktemp('export'))


@pytest.mark.parametrize('i', range(3))
def test_a_server_finds_what_predict_finds(trained, i):
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


def test_a_batch_of_files_is_its_pictures(trained):
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


def test_categories_and_threshold(trained):
  categories = trained.source.categories
  assert trained.served['categories/ids'].tolist() == [category.id for category in categories]
  assert [name.decode() for name in trained.served['categories/names']] == [category.name for category in categories]
  assert trained.served['none'] == 0


def test_the_file_needs_neither_xla_nor_python(trained):
  model = saved_model_pb2.SavedModel.FromString((pathlib.Path(trained.path) / 'saved_model.pb').read_bytes())
  graph = model.meta_graphs[0].graph_def
  nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
  assert len(nodes) > 1000
  assert not any('_XlaMustCompile' in node.attr for node in nodes)
  assert not any('_XlaMustCompile' in function.attr for function in graph.library.function)
  assert not any(node.op in ('PyFunc', 'EagerPyFunc', 'PyFuncStateless') for node in nodes)
  assert trained.left == ['saved_model']  # nothing half-written beside it


def test_jpeg_pixels_are_the_pipelines(photographs):
  from rethink_tf.data.images import decode
  differences = []
  for path in sorted((photographs / 'coco_dev').rglob('*.jpg'))[:20]:
    data = path.read_bytes()
    expected = decode(data, path.name)
    differences.append(np.abs(serving.decode(tf.constant(data)).numpy().astype(int) - expected).max())
  assert differences and max(differences) == 0, differences


def test_png_pixels_grey_and_transparent():
  rng = np.random.default_rng(0)
  grey, coloured = rng.integers(0, 256, (9, 7)).astype(np.uint8), rng.integers(0, 256, (9, 7, 4)).astype(np.uint8)
  read = lambda image: serving.decode(cv2.imencode('.png', image)[1].tobytes()).numpy()  # noqa: E731
  np.testing.assert_array_equal(read(grey), np.repeat(grey[..., None], 3, 2))
  np.testing.assert_array_equal(read(coloured), coloured[..., 2::-1])


def test_a_difference_is_an_error_and_leaves_nothing(trained, tmp_path):
  def wrong(batch):
    found = trained.predict(batch)
    return found._replace(boxes=found.boxes * 0.9)

  with pytest.raises(UserError, match='differs from predict'):
    serving.export(str(tmp_path / 'model'), trained.detector, wrong, trained.scoring, 0.1)
  assert not list(tmp_path.iterdir())


def test_refusals(trained, tmp_path):
  with pytest.raises(UserError, match='exists already'):
    serving.export(str(tmp_path), trained.detector, trained.predict, trained.scoring)
  with pytest.raises(UserError, match='score_threshold = 1.5'):
    serving.export(str(tmp_path / 'new'), trained.detector, trained.predict, trained.scoring, 1.5)


def detections(boxes, scores, classes):
  boxes = np.array(boxes, float).reshape(-1, 4)
  return {'boxes': boxes, 'scores': np.array(scores, float), 'classes': np.array(classes)}


def test_comparison():
  one = detections([[0, 0, 10, 10], [5, 5, 20, 20]], [.9, .6], [1, 2])
  assert serving.compare(one, one, 0.05, 100) == (4, 1.0, 0.0, 0.0)
  other_class = detections(one['boxes'], one['scores'], [1, 3])
  assert serving.compare(one, other_class, 0.05, 100).partners == 0.5
  assert serving.compare(one, detections([], [], []), 0.05, 100).partners == 0.0
  assert serving.compare(one, detections(one['boxes'] + [0, 0, 1, 1], one['scores'], [1, 2]), 0.05, 100).partners < 1
  barely = detections([*one['boxes'], [0, 0, 3, 3]], [.9, .6, .05001], [1, 2, 1])  # may be above or below
  assert serving.compare(one, barely, 0.05, 100).partners == 1.0
  assert serving.compare(detections([], [], []), detections([], [], []), 0.05, 100).partners == 1.0
