"""Corrupted weight files, configurations and other files of a run folder."""

from __future__ import annotations

import json
import pickle
import shutil
import struct

import numpy as np
import safetensors.numpy
import tensorflow as tf

from rethink_tf import gin_files
from rethink_tf.data import tfrecord
from rethink_tf.data.detection.placeholder import PlaceholderSource
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.weights import __main__ as weights_main
from rethink_tf.weights import formats
from tests.weights import files
from tools.fuzz_data import coco_json
from tools.fuzz_kinds import ACCEPTED, Target, fresh, pick
from tools.mutations import corrupt_bytes, corrupt_json, corrupt_text

# Weight files.


def _arrays():
  """A ResNet with one block per stage and few channels, with Detectron2's names."""
  rng, arrays, into = np.random.default_rng(0), {}, 4

  def conv(name, out, into, side):
    arrays[f'{name}.weight'] = rng.normal(size=(out, into, side, side)).astype('f')
    for kind in ('weight', 'bias', 'running_mean', 'running_var'):
      arrays[f'{name}.norm.{kind}'] = rng.uniform(0.5, 1.5, out).astype('f')
  conv('stem.conv1', 4, 3, 7)
  for stage in range(2, 6):
    for layer, out, inner, side in (('conv1', 2, into, 1), ('conv2', 2, 2, 3), ('conv3', 4, 2, 1),
                                   ('shortcut', 4, into, 1)):
      conv(f'res{stage}.0.{layer}', out, inner, side)
  return arrays


def _build_weights(folder):
  arrays = _arrays()
  detectron = files.detectron_names(arrays, 'bn')
  torch_names = files.torchvision_names(arrays)
  for name in ('pickles', 'torch', 'safetensors', 'h5'):
    (folder / name).mkdir()
  (folder / 'pickles/detectron.pkl').write_bytes(files.python_2_pickle(detectron))
  (folder / 'pickles/blobs.pkl').write_bytes(pickle.dumps({'blobs': detectron, 'cfg': 'MODEL: x'}, protocol=2))
  for protocol in (0, 2, 4, 5):
    (folder / f'pickles/detectron2-{protocol}.pkl').write_bytes(
      pickle.dumps({'model': arrays, '__author__': 'x', 'matching_heuristics': True}, protocol=protocol))
  files.legacy(folder / 'torch/legacy.pth', *files.plain(torch_names, True))
  files.zipped(folder / 'torch/zip.pth', *files.plain(torch_names, False, 'state_dict'))
  safetensors.numpy.save_file(torch_names, folder / 'safetensors/x.safetensors')
  files.keras(folder / 'h5/x.h5', arrays, {name.removesuffix('.weight'): np.zeros(len(array), 'f')
                                           for name, array in arrays.items() if array.ndim == 4})
  _build_checkpoints(folder / 'checkpoints')


def _build_checkpoints(folder):
  """A checkpoint of tf-models-official and one of a run, from nested trackables with the right names."""
  def node(tree):
    return tf.Variable(tree) if isinstance(tree, np.ndarray) else [node(item) for item in tree] \
      if isinstance(tree, list) else tf.train.Checkpoint(**{name: node(item) for name, item in tree.items()})

  def kernel(*shape):
    return np.ones(shape, 'f')

  def norm(width):
    return dict.fromkeys(('gamma', 'beta', 'moving_mean', 'moving_variance'), np.ones(width, 'f'))
  convs = {'1': (1, 2), '2': (3, 2), '3': (1, 4)}
  layers = {'layer_with_weights-0': {'kernel': kernel(7, 7, 3, 4)}, 'layer_with_weights-1': norm(4)}
  blocks = []
  for stage in range(4):
    layer, block = {'_shortcut': {'kernel': kernel(1, 1, 4, 4)}, '_norm0': norm(4)}, {}
    for number, (side, out) in convs.items():
      shape = (side, side, 2 if number != '1' else 4, out)
      layer |= {f'_conv{number}': {'kernel': kernel(*shape)}, f'_norm{number}': norm(out)}
      block[f'conv{number}'] = {'conv': {'kernel': kernel(*shape)}, 'norm': {'gamma': np.ones(out, 'f')}}
    layers[f'layer_with_weights-{stage + 2}'] = layer
    blocks.append([block])
  stem = {'conv': {'kernel': kernel(7, 7, 3, 4)}, 'norm': {'gamma': np.ones(4, 'f')}}
  folder.mkdir()
  node({'backbone': layers}).write(str(folder / 'official'))
  run = RunCheckpoints(RunFolder(str(folder / 'run')))
  detector = node({'backbone': {'stem': stem, 'stages': blocks}})
  run.save(3, {'detector': detector}, {'progress': {'images': 5}})
  (folder / 'run/config.gin').write_text('MaskRCNN.pixel_mean = (1.0, 2.0, 3.0)\nResNet.stride_in_1x1 = False\n')


def _read_weights(path, known):
  """Describe a file and read every array that fits the shapes of a model, as a command would."""
  contents = formats.read(str(path))
  weights_main.describe(contents)
  contents.backbone()
  for array in contents.arrays.values():
    if tuple(array.shape) in known:
      np.asarray(array, np.float32)
  return ACCEPTED


_SHAPES = {array.shape for array in _arrays().values()} | {(7, 7, 3, 4), (1, 1, 4, 4), (1, 1, 4, 2), (3, 3, 2, 2),
                                                           (1, 1, 2, 4)}
_CODES = b'0(.)]}tlduseaRbcopqrhjgUTXBCNKJMIFGLSQP2i\x80\x81' + bytes(range(0x85, 0x97))


def _run_weights(rng, folder, work):
  paths = sorted(folder.iterdir())
  data = pick(rng, paths).read_bytes()
  if folder.name == 'pickles' and rng.random() < 0.25:  # another program: operations inserted or replaced
    place = int(rng.integers(min(len(data), 400)))
    codes = bytes(pick(rng, _CODES) for _ in range(int(rng.choice([1, 3, 10]))))
    data = data[:place] + codes + rng.bytes(int(rng.choice([0, 1, 4, 8]))) + data[place + len(codes):]
  else:
    data = corrupt_bytes(rng, data, [path.read_bytes() for path in paths])
  work.mkdir(exist_ok=True)
  (work / 'weights').write_bytes(data)
  return _read_weights(work / 'weights', _SHAPES)


def _corrupt_table(rng, data):
  """Corrupt a block of a checkpoint's .index and correct its checksum."""
  meta, _, begin, length = _varints(data[-48:], 4)  # the footer
  place, inner = pick(rng, [(0, meta - 5), (0, meta - 5), (begin, length)])  # the only block of entries, or the index
  block = bytearray(data[place:place + inner])
  for _ in range(int(rng.choice([1, 2, 5]))):
    block[int(rng.integers(len(block)))] = int(rng.choice([0, 1, 2, 8, 16, 127, 128, 255, int(rng.integers(256))]))
  trailer = data[place + inner:place + inner + 1]
  crc = struct.pack('<I', tfrecord.masked_crc(bytes(block) + trailer))
  return data[:place] + bytes(block) + trailer + crc + data[place + inner + 5:]


def _varints(data, count):
  found, place = [], 0
  for _ in range(count):
    value, shift = 0, 0
    while True:
      byte = data[place]
      value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
      if byte < 128:
        break
    found.append(value)
  return found


def _run_checkpoints(rng, seeds, work):
  fresh(seeds / 'checkpoints', work)
  step = work / 'run/checkpoints/step-00000003'
  path = pick(rng, [work / 'official.index', work / 'official.index', work / 'official.data-00000-of-00001',
                     step / 'weights.index', step / 'weights.index', step / 'weights.data-00000-of-00001',
                     step / 'manifest.json', work / 'run/config.gin'])
  data = path.read_bytes()
  if path.suffix == '.index' and rng.random() < 0.6:
    data = _corrupt_table(rng, data)
  elif path.suffix == '.json':
    data = corrupt_json(rng, json.loads(data))
  else:
    data = corrupt_bytes(rng, data)
  path.write_bytes(data)
  if path.parent == step and path.name != 'manifest.json':  # else it is skipped for its size
    manifest = json.loads((step / 'manifest.json').read_text())
    manifest['files'][path.name] = len(data)
    (step / 'manifest.json').write_text(json.dumps(manifest))
  if path.parent == work:
    return _read_weights(work / pick(rng, ['official', 'official.index']), _SHAPES)
  run = RunCheckpoints(RunFolder(str(work / 'run'), create=False))
  run.latest()
  if rng.random() < 0.3:
    run.restore({'detector': tf.train.Checkpoint(v=tf.Variable(1.0))})
  return _read_weights(work / 'run', _SHAPES)


# Configurations and the other files of a run.

_EVIL_GIN = ("import os", 'import rethink_tf.data.detection.coco', 'from __gin__ import dynamic_registration',
             'import antigravity as x',
             "include '/etc/passwd'", "include '../../../../etc/hosts'", "include '/dev/zero'", "include 'x.gin'",
             "run.model = @os.system('true')", 'run.model = @eval', 'X = %X', 'A = %B\nB = %A', 'run.steps = 9' * 50,
             'coco.data_dir = %gin.REQUIRED', 'a/b/c/MaskRCNN.num_classes = 1', 'run.seed = ' + '9' * 5000,
             'run.model = ' + '[' * 3000, 'run.model = ' + '-' * 3000 + '1', "'''", 'run:\n  seed = 1\n    model = 2',
             'gin.singleton.constructor = @open', 'X = {1: [2, (3,)]}\nX = %X', 'MaskRCNN.backbone = @MaskRCNN()')


def _build_gin(folder):
  for name in ('demo', 'scratch_6x', 'runtime/laptop', 'pretraining/wsl_base'):
    shutil.copy(gin_files.shipped_root() / f'gin_configs/{name}.gin', folder / f'{name.split("/")[-1]}.gin')


def _run_gin(rng, seeds, work):
  import rethink_tf.experiment  # noqa: F401  registers what gin files name
  lines = pick(rng, sorted(seeds.iterdir())).read_text().split('\n')
  for _ in range(int(rng.choice([0, 1, 1, 2]))):
    lines.insert(int(rng.integers(len(lines) + 1)), pick(rng, _EVIL_GIN))
  text = corrupt_text(rng, '\n'.join(lines)) if rng.random() < 0.8 else '\n'.join(lines)
  data = text.encode(errors='surrogatepass')
  work.mkdir(exist_ok=True)
  (work / 'config.gin').write_bytes(corrupt_bytes(rng, data) if rng.random() < 0.2 else data)
  params = [corrupt_text(rng, 'SCHEDULE = 2')] if rng.random() < 0.3 else []
  gin_files.parse([gin_files.saved_config(str(work))], params)
  gin_files.operative_config()
  return ACCEPTED


def _build_run(folder):
  (folder / 'categories.json').write_text(json.dumps(coco_json()['categories']))
  (folder / 'command.json').write_text(json.dumps({'argv': ['train'], 'versions': {}, 'earlier_starts': []}))
  lines = [{'kind': 'train', 'step': 1, 'loss/total': 2.5}, {'kind': 'eval', 'step': 2, 'box/AP': 30.0},
           {'kind': 'resume', 'step': 1}, {'kind': 'train', 'step': 2, 'loss/total': 2.0}]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def _run_run(rng, seeds, work):
  fresh(seeds, work)
  path = pick(rng, sorted(work.iterdir()))
  if path.suffix == '.jsonl':
    lines = path.read_bytes().splitlines()
    i = int(rng.integers(len(lines)))
    lines[i] = corrupt_json(rng, json.loads(lines[i]))
    path.write_bytes(b'\n'.join(lines) + b'\n')
  else:
    path.write_bytes(corrupt_json(rng, json.loads(path.read_text())))
  folder = RunFolder(str(work), create=False)
  folder.read_metrics()
  folder.read_command()
  PlaceholderSource(str(work / 'categories.json'))
  return ACCEPTED


TARGETS = (
  *(Target(name, _build_weights, lambda rng, seeds, work, folder=folder: _run_weights(rng, seeds / folder, work))
    for name, folder in (('pickles', 'pickles'), ('torch files', 'torch'), ('safetensors', 'safetensors'),
                       ('HDF5', 'h5'))),
  Target('TensorFlow checkpoints', _build_weights, _run_checkpoints),
  Target('gin', _build_gin, _run_gin),
  Target('run folders', _build_run, _run_run),
)
