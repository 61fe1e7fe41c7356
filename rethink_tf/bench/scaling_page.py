"""The page of estimated step times, schedules and memory on GPUs and TPUs, written by bench.scaling.

Formulas and assumptions are in bench/capacity.py; nothing is measured on such devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rethink_tf.bench import capacity
from rethink_tf.bench.capacity import Network, System
from rethink_tf.training.schedules import KTimesSchedule

NETWORKS = {
  'R50-FPN': dict(depth=50), 'R101-FPN': dict(depth=101),
  'X101-32x8d-FPN': dict(depth=101, groups=32, width_per_group=8),
  'X152-8x32d-FPN': dict(depth=152, groups=8, width_per_group=32),
}
FIRST = 'R50-FPN'
# Batch size -> warm-up: iterations and initial factor.
BATCHES = {16: (500, 1 / 3), 64: (1000, 1 / 1000), 128: (1000, 1 / 1000), 256: (1000, 1 / 1000)}
MEMORIES = (16e9, 80e9)  # bytes
COCO_IMAGES = 118_287  # of train2017
COCO_BYTES = 18e9  # of its JPEG files, according to the download page



def document(networks: Mapping[str, Network]) -> str:
  """Return the page in Markdown. networks: by name, including FIRST."""
  return '\n\n'.join([_head(networks), _assumptions(), _steps(networks), _others(networks), _limits(networks),
                      _schedules(), _memory(networks)]) + '\n'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  """Return a Markdown table."""
  return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in (head, ['---'] * len(head), *rows))


def rates(batch: int) -> KTimesSchedule:
  """Return the 6x schedule at a batch size, with its warm-up."""
  warmup, factor = BATCHES[batch]
  return KTimesSchedule(6, batch, warmup_steps=warmup, warmup_factor=factor)


def _head(networks: Mapping[str, Network]) -> str:
  rows = [[name, f'{n.parameters:,}', f'{n.gradient_bytes / 1e6:.0f}', f'{n.flop / 1e12:.2f}',
           f'{n.recomputed_flop / 1e12:.2f}'] for name, n in networks.items()]
  return f'''# Many devices: estimates

Written by `python -m rethink_tf.bench.scaling --output=results/scaling.md`. **Nothing was measured on a GPU or TPU**:
every time below is derived from counts, from one rate measured on two CPU cores, and from the assumptions below. Expect
errors of a factor of two. The tables show what limits a step, and how much memory a run needs.

## Counted in the graphs

Mask R-CNN with GroupNorm, 80 classes, one image padded to 800 x 1344, as an upper bound all 512 RoIs and 128 masks in
use. A step is three times its forward pass, less the gradient of the image; a multiply-add is two FLOPs. Gradients are
float32 under every policy.

{table(["network", "parameters", "gradient MB", "TFLOP per image and step", "recomputation adds"], rows)}'''


def _assumptions() -> str:
  devices, systems = [], []
  for device in (capacity.V100, capacity.A100, capacity.TPU_V4):
    devices += [[device.name, f'{device.memory / 1e9:.0f}', policy, f'{peak / 1e12:.1f}',
                 f'{100 * device.reached[policy]:.0f} %', f'{device.link / 1e9:.0f}']
                for policy, peak in device.peak.items()]
  for system, _ in capacity.SYSTEMS:
    network = 'the links' if system.network == float('inf') else f'{system.network / 1e9:.1f}'
    systems.append([system.name, system.hosts, system.devices_per_host, network, system.cores_per_host])
  return f'''## Assumed

{table(["device", "memory GB", "policy", "peak TFLOP/s", "reached", "link GB/s"], devices)}

Peaks and links are data-sheet values; float32 on an A100 is TF32, TensorFlow's default. **Reached** is an assumption.
Only the first value is based on a measurement: Detectron2 trains this network (GN, from scratch, 640 to 800 pixels) at
0.338 s for 16 images on 8 V100 in float32, which for its smaller images and the count above is about 60 % of the peak.
In 16 bit and TF32 the share of norms and other element-wise operations, which are bound by memory, is larger.

{table(["system", "hosts", "devices per host", "network GB/s per host", "cores per host"], systems)}

12.5 GB/s is 100 Gbit/s (Google's A2 and N1 machines). TPU v4-32 is 16 chips in four hosts; 100 GB/s are two of a
chip's links. An all-reduce is a ring within each host, 2 (n - 1) / n of the gradients over its links, then one of the
hosts; it begins once all gradients are computed. The input of a host delivers {capacity.IMAGES_PER_CORE} images per
second and core (measured: 250 to 300 on two, 800 / 1333 with masks and flips, results/benchmarks.md), and at most
{1 / capacity.PYTHON_SECONDS:.0f} per second in total, because 1.2 ms per image are Python, one thread at a time.
Hosts of the TPU slice read without Python, at half the speed on the same cores (results/slices.md): they need twice the
cores that the tables say.'''


def _steps(networks: Mapping[str, Network]) -> str:
  rows = []
  for system, batches in capacity.SYSTEMS:
    for policy in system.device.peak:
      rows += [_step_row(networks[FIRST], system, policy, batch) for batch in batches]
  head = ['system', 'policy', 'batch', 'images per device', 'compute ms', 'all-reduce ms', 'step ms', 'images/s',
          'input per host: images/s', 'JPEG MB/s', 'to devices MB/s', 'cores needed', 'limit', '6x: hours']
  return f'''## Steps of {FIRST}

JPEG: {COCO_BYTES / COCO_IMAGES / 1e3:.0f} kB per image (train2017: 18 GB). To devices:
{capacity.decoded_bytes() / 1e6:.2f} MB per image: uint8 pixels and the crops of {capacity.SLOTS} masks. Hours are
those of all iterations at this step time, without evaluation.

{table(head, rows)}'''


def _step_row(network: Network, system: System, policy: str, batch: int) -> list[object]:
  found = capacity.step(network, system, policy, batch)
  host = batch / found.seconds / system.hosts
  hours = rates(batch).total_steps * found.seconds / 3600
  return [system.name, policy, batch, -(-batch // system.devices), f'{1e3 * found.compute:.0f}',
          f'{1e3 * found.all_reduce:.1f}', f'{1e3 * found.seconds:.0f}', f'{batch / found.seconds:.0f}', f'{host:.0f}',
          f'{host * COCO_BYTES / COCO_IMAGES / 1e6:.0f}', f'{host * capacity.decoded_bytes() / 1e6:.0f}',
          f'{host / capacity.IMAGES_PER_CORE:.1f}', found.limit, f'{hours:.1f}']


def _others(networks: Mapping[str, Network]) -> str:
  system, policy, batch = System(capacity.A100, 8, 8, 12.5e9, 96), 'mixed_bfloat16', 128
  rows = []
  for name, network in networks.items():
    found = capacity.step(network, system, policy, batch)
    rows.append([name, f'{1e3 * found.compute:.0f}', f'{1e3 * found.all_reduce:.1f}', f'{1e3 * found.seconds:.0f}',
                 f'{100 * found.all_reduce / found.seconds:.0f} %',
                 f'{rates(batch).total_steps * found.seconds / 3600:.1f}'])
  head = ['network', 'compute ms', 'all-reduce ms', 'step ms', 'share of the all-reduce', '6x: hours']
  return f'''## Other networks on {system.name}, {policy}, batch {batch}

{table(head, rows)}'''


def _limits(networks: Mapping[str, Network]) -> str:
  rows = []
  for system, _ in capacity.SYSTEMS:
    for policy in system.device.peak:
      network = networks[FIRST]
      one = capacity.step(network, system, policy, system.devices)
      even = one.all_reduce / one.compute
      input_bound = capacity.input_rate(system.cores_per_host) / system.devices_per_host
      rows.append([system.name, policy, f'{1 / one.compute:.1f}', f'{input_bound:.0f}',
                   f'{capacity.cores_needed(system, one.compute):.1f}', f'{even:.2f}',
                   f'{capacity.network_needed(network, system, one.compute) / 1e9:.2f}'
                   if system.hosts > 1 and system.network != float('inf') else '-'])
  head = ['system', 'policy', 'images/s of a device', 'input images/s per device',
          'cores per host below which the input limits', 'images per device below which the all-reduce limits',
          'network GB/s per host below which it limits at 1 image per device']
  return f'''## Limits by input and all-reduce

{FIRST}. The input limits a step if the third column exceeds the fourth; the all-reduce takes longer than the
computation if a device has fewer images than in the sixth column (below 1: never).

{table(head, rows)}'''


def _schedules() -> str:
  rows = []
  for batch, (warmup, _) in BATCHES.items():
    schedule = rates(batch)
    first, second, end = schedule.points
    rows.append([batch, f'{float(schedule(warmup)):.2f}', f'{first:,}', f'{second:,}', f'{end:,}',
                 f'{warmup} from {float(schedule(0)):.5f}', 'Detectron' if batch == 16 else
                 "Detectron2's 9x of 64" if batch == 64 else 'not published', f'{5 * COCO_IMAGES / batch:,.0f}'])
  head = ['batch', 'rate', 'first drop', 'second drop', 'iterations', 'warm-up iterations, from rate', 'as in',
          "iterations of five epochs (Goyal et al.'s warm-up)"]
  return f'''## The 6x schedule at each batch

`SCHEDULE = 6`, `BATCH_SIZE`, and for 64 and more `KTimesSchedule.warmup_steps = 1000`, `warmup_factor = 0.001`: rate
0.02 B / 16, iterations 540,000 · 16 / B. Training this detector from scratch with batches above 64 is not published:
the linear rule is an extrapolation there. If the loss does not fall, lengthen the warm-up towards the last column.

{table(head, rows)}'''


def _memory(networks: Mapping[str, Network]) -> str:
  rows = []
  for name, network in networks.items():
    for kind, policy in (('float32', 'float32'), ('mixed', 'mixed_bfloat16')):
      for recompute in (False, True):
        fits = [capacity.images_that_fit(network, memory, policy, recompute) for memory in MEMORIES]
        block = network.block[kind] if recompute else 0.0
        rows.append([name, kind, 'yes' if recompute else 'no', f'{network.fixed[kind] / 1e9:.2f}',
                     f'{network.activations[kind, recompute] / 1e9:.2f}', f'{block / 1e9:.2f}', *fits])
  head = ['network', 'policy', 'recompute', 'fixed GB', 'GB per image', 'block GB per image',
          *(f'images in {memory / 1e9:.0f} GB' for memory in MEMORIES)]
  return f'''## Memory: images at a time on a device

By the rule of results/rows.md, counted in the graph of the training step: **fixed**: weights, gradients and velocities
(all float32) and, in mixed precision, the 16-bit copies of the kernels; **per image**: the activations that the forward
pass keeps for the backward pass; **block**: the largest block's activations, restored by recomputation. Only the blocks
of the backbone are recomputed. {100 * capacity.USABLE:.0f} % of a device are assumed to be usable: the rule does not
include the framework and its workspaces. Published memory is 7 to 13 % above it at two images (mmdetection's table:
R50-FPN GN 7.2 GB, by the rule 6.8; R101-FPN GN 9.9, by the rule 8.7). On two CPU cores the peak of R50-FPN was 4.7 GB,
3.6 with recomputation.

{table(head, rows)}

The batch need not fit: `run.images_per_device` is the number of images that a device holds at a time; gradients of the
rest of its share are accumulated, and the result is the same.'''
