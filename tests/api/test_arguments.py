"""Wrong arguments of the Python API: a line that names them, whatever their type; and one configuration at a time."""

import inspect
from concurrent.futures import ThreadPoolExecutor

import gin
import pytest
import tensorflow as tf
from tensorflow.python.lib.io import file_io

from rethink_tf import api
from rethink_tf.api import arguments
from rethink_tf.errors import UserError
from tests.api.test___init__ import FirstPixel, image

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


@pytest.fixture
def first_pixel():
  return api.Detector(FirstPixel())


# Values of the wrong type, or of the right one and wrong, as they come from a form, a JSON file or a shell.
PATHS, BINDINGS = (None, 5, b'runs/x', '', {'a': 1}), (None, 5, b'SCHEDULE = 1', [None], {'SCHEDULE': 1})
NUMBERS, SWITCHES = ('0.5', None, [0.5], True, -0.1, 2, float('nan')), ('False', None, 0)
WRONG = [
  (api.train, 'gin_files', (*PATHS, [5])), (api.train, 'gin_params', BINDINGS), (api.train, 'model_dir', PATHS[1:]),
  (api.train, 'data_dir', PATHS[1:]), (api.train, 'weights', PATHS[1:]), (api.train, 'allow_changes', SWITCHES),
  (api.evaluate, 'model_dir', PATHS), (api.evaluate, 'allow_changes', SWITCHES), (api.evaluate, 'gin_files', (None, 5)),
  (api.compare, 'model_dirs', (*PATHS, [None], [''])), (api.compare, 'output', PATHS),
  (api.compare, 'metric', (5, ['a'])), (api.compare, 'seed_spread', ('0.3', [1], True, -1)),
  (api.inspect_data, 'gin_files', PATHS),
  (api.inspect_data, 'output', PATHS[1:]), (api.inspect_run, 'model_dir', PATHS), (api.inspect_run, 'iou', NUMBERS),
  (api.inspect_run, 'score', tuple(one for one in NUMBERS if one is not None)), (api.inspect_run, 'output', PATHS[1:]),
  (api.Detector.from_run, 'model_dir', PATHS), (api.Detector.from_run, 'batch', ('2', None, 2.0, True, 0, [1])),
  (api.Detector.from_run, 'averages', SWITCHES), (api.Detector.from_run, 'gin_params', BINDINGS),
  (api.Detector.from_saved_model, 'folder', PATHS), (api.Detector.from_saved_model, 'batch', ('2', None, 1.5, 0))]


@pytest.mark.parametrize('call, name, values', WRONG, ids=[f'{call.__name__}-{name}' for call, name, _ in WRONG])
def test_wrong_values_are_refused_with_the_name_of_the_argument(call, name, values, tmp_path):
  first = {'gin_files': 'gin_configs/demo.gin', 'model_dir': tmp_path, 'model_dirs': [tmp_path], 'folder': tmp_path}
  required = {one for one, of in inspect.signature(call).parameters.items() if of.default is inspect.Parameter.empty}
  for value in values:
    with pytest.raises(UserError, match=rf'^{name} = .*: use ') as error:
      call(**{one: first[one] for one in required} | {name: value})
    assert '\n' not in str(error.value)


def test_wrong_values_of_a_detector_are_refused(first_pixel):
  for threshold in NUMBERS:
    with pytest.raises(UserError, match='threshold = .*: use a number, 0 to 1'):
      first_pixel.predict(image(1), threshold=threshold)
  with pytest.raises(UserError, match='upright = .*: use True or False'):
    first_pixel.predict(image(1), upright='False')
  for images in (b'photos', memoryview(image(1))):
    with pytest.raises(UserError, match=f'image 0 is of type {type(images).__name__}: give a path'):
      first_pixel.predict(images)
  for detections in (None, first_pixel.predict([image(1)])):
    with pytest.raises(UserError, match='detections = .*: give one element of what predict has returned'):
      first_pixel.draw(image(1), detections)


def test_an_error_of_a_part_is_one_line(tmp_path):
  with pytest.raises(UserError, match='nowhere') as error:  # gin appends 'In call to configurable ...' to it
    api.train(['gin_configs/demo.gin', 'gin_configs/data/own.gin'], data_dir=tmp_path / 'nowhere', model_dir=tmp_path)
  assert '\n' not in str(error.value)


def test_addresses_that_cannot_be_read_are_named(first_pixel):
  address = 'https://example.com/a'  # TensorFlow reads none
  for call in (lambda: first_pixel.predict(address), lambda: api.evaluate(address), lambda: api.inspect_run(address),
               lambda: api.Detector.from_run(address)):
    with pytest.raises(UserError, match=f'^{address}.*: TensorFlow cannot open https://') as error:
      call()
    assert '\n' not in str(error.value)


def test_a_bucket_out_of_reach_is_not_one_without_a_run(first_pixel, monkeypatch):
  class OutOfReach:
    """TensorFlow's file system without a network."""

    def __getattr__(self, name):
      return getattr(file_io_in_c, name)

    def _refuse(self, path, *_):
      raise tf.errors.FailedPreconditionError(None, None, f'Could not resolve host when reading {path.decode()}')

    FileExists = IsDirectory = GetMatchingFiles = GetChildren = _refuse

  file_io_in_c = file_io._pywrap_file_io
  monkeypatch.setattr(file_io, '_pywrap_file_io', OutOfReach())
  address = 'gs://bucket/a'
  for call in (lambda: first_pixel.predict(address), lambda: api.evaluate(address), lambda: api.inspect_run(address),
               lambda: api.Detector.from_run(address)):
    with pytest.raises(UserError, match=f'^storage: Could not resolve host when reading {address}.*: check') as error:
      call()
    assert '\n' not in str(error.value)


def test_configurations_of_two_threads_are_not_mixed(tmp_path):
  with arguments.configuration(['gin_configs/demo.gin'], []):
    before = gin.config_str()
    with ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match='another call of this API'):
      pool.submit(api.inspect_data, 'gin_configs/scratch_1x.gin').result()
    assert gin.config_str() == before
  assert not gin.config_str()
