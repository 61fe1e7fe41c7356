"""Weight files as other libraries write them, with the features that these libraries compute from them.

Runs in a Python that has the libraries (torch, torchvision, timm, Keras 3, Detectron2), without this package:
tools/weights_table.py calls it. `--list` prints the cases and those whose library is not installed; with a case and a
folder, the weight file, `images.npz` and `features.npz` are written there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

os.environ.setdefault('KERAS_BACKEND', 'torch')
SIZES = ((203, 317), (224, 224))
RGB_MEAN, RGB_STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
CASES: dict[str, tuple[tuple[str, ...], Callable[[str], None]]] = {}


def case(name: str, *libraries: str) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
  """Register a function that writes the files of a case into a folder."""
  def register(function: Callable[[str], None]) -> Callable[[str], None]:
    CASES[name] = libraries, function
    return function
  return register


def images() -> list[np.ndarray]:
  """Two RGB images, uint8, with structure of several sizes."""
  rng, found = np.random.default_rng(0), []
  for height, width in SIZES:
    image = np.zeros((height, width, 3))
    for side in (4, 16, 64):
      coarse = rng.uniform(0, 255, (height // side + 1, width // side + 1, 3))
      image += np.repeat(np.repeat(coarse, side, 0), side, 1)[:height, :width] / 3
    found.append(image.astype(np.uint8))
  return found


def save(folder: str, stages: list[dict[str, Any]]) -> None:
  """Write the images and what a library computes from each, channels last: {'C2': [h, w, C], …}."""
  np.savez(os.path.join(folder, 'images.npz'), *images())
  np.savez(os.path.join(folder, 'features.npz'),
           **{f'{i}/{name}': np.asarray(value) for i, image in enumerate(stages) for name, value in image.items()})


def randomize(network: Any, channels: int = 3) -> Any:
  """Give a torch network running statistics of its own activations, up to a factor, and gains around 1."""
  import torch
  torch.manual_seed(0)
  norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
  _randomize_gains(network)
  for norm in norms:
    norm.momentum = None  # a cumulative mean
    norm.reset_running_stats()
  if norms:
    with torch.no_grad():
      network.train()(torch.randn(4, channels, 128, 128))
  for norm in norms:
    norm.running_mean += 0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
    norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)
  return network.eval()


def _randomize_gains(network: Any) -> None:
  """Gains and shifts of all norms; small gains at the end of residual branches, as in a trained network.

  With large ones a network of random weights is chaotic: it multiplies rounding errors by about four in each stage.
  """
  for name, module in network.named_modules():
    if getattr(module, 'weight', None) is not None and module.weight.ndim == 1:
      last = name.endswith(('bn3', 'conv3.norm'))
      module.weight.data.uniform_(*(0.1, 0.3) if last else (0.6, 1.4))
      module.bias.data.normal_(0, 0.2)


def to_torch(image: np.ndarray, mean: Any = RGB_MEAN, std: Any = RGB_STD) -> Any:
  import torch
  return torch.from_numpy(((image - mean) / std).astype(np.float32).transpose(2, 0, 1)[None])


def resnet_features(network: Any) -> list[dict[str, Any]]:
  """C2..C5 of a ResNet with torchvision's attributes."""
  import torch
  found = []
  for image in images():
    with torch.no_grad():
      x = to_torch(image)
      stem = ('conv1', 'bn1', 'relu' if hasattr(network, 'relu') else 'act1', 'maxpool')
      for name in stem:
        x = getattr(network, name)(x)
      maps = {}
      for level in (1, 2, 3, 4):
        x = getattr(network, f'layer{level}')(x)
        maps[f'C{level + 1}'] = x[0].permute(1, 2, 0).numpy()
    found.append(maps)
  return found


def torchvision_resnet(name: str, folder: str, wrap: Callable[[dict], Any] = dict, legacy: bool = False) -> None:
  import torch
  import torchvision
  network = randomize(getattr(torchvision.models, name)(weights=None))
  torch.save(wrap(network.state_dict()), os.path.join(folder, 'weights.pth'),
             _use_new_zipfile_serialization=not legacy)
  save(folder, resnet_features(network))


for _name in ('resnet50', 'resnet101', 'resnext101_32x8d', 'wide_resnet50_2'):
  case(f'torchvision {_name}', 'torchvision')(lambda folder, name=_name: torchvision_resnet(name, folder))
case('torchvision resnet50, before torch 1.6', 'torchvision')(
  lambda folder: torchvision_resnet('resnet50', folder, legacy=True))


def _vgg(name: str) -> Callable[[str], None]:
  def write(folder: str) -> None:
    import torch
    import torchvision
    network = getattr(torchvision.models, name)(weights=None).eval()
    torch.save(network.state_dict(), os.path.join(folder, 'weights.pth'))
    found = []
    for image in images():
      x, maps, level = to_torch(image), {}, 0
      with torch.no_grad():
        for layer in network.features:
          if isinstance(layer, torch.nn.MaxPool2d):
            maps[f'C{level}'] = x[0].permute(1, 2, 0).numpy()
            level += 1
          x = layer(x)
      found.append({f'C{i}': maps[f'C{i}'] for i in (2, 3, 4)})
    save(folder, found)
  return write


case('torchvision vgg16', 'torchvision')(_vgg('vgg16'))


def _timm(name: str, safetensors: bool = False, config: bool = False) -> Callable[[str], None]:
  def write(folder: str) -> None:
    import json

    import timm
    import torch
    network = randomize(timm.create_model(name, pretrained=False))
    if safetensors:
      from safetensors.torch import save_file
      save_file(network.state_dict(), os.path.join(folder, 'model.safetensors'))
    else:
      torch.save(network.state_dict(), os.path.join(folder, 'weights.pth'))
    if config:  # as on the hub
      with open(os.path.join(folder, 'config.json'), 'w') as file:
        json.dump({'architecture': name, 'num_classes': 1000, 'pretrained_cfg': {
          'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}}, file)
    save(folder, resnet_features(network))
  return write


case('timm resnet50', 'timm')(_timm('resnet50'))
case('timm resnet50, .safetensors with config.json', 'timm')(_timm('resnet50', True, True))
case('timm resnet50_gn', 'timm')(_timm('resnet50_gn'))
case('timm resnetaa50', 'timm')(_timm('resnetaa50'))
case('timm resnetaa50, with config.json', 'timm')(_timm('resnetaa50', True, True))
case('timm resnetblur50, with config.json', 'timm')(_timm('resnetblur50', True, True))


def _prefixed(prefix: str, **further: Any) -> Callable[[dict], dict]:
  """Return names with a prefix, without the classifier, and the further arrays of a projection head."""
  def wrap(state: dict) -> dict:
    import torch
    found = {prefix + name: value for name, value in state.items() if not name.startswith('fc.')}
    return found | {name: torch.randn(shape) for name, shape in further.items()}
  return wrap


def _both(first: str, second: str, head: str) -> Callable[[dict], dict]:
  """Return two copies, of which the first is the trained one."""
  def wrap(state: dict) -> dict:
    other = {name: value * 1.5 if value.is_floating_point() else value for name, value in state.items()}
    heads = [{f'{prefix}{head}': (8, 8)} for prefix in (first, second)]
    return _prefixed(first, **heads[0])(state) | _prefixed(second, **heads[1])(other)
  return wrap


WRAPPERS: dict[str, Callable[[dict], dict]] = {
  'MoCo v1': lambda s: {'epoch': 1, 'arch': 'resnet50', 'state_dict': _both(
    'module.encoder_q.', 'module.encoder_k.', 'fc.weight')(s) | _prefixed('', **{'module.queue': (8, 8)})({})},
  'MoCo v2': lambda s: {'epoch': 1, 'arch': 'resnet50', 'state_dict': _both(
    'module.encoder_q.', 'module.encoder_k.', 'fc.0.weight')(s)},
  'MoCo v3': lambda s: {'epoch': 1, 'state_dict': _both(
    'module.base_encoder.', 'module.momentum_encoder.', 'fc.0.weight')(s) | _prefixed(
      '', **{'module.predictor.0.weight': (8, 8)})({})},
  'SimSiam': lambda s: {'epoch': 1, 'state_dict': _prefixed(
    'module.encoder.', **{'module.encoder.fc.0.weight': (8, 8), 'module.predictor.0.weight': (8, 8)})(s)},
  'SwAV': _prefixed('module.', **{'module.projection_head.0.weight': (8, 8), 'module.prototypes.weight': (8, 8)}),
  'DINO, backbone': _prefixed(''),
  'DINO, whole': lambda s: {
    'student': _prefixed('module.backbone.', **{'module.head.mlp.0.weight': (8, 8)})(
      {name: value * 1.5 if value.is_floating_point() else value for name, value in s.items()}),
    'teacher': _prefixed('backbone.', **{'head.mlp.0.weight': (8, 8)})(s), 'epoch': 1},
  'Barlow Twins': lambda s: {'epoch': 1, 'model': _prefixed(
    'module.backbone.', **{'module.projector.0.weight': (8, 8), 'module.bn.running_mean': (8,)})(s)},
  'DenseCL': lambda s: {'state_dict': _prefixed('')(s), 'author': 'OpenSelfSup'},
  'Lightning': lambda s: {'epoch': 1, 'pytorch-lightning_version': '2.0', 'state_dict': _prefixed('model.')(s)},
  'mmpretrain': lambda s: {'meta': {'epoch': 1}, 'state_dict': _prefixed(
    'backbone.', **{'head.fc.weight': (8, 2048)})(s)},
  'torch.compile and DDP': _prefixed('_orig_mod.module.'),
}
for _name, _wrap in WRAPPERS.items():
  case(f'{_name} (ResNet-50)', 'torchvision')(
    lambda folder, wrap=_wrap: torchvision_resnet('resnet50', folder, wrap))


def _keras(name: str, file: str) -> Callable[[str], None]:
  def write(folder: str) -> None:
    import keras  # noqa: TID251  this is Keras 3
    rng = np.random.default_rng(0)
    build, preprocess = getattr(keras.applications, name), (
      keras.applications.vgg16 if name.startswith('VGG') else keras.applications.resnet).preprocess_input
    network = build(weights=None, include_top=not name.startswith('VGG'))
    for variable in network.variables:
      if variable.path.endswith(('moving_mean', 'bias', 'beta')):
        variable.assign(rng.normal(0, 0.1, variable.shape))
      elif variable.path.endswith(('moving_variance', 'gamma')):
        variable.assign(rng.uniform(0.6, 1.4, variable.shape))
    path = os.path.join(folder, file)
    network.save_weights(path) if file.endswith('.weights.h5') else network.save(path)
    if name.startswith('VGG'):
      outputs = {f'C{i}': network.get_layer(f'block{i + 1}_conv3').output for i in (2, 3, 4)}
    else:
      blocks = {'ResNet50': (3, 4, 6, 3), 'ResNet101': (3, 4, 23, 3)}[name]
      outputs = {f'C{i}': network.get_layer(f'conv{i}_block{n}_out').output for i, n in enumerate(blocks, 2)}
    trunk = build(weights=None, include_top=False, input_shape=(None, None, 3))
    trunk.set_weights(network.get_weights()[:len(trunk.get_weights())])
    outputs = {level: trunk.get_layer(output._keras_history.operation.name).output
               for level, output in outputs.items()}
    maps = keras.Model(trunk.input, outputs)
    save(folder, [{level: keras.ops.convert_to_numpy(x)[0] for level, x in maps(
      preprocess(image[None].astype(np.float32))).items()} for image in images()])
  return write


for _name, _file in [('ResNet50', 'resnet50.weights.h5'), ('ResNet50', 'resnet50.keras'), ('ResNet50', 'resnet50.h5'),
                     ('ResNet101', 'resnet101.weights.h5'), ('VGG16', 'vgg16.weights.h5'), ('VGG16', 'vgg16.keras')]:
  case(f'Keras 3 {_name}, {_file.split(".", 1)[1]}', 'keras')(_keras(_name, _file))


def _zoo(config: str, beside: bool = True, **changes: Any) -> Callable[[str], None]:
  def write(folder: str) -> None:
    import torch
    from detectron2 import model_zoo
    from detectron2.modeling import build_model
    torch.manual_seed(0)
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list(['MODEL.DEVICE', 'cpu', 'MODEL.WEIGHTS', '', *(x for item in changes.items() for x in item)])
    model = _confident(build_model(cfg).eval())
    torch.save({'model': model.state_dict(), 'iteration': 1}, os.path.join(folder, 'model_final.pth'))
    if beside:
      with open(os.path.join(folder, 'config.yaml'), 'w') as file:
        file.write(cfg.dump())
    save(folder, detectron2_stages(model))
  return write


def _confident(model: Any) -> Any:
  """Give a detector of random weights statistics, and logits that spread as those of a trained one."""
  import torch
  from detectron2.layers import FrozenBatchNorm2d
  _randomize_gains(model)

  def measure(module: Any, inputs: Any) -> None:  # before the layer computes, hence with right inputs
    x = inputs[0]
    module.running_mean.copy_(x.mean((0, 2, 3)))
    variance = x.var((0, 2, 3))  # without the floor, channels that are nearly constant would amplify rounding errors
    module.running_var.copy_(variance * torch.empty(x.shape[1]).uniform_(0.7, 1.4) + 0.2 * variance.mean())

  hooks = [m.register_forward_pre_hook(measure) for m in model.modules()
           if isinstance(m, FrozenBatchNorm2d | torch.nn.BatchNorm2d)]
  inputs = [{'image': torch.from_numpy(images()[1][..., ::-1].copy().transpose(2, 0, 1))}]
  with torch.no_grad():
    model(inputs)
    for hook in hooks:
      hook.remove()
    for module, spread in _predictions(model):
      measured = []
      hook = module.register_forward_hook(lambda m, i, o, seen=measured: seen.append(o.std()))
      model(inputs)
      hook.remove()
      module.weight.data *= spread / max(float(measured[0]), 1e-6)
  return model


def _predictions(model: Any) -> list[tuple[Any, float]]:
  """Layers of predictions and the standard deviations of their outputs."""
  rpn, heads = model.proposal_generator.rpn_head, model.roi_heads
  predictors = heads.box_predictor if hasattr(heads.box_predictor, '__len__') else [heads.box_predictor]
  found = [(rpn.objectness_logits, 2.0), (rpn.anchor_deltas, 0.3)]
  found += [pair for each in predictors for pair in ((each.cls_score, 3.0), (each.bbox_pred, 0.3))]
  if getattr(heads, 'mask_head', None) is not None:
    found.append((heads.mask_head.predictor, 1.0))
  return found


def detectron2_stages(model: Any) -> list[dict[str, Any]]:
  """All stages of a Detectron2 detector, in its layout: maps channels last, RPN [A, …], boxes x before y."""
  import torch
  channels, found = model.input_format, []
  for image in images():
    pixels = image[..., ::-1] if channels == 'BGR' else image
    inputs = [{'image': torch.from_numpy(pixels.copy().transpose(2, 0, 1)), 'height': image.shape[0],
               'width': image.shape[1]}]
    stages, seen = {}, {}
    heads = model.roi_heads
    predictor = heads.box_predictor[-1] if hasattr(heads.box_predictor, '__len__') else heads.box_predictor
    hook = predictor.register_forward_hook(lambda m, i, o, seen=seen: seen.update(scores=o[0], deltas=o[1]))
    with torch.no_grad():
      batch = model.preprocess_image(inputs)
      stages |= {name.replace('res', 'C'): x for name, x in model.backbone.bottom_up(batch.tensor).items()}
      features = model.backbone(batch.tensor)
      stages |= {name.upper(): x for name, x in features.items()}
      logits, deltas = model.proposal_generator.rpn_head([features[f'p{i}'] for i in range(2, 7)])
      proposals, _ = model.proposal_generator(batch, features)
      result, _ = model.roi_heads(batch, features, proposals)
    hook.remove()
    stages = {name: x[0].permute(1, 2, 0).numpy() for name, x in stages.items()}
    stages['RPN logits'] = np.concatenate([x[0].permute(1, 2, 0).reshape(-1).numpy() for x in logits])
    stages['RPN deltas'] = np.concatenate([x[0].permute(1, 2, 0).reshape(-1, 4).numpy() for x in deltas])
    stages['proposals'] = proposals[0].proposal_boxes.tensor.numpy()
    stages['box logits'], stages['box deltas'] = seen['scores'].numpy(), seen['deltas'].numpy()
    stages |= {'boxes': result[0].pred_boxes.tensor.numpy(), 'scores': result[0].scores.numpy(),
               'classes': result[0].pred_classes.numpy()}
    if result[0].has('pred_masks'):
      stages['masks'] = result[0].pred_masks[:, 0].numpy()
    found.append(stages)
  return found


MASK = 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml'
for _name, _write in {
  'Mask R-CNN R50-FPN': _zoo(MASK), 'Mask R-CNN R50-FPN, without config.yaml': _zoo(MASK, False),
  'Mask R-CNN R50-FPN GN': _zoo('Misc/scratch_mask_rcnn_R_50_FPN_9x_gn.yaml'),
  'Mask R-CNN R50-FPN SyncBN': _zoo('Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn.yaml'),
  'Mask R-CNN R50-FPN, two RPN convolutions': _zoo(MASK, **{'MODEL.RPN.CONV_DIMS': [-1, -1]}),
  'Mask R-CNN R50-FPN, RoIAlign of Detectron': _zoo(MASK, **{
    'MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO': 2, 'MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO': 2}),
  'Faster R-CNN R50-FPN': _zoo('COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml', False),
  'Mask R-CNN X101-FPN, without config.yaml': _zoo(MASK.replace('R_50_FPN_1x', 'X_101_32x8d_FPN_3x'), False),
  'Cascade Mask R-CNN R50-FPN': _zoo('Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml'),
}.items():
  case(f'Detectron2 {_name}', 'detectron2')(_write)


def detect(folder: str, config: str, weights: str) -> None:
  """Build the detector that rethink_tf.export has written, load it strictly, and save its stages."""
  import importlib
  import pickle

  import torch
  from detectron2.config import get_cfg
  from detectron2.modeling import build_model
  module = config.replace('.yaml', '_backbone.py')
  if os.path.exists(module):
    sys.path.insert(0, os.path.dirname(module))
    importlib.import_module(os.path.basename(module).removesuffix('.py'))
  cfg = get_cfg()
  cfg.merge_from_file(config)
  cfg.MODEL.DEVICE = 'cpu'
  model = build_model(cfg).eval()
  with open(weights, 'rb') as file:
    arrays = pickle.load(file)['model']
  loaded = model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
  left = [name for name in loaded.missing_keys if 'num_batches_tracked' not in name]
  if left or loaded.unexpected_keys:
    raise SystemExit(f'missing {left}, unexpected {loaded.unexpected_keys}')
  save(folder, detectron2_stages(model))


def main(arguments: list[str]) -> None:
  if arguments == ['--list']:
    for name, (libraries, _) in CASES.items():
      missing = [library for library in libraries if importlib.util.find_spec(library) is None]
      print(f'{name}\t{", ".join(missing)}')
  elif arguments[0] == '--detect':
    detect(*arguments[1:])
  elif arguments[0] == '--versions':
    from importlib import metadata
    libraries = [name for name in ('torch', 'torchvision', 'timm', 'keras', 'detectron2')
                 if importlib.util.find_spec(name) is not None]
    print(', '.join(f'{name} {metadata.version(name)}' for name in libraries))
  else:
    CASES[arguments[0]][1](arguments[1])


if __name__ == '__main__':
  main(sys.argv[1:])
