"""Published weights by name: what a name is, its download, what a file of each entry holds, and what it has cost."""

import hashlib
import json
import pathlib
import pickle
import re
import types

import gin
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf import api
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.errors import UserError
from rethink_tf.models.norms import sync_batch_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.weights import catalog, formats, options
from rethink_tf.weights.__main__ import describe
from rethink_tf.weights.contents import Architecture
from rethink_tf.weights.pretrained import PretrainedWeights
from tests import tiny
from tests.downloads.server import serving
from tests.weights import files, reference
from tests.weights import test_detectron2_settings as detectors
from tests.weights import test_state_dicts as wrapped
from tests.weights import test_torchvision_vgg as vgg

BLOCKS = {'50': (3, 4, 6, 3), '101': (3, 4, 23, 3), '152': (3, 8, 36, 3)}
NARROWER = 8  # than the real networks


def backbone(network: str, norm: str) -> dict[str, np.ndarray]:
  """Arrays of a network of an entry, by Detectron2's names, an eighth as wide."""
  depth, groups, width = re.fullmatch(r'ResNe(?:X?)t-(\d+)(?: (\d+)x(\d+)d)?', network).groups()
  groups, width = int(groups or 1), int(width or 64) // NARROWER
  kinds = ('weight', 'bias', 'running_mean', 'running_var') if norm == 'bn' else ('weight', 'bias')
  found = {}

  def conv(name, out, into, side):
    found[f'{name}.weight'] = np.zeros((out, into, side, side), 'f')
    found.update({f'{name}.norm.{kind}': np.ones(out, 'f') for kind in kinds})

  conv('stem.conv1', 64 // NARROWER, 3, 7)
  into = 64 // NARROWER
  for stage, blocks in enumerate(BLOCKS[depth]):
    inner, out = groups * width * 2**stage, 256 // NARROWER * 2**stage
    for block in range(blocks):
      name = f'res{stage + 2}.{block}'
      conv(f'{name}.conv1', inner, into, 1)
      conv(f'{name}.conv2', inner, inner // groups, 3)
      conv(f'{name}.conv3', out, inner, 1)
      if not block:
        conv(f'{name}.shortcut', out, into, 1)
      into = out
  return found | {'linear.weight': np.zeros((5, into), 'f'), 'linear.bias': np.zeros(5, 'f')}


def write(entry: catalog.Entry, path) -> None:
  """Write a file of an entry's layout."""
  if entry.network == 'VGG-16':
    files.zipped(path, *files.plain(vgg.arrays(), legacy=False))
    return
  arrays = backbone(entry.network, entry.norm)
  torch = files.torchvision_names(arrays)
  source = entry.name.partition('_')[0]
  if source in ('torchvision', 'wsl'):
    files.torch_object(path, torch, old=source == 'wsl')
  elif source == 'keras':
    files.keras(path, arrays, {name.removesuffix('.weight'): np.zeros(array.shape[0], 'f') for name, array in
                               arrays.items() if array.ndim == 4}, drop_linear=True)
  elif source == 'detectron':
    kind = 'gn' if entry.norm == 'gn' else 'bn'
    path.write_bytes(files.python_2_pickle(files.detectron_names(arrays, kind, 'fc1000' if entry.stride_in_1x1 else
                                                                 'pred')))
  elif source == 'detectron2':
    head = {'gn': 'gn', 'bn': 'bn' if 'sync' in entry.name else ''}[entry.norm]
    parts = detectors.arrays(convs=4 * ('n_' in entry.name), fcs=1, head=head, classes=80)
    parts = {name: array for name, array in parts.items() if 'bottom_up' not in name}
    bottom_up = {f'backbone.bottom_up.{name}': array for name, array in arrays.items() if 'linear' not in name}
    path.write_bytes(pickle.dumps({'model': bottom_up | parts, '__author__': 'Detectron2 Model Zoo'}))
  elif source == 'moco':
    trained = wrapped.names(arrays, 'module.encoder_q.', **wrapped.mlp(0, 2))
    files.torch_object(path, {'epoch': 800, 'state_dict': trained})
  elif source == 'swav':
    files.torch_object(path, wrapped.names(arrays, 'module.', projection_head__0__weight=[4, 4],
                                           prototypes__weight=[30, 4]))
  else:
    assert source == 'dino'
    files.torch_object(path, wrapped.names(arrays))


BY_DEFAULT = ('detectron2_scratch_r50_gn_9x', 'swav', 'detectron_r50_gn')


@pytest.mark.parametrize('name', [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow)
                                  for name in catalog.entries()])
def test_a_file_of_every_entry_is_described(tmp_path, name):
  entry = catalog.entries()[name]
  path = tmp_path / entry.remote.name
  write(entry, path)
  contents = entry.completed(formats.read(str(path)))._replace(licence=entry.licence)
  for field in ('kind', 'norm', 'channels', 'stride_in_1x1'):
    assert getattr(contents, field) == getattr(entry, field), field
  np.testing.assert_allclose(contents.pixel_mean, entry.pixel_mean)
  np.testing.assert_allclose(contents.pixel_std, entry.pixel_std)
  if contents.architecture is not None:
    depth, groups, width = contents.architecture[:3]
    assert str(Architecture(depth, groups, width * NARROWER, 64, 256)) == entry.network
  shown = describe(contents, name, entry.init)
  if entry.kind == 'detector':  # which it does not say itself
    assert contents.classes[:2] == ('person', 'bicycle') and '80: person, bicycle, car' in shown
  assert re.search(rf'--weights={name}( |$)', shown, re.MULTILINE) and entry.licence in shown
  assert f'gin_configs/init/{entry.init}.gin' in shown
  line = options.command_line(contents._replace(path=name), init=entry.init)
  if name == 'detectron2_scratch_r50_gn_9x':  # nothing is asked for that is known of it
    assert any('MaskRCNN.pixel_std = (58.395, 57.12, 57.375)' in word for word in line)


def test_every_entry_has_address_source_licence_and_cost():
  for name, entry in catalog.entries().items():
    assert not catalog.is_path(name) and catalog.find(name) is entry and entry.name == name
    entry.remote.check_address()
    assert entry.remote.url.startswith('https://') and entry.source and entry.licence and entry.cost.source
    assert entry.cost.images > 1e6 and entry.cost.pixels / entry.cost.images > 100 * 100
    for digits in re.findall(r'-([0-9a-f]{8})\.pth$', entry.remote.name):
      assert entry.remote.sha256 == digits
    for digits in re.findall(r'model_final_([0-9a-f]{6})\.pkl$', entry.remote.name):
      assert entry.remote.md5 == digits
  assert len({entry.remote.url for entry in catalog.entries().values()}) == len(catalog.entries())
  assert catalog.entries()['moco_v2'].cost[:3] == (1_024_933_600, 1_024_933_600, 1_024_933_600 * 2 * 224 * 224)


def test_the_md5_of_keras_are_those_of_its_source():
  from tf_keras.src.applications import resnet
  for name in ('resnet50', 'resnet101'):
    remote = catalog.entries()[f'keras_{name}'].remote
    assert remote.md5 == resnet.WEIGHTS_HASHES[name][1]
    assert remote.url == f'{resnet.BASE_WEIGHTS_PATH}{name}_weights_tf_dim_ordering_tf_kernels_notop.h5'


@pytest.mark.parametrize('text, message', [
  ('R-50-GN.pkl', r'no such file: give its path, or --weights=detectron_r50_gn, which downloads it'),
  ('models/R-50-GN.pkl', 'or --weights=detectron_r50_gn'), ('a/b.pkl', 'the path of a weight file or a run folder'),
  ('R-50-GN', 'no published weights of this name; did you mean detectron_r50_gn or'),
  ('moco', r'did you mean moco_v2\?: see python -m rethink_tf.weights --list'), ('qqqq', 'of this name: see')])
def test_an_unknown_name_suggests_others(tmp_path, monkeypatch, text, message):
  monkeypatch.chdir(tmp_path)
  for check in (catalog.check, catalog.local_path):
    with pytest.raises(UserError, match=message) as error:
      check(text)
    assert '\n' not in str(error.value)


def test_names_and_paths(tmp_path, monkeypatch):
  """A file wins over a name only by a separator or an extension."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'swav').mkdir()
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'model.index').touch()
  assert catalog.find('swav') is not None and catalog.find('./swav') is None
  for path in ('./swav', str(tmp_path / 'swav'), 'runs', 'model', 'gs://bucket/model'):
    catalog.check(path)
    assert catalog.local_path(path) == path
  monkeypatch.setenv('HOME', str(tmp_path))
  assert catalog.local_path('~/model') == str(tmp_path / 'model')


@pytest.fixture
def published(tmp_path, monkeypatch):
  """A server with a file of swav, at the address of its entry."""
  entry = catalog.entries()['swav']
  path = tmp_path / 'published'
  files.torch_object(path, wrapped.CHECKPOINTS['SwAV'][0])
  monkeypatch.setenv('RETHINK_TF_CACHE', str(tmp_path / 'cache'))
  with serving(path.read_bytes()) as server:
    entry = entry._replace(remote=entry.remote._replace(url=server.url('swav_800ep_pretrain.pth.tar')))
    monkeypatch.setattr(catalog, 'entries', lambda: {'swav': entry})
    server.entry = entry
    yield server


def test_weights_by_name_load_and_record_their_cost(published):
  built = ResNet(14, norm=sync_batch_norm, stem_width=reference.WIDTH, res2_width=reference.WIDTH,
                 width_per_group=reference.WIDTH)
  built(tf.zeros([1, 32, 32, 3]))
  model = types.SimpleNamespace(backbone=built, pixel_mean=reference.RGB['mean'], pixel_std=(58.14, 57.12, 57.375))
  weights = PretrainedWeights('swav')
  assert not published.requests  # constructing a configuration downloads nothing
  loaded = weights(model)
  assert len(published.requests) == 1
  record = loaded.record()
  assert record['path'] == record['name'] == 'swav' and record['address'] == published.entry.remote.url
  assert record['licence'] == 'CC BY-NC 4.0' and record['sha256'] == hashlib.sha256(published.content).hexdigest()
  assert record['cost'] == json.loads(json.dumps(published.entry.cost.record()))
  assert record['cost']['pixels'] == 800 * 1_281_167 * (2 * 224**2 + 6 * 96**2)
  assert PretrainedWeights('swav')(model).record() == record and len(published.requests) == 1


def test_a_file_is_known_by_its_published_checksum():
  entry = catalog.entries()['torchvision_resnet50_v1']
  assert catalog.of_digest(entry.remote.sha256 + '0' * 56) is entry
  assert catalog.of_digest('0' * 64) is None  # and no entry without one


def test_a_file_is_known_by_its_name_and_md5(tmp_path, monkeypatch):
  entry = catalog.entries()['detectron2_r50_3x']
  path = tmp_path / entry.remote.name
  path.write_bytes(b'weights')
  assert catalog.of_file(str(path), '0' * 64) is None  # of another content
  entry = entry._replace(remote=entry.remote._replace(md5=hashlib.md5(b'weights').hexdigest()[:6]))
  monkeypatch.setattr(catalog, 'entries', lambda: {entry.name: entry})
  assert catalog.of_file(str(path), '0' * 64) is entry
  assert catalog.of_file(str(path.rename(tmp_path / 'mine.pkl')), '0' * 64) is None


@pytest.mark.slow
def test_a_run_that_starts_by_name_counts_what_its_weights_have_cost(tmp_path, monkeypatch):
  """Offline, from the cache; later evaluations do without the file."""
  monkeypatch.setenv('RETHINK_TF_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setenv('RETHINK_TF_OFFLINE', '1')
  entry = catalog.entries()['swav']
  path = pathlib.Path(entry.path)
  path.parent.mkdir(parents=True)
  files.torch_object(path, wrapped.CHECKPOINTS['SwAV'][0])
  configuration = ['gin_configs/demo.gin', 'gin_configs/norms/syncbn.gin', 'gin_configs/init/swav.gin']
  run = str(tmp_path / 'run')
  api.train(configuration, [*tiny.PARAMS, 'KTimesSchedule.unit = 0.25'], run)
  record = json.loads(pathlib.Path(run, 'initial_weights.json').read_text())
  assert record['name'] == 'swav' and record['address'] == entry.remote.url
  found, = read_runs([run])
  assert found.pretraining == pytest.approx(entry.cost[:3])
  assert found.weights_name == 'swav' and found.pretraining_source.startswith('swav: 800 epochs, 2 views of 224')
  path.unlink()
  assert 'box/AP' in api.evaluate(run)
  gin.clear_config()
  with pytest.raises(UserError, match=rf'swav: is not at {re.escape(str(path))}, and downloads are off'):
    api.train(configuration, [*tiny.PARAMS, 'KTimesSchedule.unit = 0.25'], str(tmp_path / 'other'))
