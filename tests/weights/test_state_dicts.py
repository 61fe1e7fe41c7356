"""The network in a checkpoint: dictionaries and prefixes of many programs, heads of self-supervision, copies."""

import pickle

import numpy as np
import pytest

from rethink_tf.errors import UserError
from rethink_tf.models.norms import sync_batch_norm
from rethink_tf.weights import formats, state_dicts
from tests.weights import files, reference

ARRAYS = reference.random_arrays('bn')
OTHER = reference.random_arrays('bn', seed=1)
BACKBONE = {name for name in ARRAYS if 'linear' not in name}
NAMESPACE = b'cargparse\nNamespace\n)\x81}(' + files.text('lr') + b'K\x01ub'


def names(arrays=ARRAYS, prefix='', **heads):
  """torchvision's names without the classifier, below a prefix; heads: names of modules below it."""
  found = {f'{prefix}{name}': array for name, array in files.torchvision_names(arrays).items() if 'fc.' not in name}
  return found | {f'{prefix}{name.replace("__", ".")}': np.ones(shape, 'f') for name, shape in heads.items()}


def mlp(*numbers):
  return {f'fc__{number}__weight': [4, 4] for number in numbers}


BEGUN = {'epoch': 200, 'arch': 'resnet50', 'args': NAMESPACE, 'optimizer': {'state': {}, 'param_groups': NAMESPACE}}
CHECKPOINTS = {  # as their programs write them: (content, modules that are left out, copy that is offered)
  'MoCo v1': (BEGUN | {'state_dict': names(prefix='module.encoder_q.', fc__weight=[128, 32], fc__bias=[128]) |
                       names(OTHER, 'module.encoder_k.', fc__weight=[128, 32]) |
                       {'module.queue': np.ones([128, 9], 'f'), 'module.queue_ptr': np.ones(1, 'i8')}},
              ['encoder_k', 'fc', 'queue', 'queue_ptr'], 'module.encoder_k.'),
  'MoCo v2': (BEGUN | {'state_dict': names(prefix='module.encoder_q.', **mlp(0, 2)) |
                       names(OTHER, 'module.encoder_k.', **mlp(0, 2))}, ['encoder_k', 'fc'], 'module.encoder_k.'),
  'MoCo v3': (BEGUN | {'state_dict': names(prefix='module.base_encoder.', **mlp(0, 1, 3)) |
                       names(OTHER, 'module.momentum_encoder.', **mlp(0, 1, 3)) |
                       {'module.predictor.0.weight': np.ones([4, 4], 'f')}, 'scaler': {'scale': 65536}},
              ['fc', 'momentum_encoder', 'predictor'], 'module.momentum_encoder.'),
  'SimSiam': (BEGUN | {'state_dict': names(prefix='module.encoder.', **mlp(0, 1, 3, 6)) |
                       {'module.predictor.0.weight': np.ones([4, 4], 'f')}}, ['fc', 'predictor'], None),
  'SwAV': (names(prefix='module.', projection_head__0__weight=[4, 4], projection_head__1__running_mean=[4],
                 prototypes__weight=[3000, 4]), ['projection_head', 'prototypes'], None),
  'DINO, its backbone': (names(), [], None),
  'DINO': ({'student': names(OTHER, 'module.backbone.') | {'module.head.mlp.0.weight': np.ones([4, 4], 'f')},
            'teacher': names(prefix='module.backbone.') | {'module.head.last_layer.weight_g': np.ones([4, 1], 'f')},
            'epoch': 800, 'args': NAMESPACE, 'dino_loss': {'center': np.ones([1, 4], 'f')}}, ['head'], 'student'),
  'Barlow Twins': ({'epoch': 1000, 'model': names(prefix='module.backbone.') | {
    'module.projector.0.weight': np.ones([4, 4], 'f'), 'module.bn.running_mean': np.ones(4, 'f')}},
    ['bn', 'projector'], None),
  'DenseCL': ({'meta': NAMESPACE, 'state_dict': names(prefix='encoder_q.0.') | names(OTHER, 'encoder_k.0.') | {
    'encoder_q.1.mlp.0.weight': np.ones([4, 4], 'f'), 'queue2': np.ones([4, 9], 'f')}}, ['1', 'encoder_k', 'queue2'],
    'encoder_k.0.'),
  'DenseCL, extracted': ({'state_dict': names(), 'author': 'x'}, [], None),
  'BYOL': (names(prefix='online_encoder.net.') | names(OTHER, 'target_encoder.net.') | {
    'online_predictor.net.0.weight': np.ones([4, 4], 'f')}, ['online_predictor', 'target_encoder'],
    'target_encoder.net.'),
  'VISSL': ({'classy_state_dict': {'base_model': {'model': {
    'trunk': names(prefix='_feature_blocks.'), 'heads': {'0.clf.weight': np.ones([4, 4], 'f')}}}}}, [], None),
  'solo-learn': ({'hyper_parameters': NAMESPACE, 'state_dict': names(prefix='backbone.') | names(
    OTHER, 'momentum_backbone.') | {'projector.0.weight': np.ones([4, 4], 'f')}}, ['momentum_backbone', 'projector'],
    'momentum_backbone.'),
  'Lightly': ({'state_dict': {f'backbone.{name}': array for name, array in files.children_names(names()).items()} | {
    'projection_head.layers.0.weight': np.ones([4, 4], 'f')}}, ['projection_head'], None),
  'Lightning': ({'state_dict': names(prefix='model.'), 'callbacks': {}, 'pytorch-lightning_version': '2.0'}, [], None),
  'torch.compile': (names(prefix='_orig_mod.'), [], None),
  'DataParallel twice': (names(prefix='module.module.'), [], None),
  'mmpretrain': ({'meta': {'epoch': 3}, 'state_dict': names(prefix='backbone.') | {
    'head.fc.weight': np.ones([4, 4], 'f')}}, ['head'], None),
  'mmdet': ({'meta': {'epoch': 3}, 'state_dict': names(prefix='backbone.') | {
    f'{module}.weight': np.ones([4, 4], 'f') for module in ('neck.convs.0', 'rpn_head.rpn_conv', 'roi_head.fc')}},
    ['neck', 'roi_head', 'rpn_head'], None),
  'average of torch': (names(prefix='module.') | {'n_averaged': np.ones(1, 'i8')}, ['n_averaged'], None),
  'timm': ({'epoch': 3, 'state_dict': names(), 'state_dict_ema': names(OTHER), 'version': 2}, [], 'state_dict_ema'),
  'model_ema': ({'model': names(), 'model_ema': names(OTHER)}, [], 'model_ema'),
  'transformers': (files.transformers_names(files.torchvision_names(ARRAYS)), ['classifier'], None),
}


def write(tmp_path, content, old=False):
  path = tmp_path / 'x.pth'
  files.torch_object(path, content, old)
  return str(path)


@pytest.mark.parametrize('name', list(CHECKPOINTS))
def test_the_backbone_is_found_and_heads_are_named(tmp_path, name):
  content, left_out, offered = CHECKPOINTS[name]
  path = write(tmp_path, content, old=name in ('MoCo v1', 'SwAV', 'DINO'))
  found = formats.read(path)
  assert set(found.arrays) == BACKBONE and (found.norm, found.channels, found.stride_in_1x1) == ('bn', 'rgb', False)
  for layer in ('stem.conv1.weight', 'res5.0.conv3.norm.running_var'):
    np.testing.assert_array_equal(found.arrays[layer], ARRAYS[layer])
  note, = [note for note in found.notes if 'left out' in note] or ['']
  assert note.partition(': ')[2] == ', '.join(map(repr, left_out))
  copy, = [note for note in found.notes if 'the file also has' in note] or ['']
  assert bool(copy) == bool(offered)
  if offered:
    assert offered in copy and 'PretrainedWeights.dictionary' in copy and 'PretrainedWeights.prefix' in copy
    choice = formats.Choice(dictionary=offered) if offered in content else formats.Choice(prefix=offered)
    np.testing.assert_array_equal(formats.read(path, choice).arrays['stem.conv1.weight'], OTHER['stem.conv1.weight'])


def test_a_self_supervised_backbone_computes_its_features(tmp_path):
  image = reference.random_image()
  expected = reference.features(ARRAYS, image, norm='bn', **reference.RGB)
  model = reference.detector(sync_batch_norm, reference.RGB['mean'], reference.RGB['std'])
  reference.check(write(tmp_path, CHECKPOINTS['MoCo v2'][0]), model, expected, image)


@pytest.mark.parametrize('author, head', [
  ('MOCO', 'fc.0.weight'), ('MOCO', 'fc.weight'), ('torchvision', 'fc.weight'), ('OpenSelfSup', None),
  ('solo-learn', 'projector.0.weight'), ('x', 'fc.2.bias')])
def test_files_converted_for_detectron2_have_the_normalisation_of_torchvision(tmp_path, author, head):
  content = files.converted_names(names() | ({head: np.ones([4, 32], 'f')} if head else {}))
  path = tmp_path / 'moco.pkl'
  path.write_bytes(pickle.dumps({'model': content, '__author__': author, 'matching_heuristics': True}))
  found = formats.read(str(path))
  is_classifier = author == 'torchvision'
  assert set(found.arrays) == BACKBONE | ({'linear.weight'} if is_classifier else set())
  assert (found.channels, found.stride_in_1x1) == ('rgb', False)
  assert (found.pixel_mean[0], found.pixel_std[0]) == (123.675, 58.395)
  assert is_classifier or head is None or f'stem.{head}' in found.ignored
  path.write_bytes(pickle.dumps({'model': files.converted_names(names()), '__author__': 'third_party'}))
  assert formats.read(str(path)).channels is None


def refused(path, message, **choice):
  with pytest.raises(UserError, match=message) as error:
    formats.read(path, formats.Choice(**choice))
  assert '\n' not in str(error.value) and path in str(error.value)


def test_several_networks_are_asked_for(tmp_path):
  content = {'modelA': names(prefix='left.') | names(OTHER, 'right.'), 'epoch': 3}
  path = write(tmp_path, content)
  refused(path, "2 networks.*PretrainedWeights.dictionary and PretrainedWeights.prefix.*'modelA', prefix = 'right.'")
  for prefix in ('right', 'right.'):
    np.testing.assert_array_equal(formats.read(path, formats.Choice(prefix=prefix)).arrays['stem.conv1.weight'],
                                  OTHER['stem.conv1.weight'])
  refused(path, "prefix = 'middle' is not that of a network: it has 'left.', 'right.'", prefix='middle')
  refused(path, "dictionary = 'modelB' is not in it: it has 'modelA'", dictionary='modelB')


@pytest.mark.parametrize('content, message', [
  (b'ctorchvision.models.resnet\nResNet\n)\x81}(' + files.text('x') + b'K\x01ub', r'\(torchvision.*state_dict\(\)'),
  ({'model': b'ctorchvision.models.resnet\nResNet\n)\x81'}, r"'model' is an object \(torchvision.*state_dict\(\)"),
  ({'model': b'cultralytics.nn.tasks\nDetectionModel\n)\x81', 'train_args': {'task': 3}},
   r"'model' is a YOLO \(ultralytics.nn.tasks.DetectionModel\), which is not built here: use the weights of a plain"),
  ({'epoch': 3}, "'epoch' is not an array"), ({'a': {}, 'b': {}}, 'no dictionary of arrays'),
  (names() | {'layer1.0.conv1.weight': b'ctorch\nQInt8Storage\n'}, r'layer1.0.conv1.weight. \(torch.QInt8Storage\)'),
  ({'stage.0.weight': np.ones(3, 'f')}, 'PretrainedWeights.dictionary and PretrainedWeights.prefix'),
  ({'conv1.0.weight': np.ones(3, 'f'), 'layer1.0.conv1.weight': np.ones(3, 'f')}, 'another stem'),
  ({name.replace('conv2.', 'convs.0.'): array for name, array in names().items()}, 'Res2Net'),
], ids=['module', 'module in a dictionary', 'YOLO', 'number', 'empty', 'quantized', 'unknown', 'ResNet-D', 'Res2Net'])
def test_what_holds_no_network_is_named(tmp_path, content, message):
  refused(write(tmp_path, content), message)


def test_numbers_beside_the_weights_are_left_out(tmp_path):
  found = formats.read(write(tmp_path, names() | {'epoch': 3, 'args': NAMESPACE}))
  assert set(found.arrays) == BACKBONE and {'epoch', 'args'} <= set(found.ignored)


def test_dictionaries_inside_themselves_end():
  content = names()
  content['again'] = content
  assert set(state_dicts.find(content, 'x').arrays) == set(names())
