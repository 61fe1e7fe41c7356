"""A ResNet in float64 NumPy, implemented from the papers, and the model that must compute the same features.

The source network has its own channel order, mean and standard deviation of pixels; its arrays have Detectron2's names
and layout. An error of a reader or a loader (a stride, a padding, an epsilon, a channel order) changes the features.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from rethink_tf.models.norms import group_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.weights.pretrained import PretrainedWeights
from tests import tiny

WIDTH = 32
BGR = dict(channels='bgr', mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0))  # in the order of the file
CAFFE = dict(channels='bgr', mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))
RGB = dict(channels='rgb', mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def random_arrays(norm: str, groups: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
  """Arrays of a backbone of depth 14, with one block per stage; norm: 'bn', 'folded' or 'gn'."""
  rng = np.random.default_rng(seed)
  arrays = {}

  def conv(name, out, into, side):
    arrays[f'{name}.weight'] = rng.normal(0, np.sqrt(2 / (into * side * side)), (out, into, side, side)).astype('f')
    arrays[f'{name}.norm.weight'] = rng.uniform(0.5, 1.5, out).astype('f')
    arrays[f'{name}.norm.bias'] = rng.normal(0, 0.3, out).astype('f')
    if norm == 'bn':
      arrays[f'{name}.norm.running_mean'] = rng.normal(0, 0.3, out).astype('f')
      # Some variances are small, so that epsilon matters.
      arrays[f'{name}.norm.running_var'] = np.exp(rng.uniform(-6, 1, out)).astype('f')

  conv('stem.conv1', WIDTH, 3, 7)
  into = WIDTH
  for stage in range(4):
    inner, out = WIDTH * 2**stage, WIDTH * 2**stage
    conv(f'res{stage + 2}.0.conv1', inner, into, 1)
    conv(f'res{stage + 2}.0.conv2', inner, inner // groups, 3)
    conv(f'res{stage + 2}.0.conv3', out, inner, 1)
    conv(f'res{stage + 2}.0.shortcut', out, into, 1)
    into = out
  arrays['linear.weight'] = rng.normal(0, 0.1, (5, into)).astype('f')
  arrays['linear.bias'] = rng.normal(0, 0.1, 5).astype('f')
  return arrays


def features(arrays, image, *, norm, channels, mean, std, stride_in_1x1=False, epsilon=1e-5, groups=1):
  """C2..C5 [h, w, C] of an RGB image uint8 [H, W, 3]."""
  arrays = {name: np.float64(array) for name, array in arrays.items()}
  x = (image[..., ::-1] if channels == 'bgr' else image).astype(np.float64)
  x = (x - np.array(mean)) / np.array(std)

  def layer(name, x, stride=1, padding=0, groups=1):
    x = convolve(x, arrays[f'{name}.weight'], stride, padding, groups)
    if f'{name}.bias' in arrays:
      x = x + arrays[f'{name}.bias']
    gamma, beta = arrays[f'{name}.norm.weight'], arrays[f'{name}.norm.bias']
    if norm == 'folded':
      return x * gamma + beta
    if norm == 'gn':
      x = group_normalise(x, epsilon)
    else:
      x = (x - arrays[f'{name}.norm.running_mean']) / np.sqrt(arrays[f'{name}.norm.running_var'] + epsilon)
    return x * gamma + beta

  x = pool(relu(layer('stem.conv1', x, 2, 3)))
  found = {}
  for stage in (2, 3, 4, 5):
    stride = 1 if stage == 2 else 2
    first, second = (stride, 1) if stride_in_1x1 else (1, stride)
    y = relu(layer(f'res{stage}.0.conv1', x, first))
    y = relu(layer(f'res{stage}.0.conv2', y, second, 1, groups))
    x = relu(layer(f'res{stage}.0.conv3', y) + layer(f'res{stage}.0.shortcut', x, stride))
    found[f'C{stage}'] = x
  return found


def convolve(x, w, stride, padding, groups):
  """Convolution of [H, W, C] with w (out, in / groups, h, w), zero padding on all sides."""
  x = np.pad(x, [(padding, padding), (padding, padding), (0, 0)])
  windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (0, 1))[::stride, ::stride]  # [h, w, C, kh, kw]
  into, out = x.shape[2] // groups, len(w) // groups
  return np.concatenate([
    np.einsum('hwcij,ocij->hwo', windows[:, :, g * into:(g + 1) * into], w[g * out:(g + 1) * out], optimize=True)
    for g in range(groups)], -1)


def pool(x):
  """3 x 3 max pooling with stride 2; the padding is ignored."""
  x = np.pad(x, [(1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
  return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))[::2, ::2].max((-1, -2))


def group_normalise(x, epsilon, groups=32):
  grouped = x.reshape(*x.shape[:2], groups, -1)
  mean, variance = grouped.mean((0, 1, 3), keepdims=True), grouped.var((0, 1, 3), keepdims=True)
  return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


def relu(x):
  return np.maximum(x, 0)


def detector(norm=group_norm, mean=BGR['mean'][::-1], std=(1.0, 1.0, 1.0), depth=14, **resnet):
  """A tiny detector with a built backbone; mean and std in RGB order."""
  backbone = ResNet(depth, norm=norm, **(dict(stem_width=WIDTH, res2_width=WIDTH, width_per_group=WIDTH) | resnet))
  model = tiny.detector(backbone=backbone, pixel_mean=mean, pixel_std=std)
  backbone(tf.zeros([1, 64, 64, 3]))
  return model


def random_image(side: int = 64, seed: int = 7) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def computed(model, image):
  """C2..C5 of a model for an image."""
  sizes = tf.constant([image.shape[:2]], tf.float32)
  return {level: x[0].numpy() for level, x in model.backbone(model.normalise(image[None], sizes)).items()}


def check(path, model, expected, image, **options):
  """Load the backbone of a file into a model, compare the model's features with those expected; return `Loaded`."""
  loaded = PretrainedWeights(str(path), **options)(model)
  for level, x in computed(model, image).items():
    scale = np.abs(expected[level]).max()
    np.testing.assert_allclose(x, expected[level], atol=2e-4 * scale, err_msg=level)
  return loaded
