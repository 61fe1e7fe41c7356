"""Estimated time, communication, input and memory of a training step on other devices: formulas and assumptions.

Counted in the graphs: floating-point operations of a step, gradient bytes, activations. Measured elsewhere: the rate of
the input (results/benchmarks.md). Assumed: peak rates of devices and links, and the share of them that a step reaches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from rethink_tf.bench import activations
from rethink_tf.models.heads import MaskHead
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.models.resnet import BLOCKS, ResNet
from rethink_tf.structures import MASK_CROP, Batch
from rethink_tf.training.losses import MaskRCNNLoss

PADDED_SHAPE = (800, 1344)  # of an image of 800 x 1333
SLOTS = 100  # of ground truth

# results/benchmarks.md: 250 to 300 images/s at 800/1333 with masks and flips on two cores, 4.5 to 5 ms an image.
IMAGES_PER_CORE = 125  # per second
PYTHON_SECONDS = 1.2e-3  # per image, included above: neither JPEG, resizing nor masks; one thread at a time

USABLE = 0.85  # of a device's memory: the rest is for short-lived tensors, workspaces and fragmentation


class Device(NamedTuple):
  """Assumptions: data-sheet values, and the share of the peak that a detector's step reaches."""

  name: str
  memory: float  # bytes
  peak: dict[str, float]  # FLOP/s by policy
  reached: dict[str, float]  # share of it by policy
  link: float  # bytes/s that a device sends to its neighbour inside a host


class System(NamedTuple):
  """Devices in hosts."""

  device: Device
  hosts: int
  devices_per_host: int
  network: float  # bytes/s between two hosts; math.inf: the devices' links connect the hosts
  cores_per_host: int

  @property
  def devices(self) -> int:
    return self.hosts * self.devices_per_host

  @property
  def name(self) -> str:
    return f'{self.devices} x {self.device.name}'


V100 = Device('V100', 16e9, {'float32': 15.7e12, 'mixed_float16': 125e12},
              {'float32': 0.60, 'mixed_float16': 0.25}, 150e9)
A100 = Device('A100', 80e9, {'float32': 156e12, 'mixed_bfloat16': 312e12},
              {'float32': 0.25, 'mixed_bfloat16': 0.20}, 300e9)
TPU_V4 = Device('TPU v4 chip', 32 * 2**30, {'mixed_bfloat16': 275e12}, {'mixed_bfloat16': 0.20}, 100e9)
SYSTEMS = (  # with batch sizes
  (System(V100, 1, 8, 12.5e9, 96), (16,)),
  (System(A100, 1, 8, 12.5e9, 96), (16, 64)),
  (System(V100, 8, 8, 12.5e9, 96), (64, 128)),
  (System(A100, 8, 8, 12.5e9, 96), (64, 128, 256)),
  (System(TPU_V4, 4, 4, math.inf, 240), (16, 64, 128)),
)


class Network(NamedTuple):
  """Counts in the graphs of a network."""

  parameters: int
  flop: float  # of a training step, per image
  recomputed_flop: float  # that recomputation adds
  fixed: dict[str, float]  # bytes of weights, gradients and velocities, by 'float32' or 'mixed'
  activations: dict[tuple[str, bool], float]  # bytes per image, by ('float32' or 'mixed', recomputation)
  block: dict[str, float]  # bytes per image of the largest block's activations, which recomputation restores

  @property
  def gradient_bytes(self) -> int:
    return 4 * self.parameters  # float32 under every policy


class Step(NamedTuple):
  """Seconds of one training step by stage; `seconds` accounts for their overlap."""

  compute: float
  all_reduce: float
  input: float

  @property
  def seconds(self) -> float:
    """Gradients are exchanged once all are computed; the input runs in parallel."""
    return max(self.compute + self.all_reduce, self.input)

  @property
  def limit(self) -> str:
    """The slowest stage."""
    if self.input > self.compute + self.all_reduce:
      return 'input'
    return 'all-reduce' if self.all_reduce > self.compute else 'compute'


def ring(size: float, members: int, bandwidth: float) -> float:
  """Return the seconds of a ring all-reduce of `size` bytes: each of n members sends 2 (n - 1) / n of them."""
  return 2 * (members - 1) / members * size / bandwidth


def all_reduce_seconds(size: float, system: System) -> float:
  """Return the seconds of a ring within each host, then one of the hosts; of a single ring if links connect all."""
  if math.isinf(system.network):
    return ring(size, system.devices, system.device.link)
  return ring(size, system.devices_per_host, system.device.link) + ring(size, system.hosts, system.network)


def input_rate(cores: int) -> float:
  """Return the images per second that the input of one host delivers."""
  return min(cores * IMAGES_PER_CORE, 1 / PYTHON_SECONDS)


def step(network: Network, system: System, policy: str, batch: int) -> Step:
  """Estimate a step of `batch` images over all devices; it takes as long as the device with the most images."""
  images = -(-batch // system.devices)
  compute = images * network.flop / (system.device.peak[policy] * system.device.reached[policy])
  return Step(compute, all_reduce_seconds(network.gradient_bytes, system),
              batch / system.hosts / input_rate(system.cores_per_host))


def cores_needed(system: System, seconds: float) -> float:
  """Return the cores per host for an input as fast as its devices, each of which takes `seconds` per image."""
  return system.devices_per_host / seconds / IMAGES_PER_CORE


def network_needed(network: Network, system: System, seconds: float) -> float:
  """Return bytes/s between hosts at which an all-reduce takes `seconds`; inf if it takes longer within a host."""
  left = seconds - ring(network.gradient_bytes, system.devices_per_host, system.device.link)
  return ring(network.gradient_bytes, system.hosts, 1.0) / left if left > 0 else math.inf


def images_that_fit(network: Network, memory: float, policy: str, recompute: bool) -> int:
  """Return the number of images that fit in `memory` bytes at a time."""
  kind = 'float32' if policy == 'float32' else 'mixed'
  each = network.activations[kind, recompute] + (network.block[kind] if recompute else 0.0)
  return max(0, math.floor((USABLE * memory - network.fixed[kind]) / each))


def largest_block(saved: float, blocks: tuple[int, ...]) -> float:
  """Return the bytes of a block of the first stage. saved: of all blocks; each stage's have half of the last's."""
  return saved / sum(number / 2**stage for stage, number in enumerate(blocks))


def decoded_bytes() -> float:
  """Return the bytes of an image that are sent to a device: uint8 pixels, mask crops, boxes, classes."""
  return math.prod(PADDED_SHAPE) * 3 + SLOTS * (MASK_CROP**2 + 4 * 4 + 4)


def count(settings: Mapping[str, int]) -> Network:
  """Count a network with GroupNorm on one image of PADDED_SHAPE, with all RoI slots in use.

  settings: arguments of ResNet.
  """
  memory, work = {}, {}
  for kind, policy in (('float32', 'float32'), ('mixed', 'mixed_bfloat16')):
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
      for recompute in (False, True):
        memory[kind, recompute], work[kind, recompute] = activations.of_step(
          lambda r=recompute: _detector(settings, r), MaskRCNNLoss(), batch_specs())
    finally:
      tf_keras.mixed_precision.set_global_policy('float32')
  plain, recomputed = work['float32', False], work['float32', True]
  kept = {case: found.activations for case, found in memory.items()}
  kinds = ('float32', 'mixed')
  block = {kind: largest_block(kept[kind, False] - kept[kind, True], BLOCKS[settings['depth']]) for kind in kinds}
  stem = math.prod(PADDED_SHAPE) // 4 * 64 * 7 * 7 * 3
  return Network(
    memory['float32', False].parameters, training_flop(plain.forward, stem), 2.0 * (recomputed.all - plain.all),
    {kind: memory[kind, False].fixed for kind in kinds}, kept, block)


def training_flop(multiply_adds: int, stem: int) -> float:
  """Return FLOPs of a step: forward, gradients of inputs and of kernels, less the gradient of the image (`stem`)."""
  return 2.0 * (3 * multiply_adds - stem)


def _detector(settings: Mapping[str, int], recompute: bool) -> MaskRCNN:
  return MaskRCNN(80, backbone=ResNet(recompute=recompute, **settings), mask_head=MaskHead(), xla=True)


def batch_specs(keypoints: int = 0) -> Batch:
  """Return a batch of tf.TensorSpecs: one image of PADDED_SHAPE with SLOTS ground-truth slots."""
  return Batch(
    tf.TensorSpec([1, *PADDED_SHAPE, 3], tf.uint8), tf.TensorSpec([1, 2]), tf.TensorSpec([1, 2]),
    tf.TensorSpec([1, 2], tf.int32), tf.TensorSpec([1], tf.int64), tf.TensorSpec([1, 2], tf.int32),
    tf.TensorSpec([1, SLOTS, 4]), tf.TensorSpec([1, SLOTS], tf.int32),
    tf.TensorSpec([1, SLOTS, MASK_CROP, MASK_CROP], tf.uint8), tf.TensorSpec([1, SLOTS, keypoints, 3]))
