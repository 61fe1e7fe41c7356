"""Hostile files: programs in pickles, forged headers, SavedModels, settings beside weights, run folders of others."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import struct

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from rethink_tf.compare import page, run_summary, tables
from rethink_tf.data import class_names
from rethink_tf.data.images import ImageError, decode
from rethink_tf.errors import UserError, plain
from rethink_tf.export import operations
from rethink_tf.predict import detectors
from rethink_tf.storage import files, identity, settings, writer_lock
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.visualization import curves
from rethink_tf.weights import config_json, formats, settings_files
from rethink_tf.weights.contents import Architecture
from tests.compare import fake_runs
from tests.weights import files as weight_files
from tools import mutations
from tools.fuzz_kinds import ACCEPTED, SKIPPED, Target, fresh, one_line, pick
from tools.mutations import corrupt_bytes, corrupt_json, corrupt_text

# Programs in pickles.

_TEXT = b'U\x03abc'
_GLOBALS = [b'cnumpy\ndtype\n', b'cnumpy\nndarray\n', b'cnumpy.core.multiarray\n_reconstruct\n', b'c_codecs\nencode\n',
            b'cnumpy.core.multiarray\nscalar\n', b'cnumpy._core.numeric\n_frombuffer\n', b'ccollections\nOrderedDict\n',
            b'ctorch._utils\n_rebuild_tensor_v2\n', b'ctorch\nFloatStorage\n', b'ctorch._utils\n_rebuild_parameter\n',
            b'cargparse\nNamespace\n', b'ccollections\nCounter\n', b'cos\nsystem\n', b'cbuiltins\nset\n',
            b'ctorch\nSize\n', b'ctorch\ndevice\n', b'cmy_project.config\nConfig\n', b'cbuiltins\ngetattr\n']
_VALUES = [b'K\x01', b'N', b'\x88', b'J\xff\xff\xff\xff', b'\x8a\x08' + b'\x7f' * 8, b'G' + bytes(8), b'U\x02f4', b')',
           b'}', b']', b'\x8f', b'T\x00\x00\x01\x00' + b'a' * 65536, b'X\x02\x00\x00\x00\xc3\xa9', b'C\x04abcd',
           b'\x96\x08' + bytes(15), b'\x8b\x00\x10\x00\x00' + b'\x7f' * 4096, b'I99\n', b'L5L\n', b'F1.5\n', b'Vx\n',
           b'\x8c\x05weight', b'\x95\x04' + bytes(7) + b'K\x01K\x02', b"S'x'\n", b'B\x04\x00\x00\x00abcd']
_CODES = [b'(', b'(', b'l', b't', b'd', b'a', b'e', b's', b'u', b'R', b'R', b'b', b'0', b'1', b'2', b'Q', b'o', b'\x81',
          b'\x85', b'\x86', b'\x87', b'\x90', b'\x91', b'\x92', b'\x93', b'\x94', b'.', b'Px\n',
          b'icollections\nCounter\n', b'\x82\x01', b'\x97', b'\x98']


def _program(rng):
  """A program whose stack is seldom empty, with references to what it has made before."""
  made, code = 0, [b'\x80' + bytes([int(rng.integers(6))])]
  for _ in range(int(rng.choice([5, 20, 60, 200]))):
    draw = rng.random()
    if draw < 0.3:
      code.append(pick(rng, _VALUES))
    elif draw < 0.45:
      code.append(pick(rng, _GLOBALS))
    elif draw < 0.55 and made < 250:
      code.append(b'q' + bytes([made]))
      made += 1
    elif draw < 0.7 and made:
      code.append(b'h' + bytes([int(rng.integers(made))]))
    elif draw < 0.74 and made < 200:  # the last object, doubled many times
      for _ in range(int(rng.choice([3, 30]))):
        code.append(b'q' + bytes([made]) + b'h' + bytes([made]) + pick(rng, [b'\x86', b'\x86', b'2']))
        made += 1
    elif draw < 0.76:
      code.append(pick(rng, [b'(', b']', b'N', b'K\x010']) * int(rng.choice([10, 2000, 300_000])))
    else:
      code.append(pick(rng, _CODES))
  return b''.join(code) + b'.'


def _run_programs(rng, _, work):
  work.mkdir(exist_ok=True)
  program = _program(rng)
  path = work / 'weights'
  if rng.random() < 0.3:
    weight_files.zipped(path, program, {'0': (1, bytes(4))})
  else:
    path.write_bytes(program)
  formats.read(str(path))
  return ACCEPTED


# Headers of safetensors files, and settings beside weights.


def _run_headers(rng, _, work):
  work.mkdir(exist_ok=True)
  entry = {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 16]}
  header = {'__metadata__': {'format': 'pt'}, 'conv1.weight': entry, 'bn1.weight': entry | {'data_offsets': [16, 32]}}
  if rng.random() < 0.2:
    empty = {'dtype': pick(rng, ['F32', 'BF16', 'I64']), 'shape': [0], 'data_offsets': [32, 32]}
    header |= {f'{pick(rng, mutations.WORDS)[:50]}{i}': empty for i in range(int(rng.choice([10, 1000])))}
  if rng.random() < 0.05:
    header = {f'a{i}': entry | {'shape': [0], 'data_offsets': [0, 0]} for i in range(25_000)}
  text = corrupt_json(rng, header) if rng.random() < 0.8 and len(header) < 20_000 else json.dumps(header).encode()
  lengths = [0, 1, len(text) - 1, 10 ** 6, 2 ** 30, 2 ** 63, 2 ** 64 - 1]
  length = len(text) if rng.random() < 0.8 else pick(rng, lengths)
  (work / 'weights').write_bytes(struct.pack('<Q', length) + text + bytes(32))
  formats.read(str(work / 'weights'))
  return ACCEPTED


_CONFIG = {'architecture': 'resnet50', 'model_args': {'block': 'x'},
           'pretrained_cfg': {'mean': [0.5] * 3, 'std': [0.2] * 3}, 'model_type': 'resnet',
           'depths': [3, 4, 6, 3], 'hidden_act': 'relu', 'downsample_in_bottleneck': False}
_YAML = ('task:\n  model:\n    norm_activation:\n      norm_epsilon: 0.001\n    a: &a [1, 2]\n    b: *a\n'
         'runtime: {x: 1.5}\n')
_EVIL_YAML = ('x: !!python/object/apply:os.system ["true"]\n', 'x: &x [*x, *x]\n', '? [a, b]\n: 1\n', '<<: {a: 1}\n',
              '\n'.join(f'l{i}: &l{i} [*l{i - 1}, *l{i - 1}]' if i else 'l0: &l0 [x]' for i in range(40)) + '\n',
              'x: ' + '[' * 3000, 'x: ' + '9' * 9000 + '\n', 'x: 0b' + '1' * 9000 + '\n',
              'x: 1:' + '59:' * 3000 + '0\n',
              '!!set {a, b}\n', '--- \n--- \n', '%YAML 9.9\n', '\ufeff', '2001-99-99: 1\n', '!!binary x\n')


def _run_settings(rng, _, work):
  work.mkdir(exist_ok=True)
  if rng.random() < 0.5:
    (work / 'config.json').write_bytes(corrupt_json(rng, _CONFIG))
    config_json.beside(str(work / 'x.pth'), Architecture(50, 1, 64, 64, 256))
    return ACCEPTED
  text = _YAML
  for _ in range(int(rng.choice([0, 1, 2]))):
    place = pick(rng, [0, text.find('runtime'), len(text)])
    text = text[:place] + pick(rng, _EVIL_YAML) + text[place:]
  text = corrupt_text(rng, text) if rng.random() < 0.7 else text
  (work / 'params.yaml').write_bytes(text.encode(errors='surrogatepass'))
  place, found = settings_files.beside(str(work / 'x'), ('params.yaml',))
  settings_files.get(found, 'task.model.norm_activation.norm_epsilon')
  return ACCEPTED if place else SKIPPED


# SavedModels.


class _Small(tf.Module):
  """A SavedModel with the interface of an exported detector."""

  def __init__(self):
    super().__init__()
    self.scale = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.float32)])
    def detect(image, threshold):
      mean = tf.reduce_mean(tf.cast(image, tf.float32)) * self.scale
      score = tf.cond(mean > threshold, lambda: mean, lambda: threshold)
      return {'scores': score[None], 'boxes': tf.zeros([1, 4]), 'classes': tf.ones([1], tf.int32)}
    self.detect = detect
    self.categories = tf.function(lambda: {'ids': tf.constant([1, 7], tf.int64), 'names': tf.constant(['cat', 'dog'])},
                                  input_signature=[])


def _build_saved_model(folder):
  module = _Small()
  tf.saved_model.save(module, str(folder), {'categories': module.categories.get_concrete_function()})


_OPERATIONS = ('WriteFile', 'ReadFile', 'SaveV2', 'RestoreV2', 'EagerPyFunc', 'PrintV2', 'NoOp', 'x' * 500, '\x1b[2J',
               '', 'MatMul', 'DebugIdentity')


def _corrupt_model(rng, data):
  model = saved_model_pb2.SavedModel.FromString(data)
  meta = model.meta_graphs[0]
  functions = meta.graph_def.library.function
  for _ in range(int(rng.choice([1, 1, 3]))):
    nodes = pick(rng, [meta.graph_def.node, *(function.node_def for function in functions)])
    match int(rng.integers(8)):
      case 0 if len(nodes):
        pick(rng, nodes).op = pick(rng, _OPERATIONS)
      case 1:
        nodes.add(name='added', op=pick(rng, _OPERATIONS))
      case 2:
        functions.add().CopyFrom(pick(rng, functions))
        functions[-1].signature.name = pick(rng, _OPERATIONS)
      case 3:
        name = pick(rng, mutations.WORDS)[:100].encode(errors='replace')
        pick(rng, meta.object_graph_def.nodes).user_object.identifier = name
      case 4:
        pick(rng, meta.object_graph_def.nodes).resource.device = 'CPU'
      case 5 if len(nodes) and pick(rng, nodes).attr:
        node = pick(rng, [node for node in nodes if node.attr])
        node.attr[pick(rng, sorted(node.attr))].func.name = pick(rng, functions).signature.name
      case 6:
        meta.asset_file_def.add(filename='/etc/passwd')
      case _:
        model.meta_graphs.add().CopyFrom(meta)
  return model.SerializeToString()


def _run_saved_model(rng, seeds, work):
  """Check a SavedModel, which is to refuse each operation that reaches outside; load one that is whole."""
  fresh(seeds, work)
  path = work / 'saved_model.pb'
  data = path.read_bytes()
  draw = rng.random()
  if draw < 0.05:
    detectors.SavedModelDetector(str(work))
    return ACCEPTED
  if draw < 0.2:
    index = pick(rng, sorted((work / 'variables').iterdir()))
    index.write_bytes(corrupt_bytes(rng, index.read_bytes()))
  else:
    path.write_bytes(_corrupt_model(rng, data) if draw < 0.7 else corrupt_bytes(rng, data))
  operations.check(str(work))
  model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  used = {node.op for function in model.meta_graphs[0].graph_def.library.function for node in function.node_def}
  assert not used & {'WriteFile', 'ReadFile', 'EagerPyFunc', 'PrintV2', 'DebugIdentity'}, used
  return ACCEPTED


# Run folders.


def _build_identity(folder):
  run = RunFolder(str(folder))
  categories = [{'id': 3, 'name': 'cat', 'keypoints': ['nose', 'left_ear', 'right_ear']}, {'id': 7, 'name': 'dog'}]
  (folder / 'config.gin').write_text(fake_runs.CONFIG.format(k=1, init='None', seed=0, rate=0.02, weights=''))
  now = identity.of(categories, (folder / 'config.gin').read_text(), {'train': {'images': 5, 'digest': 'ab' * 32}})
  identity.write(run, None, now, 0)
  (folder / writer_lock.FILE).write_text(json.dumps(writer_lock._this_process(run)._asdict()))


def _run_identity(rng, seeds, work):
  fresh(seeds, work)
  path = pick(rng, sorted(path for path in work.iterdir() if path.is_file()))
  text = path.read_text()
  path.write_bytes(corrupt_text(rng, text).encode(errors='surrogatepass') if path.suffix == '.gin'
                   else corrupt_json(rng, json.loads(text)))
  folder = RunFolder(str(work), create=False)
  writer_lock.read(folder)
  was = identity.read(folder)
  if was is None:
    return SKIPPED
  now = identity.of([{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}], fake_runs.CONFIG.format(
    k=2, init='None', seed=0, rate=0.02, weights=''), {'train': {'images': 5}})
  if rng.random() < 0.1:
    identity.check_owner(was, {'run': pick(rng, mutations.WORDS)}, 'x')
  if was.categories is not None:
    class_names.order([str(one['name']) for one in was.categories], ['dog', 'cat'], 'the data', 'the run')
  changed = identity.check(was, now, folder, 3, allow_changes=bool(rng.random() < 0.7))
  settings.table(changed)
  identity.write(folder, was, now, 3, changed, config='x = 1')
  identity.fork(folder)
  identity.read(folder)
  return ACCEPTED


def _build_reports(folder):
  fake_runs.write(folder / 'a', fake_runs.HALF[:10], save=False)
  fake_runs.write(folder / 'b', fake_runs.HALF[:10], init='w.pkl', save=False)


_NAMES = ('=1+1', '=cmd|x', '+a', '-a', '@a', '\x1b[2J', 'a\nb', 'a\rb', '\u202eb', '<b>&"', '$x_{$', '_a', 'a,b"c',
          '%s')


def _run_reports(rng, seeds, work):
  """The tables of `compare`, as text, HTML and CSV, of runs with any name and any metrics.jsonl."""
  fresh(seeds, work)
  name = work / pick(rng, _NAMES)
  os.rename(work / 'a', name)
  path = pick(rng, [name / 'metrics.jsonl', name / 'metrics.jsonl', name / 'config.gin',
                    work / 'b/initial_weights.json'])
  if path.suffix == '.jsonl':
    whole = path.read_bytes().splitlines()
    lines = list(whole)
    for _ in range(int(rng.choice([1, 1, 3]))):
      i = int(rng.integers(len(lines)))
      line = json.loads(whole[i])
      if rng.random() < 0.3:
        line[f'{pick(rng, _NAMES)}/AP'] = 3.0
      lines[i] = corrupt_json(rng, line) if rng.random() < 0.8 else json.dumps(line).encode()
    path.write_bytes(b'\n'.join(lines) + pick(rng, [b'', b'\n', b'\n\xff\xfe\n', b'\n{"step": 1e400}\n']))
  elif path.suffix == '.gin':
    path.write_bytes(corrupt_text(rng, path.read_text()).encode(errors='surrogatepass'))
  else:
    path.write_bytes(corrupt_json(rng, json.loads(path.read_text())))
  try:
    runs = run_summary.read_runs([str(name), str(work / 'b')])
    metric = runs[0].main_metric
  except UserError as error:  # it names the folder; commands escape it (process/output.py)
    raise UserError(plain(str(error))) from error
  found = [tables.runs_table(runs, [metric]), tables.settings_table(runs), tables.curves_table(runs)]
  assert all(isinstance(run.drops, list) and run.seen and run.twin_key for run in runs)
  texts = [tables.as_text(rows) for rows in found] + [curves.table([run.folder for run in runs])]
  html = page.page(page.Content(
    'runs', [page.Answer('open', run.name, run.pretraining_source, run.data) for run in runs],
    [(run.data, run.date) for run in runs], [run.name for run in runs], [page.Drawn(runs[0].name, {runs[1].name: b''})],
    [page.Line(run.name, '#000000', False, 'o') for run in runs], {}, dict(zip('abc', found, strict=True)),
    [run.name for run in runs]))
  for text in (*texts, html.replace('\t', '')):
    assert not set(text) & set('\x00\x07\x08\r\x1b\x7f\x9b\u202e'), text[:300]
  for rows in found:
    for row in csv.reader(io.StringIO(files.as_csv(rows).decode(errors='replace'))):
      assert not any(cell[:1] in ('=', '@', '\t') or cell[:1] in ('+', '-') and _is_formula(cell) for cell in row), row
  return ACCEPTED


def _is_formula(cell):
  if cell in ('-', '+ pre-training'):
    return False
  try:
    float(cell)
  except ValueError:
    return True
  return False


# TIFF, of which there are many kinds.


def _build_tiff(folder):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
  whole = Image.fromarray(pixels)
  kinds = {
    'rgb': whole, 'grey': whole.convert('L'), 'bits': whole.convert('1'), 'palette': whole.convert('P'),
    'cmyk': whole.convert('CMYK'), 'alpha': whole.convert('RGBA'),
    'float': Image.fromarray(pixels[..., 0] / np.float32(255)),
    'int': Image.fromarray(pixels[..., 0].astype(np.int32)),
    'deep': Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)}
  for name, image in kinds.items():
    image.save(folder / f'{name}.tiff')
  for compression in ('tiff_lzw', 'tiff_adobe_deflate', 'jpeg', 'packbits'):
    whole.save(folder / f'{compression}.tiff', compression=compression)
  for name, compression in (('deep_lzw', 5), ('deep_raw', 1)):  # 12 bits, for which OpenCV reads the file too
    data = cv2.imencode('.tiff', pixels.astype(np.uint16) << 4, [cv2.IMWRITE_TIFF_COMPRESSION, compression])[1]
    (folder / f'{name}.tiff').write_bytes(data.tobytes())
  whole.save(folder / 'pages.tiff', save_all=True, append_images=[whole, whole])


def _run_tiff(rng, seeds, _):
  data = bytearray(pick(rng, sorted(seeds.iterdir())).read_bytes())
  offset = struct.unpack('<I', data[4:8])[0]
  for _ in range(int(rng.choice([1, 2, 4]))):  # values of tags: sizes, offsets, bits, compression, type of a sample
    count = struct.unpack('<H', data[offset:offset + 2])[0]
    entry = offset + 2 + 12 * int(rng.integers(count))
    value = pick(rng, [0, 1, 2, 3, 7, 8, 16, 32, 64, 255, 4096, 65535, 2 ** 31, 2 ** 32 - 1, int(rng.integers(65536))])
    match int(rng.integers(4)):
      case 0:
        data[entry + 4:entry + 8] = struct.pack('<I', value)  # how many values
      case 1:
        data[entry + 2:entry + 4] = struct.pack('<H', value % 20)  # their type
      case _:
        data[entry + 8:entry + 12] = struct.pack('<I', value)
  data = corrupt_bytes(rng, bytes(data)) if rng.random() < 0.2 else bytes(data)
  try:
    image = decode(data, 'x', None)
  except ImageError as error:
    one_line(error)
    return SKIPPED
  assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
  return ACCEPTED


def _nothing(folder: pathlib.Path) -> None:
  del folder


TARGETS = (
  Target('programs in pickles', _nothing, _run_programs),
  Target('safetensors headers', _nothing, _run_headers),
  Target('settings beside weights', _nothing, _run_settings),
  Target('SavedModels', _build_saved_model, _run_saved_model),
  Target('identities of runs', _build_identity, _run_identity),
  Target('names and metrics in reports', _build_reports, _run_reports),
  Target('TIFF', _build_tiff, _run_tiff),
)
