"""Checks a train step of a small detector: on each device, in each precision, in both forms, over two replicas."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from rethink_tf.data.augment import Resize
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.doctor.rows import Row, compared
from rethink_tf.models.fpn import FPN
from rethink_tf.models.heads import BoxHead, MaskHead, RPNHead
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rois import Anchors, AnchorSampler, ProposalGenerator, RoISampler
from rethink_tf.structures import Batch
from rethink_tf.training.loss_scaling import LossScaleTrainer
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.trainer import Trainer

CPU = '/CPU:0'
# Losses and gradients, relative to the reference's. 16 bits reorder proposals of nearly equal scores, so that boxes of
# the second stage differ; a broken kernel is off by far more.
TOLERANCES = {'float32': (1e-3, 2e-2), 'mixed_bfloat16': (0.1, 0.5), 'mixed_float16': (0.1, 0.5)}
_LOSS_SCALE = 1024.0


class Result(NamedTuple):
  """Losses by name and all gradients as one vector."""

  losses: dict[str, float]
  gradient: np.ndarray


def detector(xla: bool = False) -> MaskRCNN:
  """Return a Mask R-CNN of depth 14 and width 32 whose samplers take all candidates, so that order has no effect."""
  return MaskRCNN(
    6, backbone=ResNet(14, stem_width=32, res2_width=32, width_per_group=32), fpn=FPN(32), rpn_head=RPNHead(32),
    box_head=BoxHead(1, 1, 32, 32), mask_head=MaskHead(1, 32), anchors=Anchors((8, 16, 32, 64, 128)),
    anchor_sampler=AnchorSampler(4096, drop_straddling=False), proposal_generator=ProposalGenerator(60, 60, 40, 40),
    roi_sampler=RoISampler(64), xla=xla)


@functools.cache
def batch() -> Batch:
  """Return two synthetic images with their objects."""
  source = SyntheticSource(2, image_size=(64, 64), object_size=(16, 40))
  return TrainInput(source, 2, resize=Resize((64,), 96), max_instances=8).batch(0)


def image(i: int) -> Batch:
  """Return one of the two images as a batch."""
  return tf.nest.map_structure(lambda x: tf.constant(x[i:i + 1]), batch())


def build(policy: str = 'float32', xla: bool = False) -> Trainer:
  """Return a trainer of the detector, whose weights are the same for all policies, forms and devices."""
  before = tf_keras.mixed_precision.global_policy()
  tf_keras.mixed_precision.set_global_policy(policy)
  try:
    trainer = (LossScaleTrainer if policy == 'mixed_float16' else Trainer)(detector(xla), MaskRCNNLoss())
    optimizer = SGD(1.0, momentum=0.0, weight_decay=0.0, bias_rule='detectron2')  # an update is the gradient
    if policy == 'mixed_float16':
      optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=_LOSS_SCALE)
    trainer.compile(optimizer)
    trainer.make_variables(tf.nest.map_structure(lambda x: tf.TensorSpec([1, *x.shape[1:]], x.dtype), batch()))
  finally:
    tf_keras.mixed_precision.set_global_policy(before)
  rng = np.random.default_rng(0)
  for variable in trainer.detector.trainable_variables:
    shape, kind = variable.shape, variable.name.split('/')[-1]
    spread = np.sqrt(2.0 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1
    variable.assign((1.0 if kind.startswith('gamma') else 0.0) + np.float32(rng.normal(0.0, spread, shape)))
  return trainer


def gradients(device: str, policy: str = 'float32', xla: bool = False, images: int = 1) -> Result:
  """Return losses and gradients, the means over the first images, each computed alone."""
  with tf.device(device):
    trainer = build(policy, xla)
    step = tf.function(trainer.gradients, autograph=False)
    results = []
    for i in range(images):
      losses, found = step(image(i))
      results.append(Result({name: float(value) for name, value in losses.items() if name.startswith('loss/')},
                            _vector(trainer.unscaled(found))))
  return Result({name: float(np.mean([result.losses[name] for result in results])) for name in results[0].losses},
                np.mean([result.gradient for result in results], axis=0))


def _vector(tensors: list[tf.Tensor]) -> np.ndarray:
  return np.concatenate([np.float64(tensor).ravel() for tensor in tensors])


@contextlib.contextmanager
def _unoptimised() -> Iterator[None]:
  """Disable TensorFlow's graph optimisation: no fused kernels are used, and a graph starts in half the time."""
  tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})
  try:
    yield
  finally:
    tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': False})


@functools.cache
def reference() -> Result:
  """Return the step of both images on the CPU in float32, operation by operation."""
  with _unoptimised():
    return gradients(CPU, images=2)


def compare(check: str, device: str, ours: Result, expected: Result, tolerances: tuple[float, float]) -> Iterator[Row]:
  """Compare losses, each relative to its value, and the gradient, relative to its norm."""
  losses = [abs(ours.losses[name] - value) / max(abs(value), 1e-2) for name, value in expected.losses.items()]
  yield compared(f'{check}: losses', device, float(np.max(losses)), tolerances[0])
  error = np.linalg.norm(ours.gradient - expected.gradient) / np.linalg.norm(expected.gradient)
  yield compared(f'{check}: gradients', device, float(error), tolerances[1])


def other_form() -> Iterator[Row]:
  """Compare the form for XLA (RoIAlign as a gather, batched NMS) with the one for CPUs and GPUs."""
  with _unoptimised():
    ours = gradients(CPU, xla=True, images=2)
  yield from compare('train step, both forms', CPU, ours, reference(), (1e-4, 1e-3))


def step(device: str, policy: str) -> Iterator[Row]:
  """Compare a step on a device in a precision with float32 on the CPU."""
  yield from compare(f'train step {policy}', device, gradients(device, policy, images=2), reference(),
                     TOLERANCES[policy])


def fast_math_step(device: str) -> Iterator[Row]:
  """Check a step with TensorFloat-32, which training uses on GPUs that have it and the other checks do not."""
  tf.config.experimental.enable_tensor_float_32_execution(True)
  try:
    ours = gradients(device, images=2)
  finally:
    tf.config.experimental.enable_tensor_float_32_execution(False)
  yield from compare('train step TF32', device, ours, reference(), (2e-2, 0.2))


def replicas(strategy: tf.distribute.Strategy, device: str) -> Iterator[Row]:
  """Compare a step of two replicas, one image each, with one device: losses, update, and equal weights."""
  with strategy.scope():
    trainer = build()
  before = _vector([variable.value() for variable in trainer.detector.trainable_variables])
  images = tf.nest.map_structure(tf.constant, batch())
  with _unoptimised() if 'CPU' in device else contextlib.nullcontext():
    trainer.run_step(tf.function(trainer.train_step, autograph=False), trainer.shard(images))
  weights = [_vector([strategy.experimental_local_results(variable)[i] for variable in
                      trainer.detector.trainable_variables]) for i in range(2)]
  losses = {name: float(metric.result()) for name, metric in trainer.loss_means.items()}
  yield from compare('two replicas', device, Result(losses, before - weights[0]), reference(), (1e-3, 2e-2))
  yield compared('two replicas: same weights', device, float(np.abs(weights[0] - weights[1]).max()), 0.0)
