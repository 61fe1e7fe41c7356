"""Step times, schedules and memory on devices that were not there: a page derived on paper.

  python -m rethink_tf.bench.scaling --output=results/scaling.md

Formulas and assumptions are in benchmarks/capacity.py; nothing here is measured on such devices.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from absl import app, flags

from rethink_tf.errors import UserError, as_command

NETWORKS = {
  'R50-FPN': dict(depth=50), 'R101-FPN': dict(depth=101),
  'X101-32x8d-FPN': dict(depth=101, groups=32, width_per_group=8),
  'X152-8x32d-FPN': dict(depth=152, groups=8, width_per_group=32),
}
FIRST = 'R50-FPN'
BATCHES = {16: (500, 1 / 3), 64: (1000, 1 / 1000), 128: (1000, 1 / 1000), 256: (1000, 1 / 1000)}  # warm-up of each
MEMORIES = (16e9, 80e9)  # bytes
COCO_IMAGES = 118_287  # of train2017
COCO_BYTES = 18e9  # of its JPEG files, by the download page


def document(networks: Mapping) -> str:
  """The page, in Markdown, of {name: capacity.Network}."""
  return '\n\n'.join([_head(networks), _assumptions(), _steps(networks), _others(networks), _limits(networks),
                      _schedules(), _memory(networks)]) + '\n'


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
  """A Markdown table."""
  return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in (head, ['---'] * len(head), *rows))


def rates(batch: int):
  """The 6x schedule at a batch size, with its warm-up."""
  from rethink_tf.training.schedules import KTimesSchedule
  warmup, factor = BATCHES[batch]
  return KTimesSchedule(6, batch, warmup_steps=warmup, warmup_factor=factor)


def _head(networks):
  rows = [[name, f'{n.parameters:,}', f'{n.gradient_bytes / 1e6:.0f}', f'{n.flop / 1e12:.2f}',
           f'{n.recomputed_flop / 1e12:.2f}'] for name, n in networks.items()]
  return f'''# On many devices: derived, not measured

Written by `python -m rethink_tf.bench.scaling --output=results/scaling.md`. **No GPU and no TPU was there**: every time
below follows from counts, from one rate measured on two CPU cores, and from assumptions, which are listed. Expect a
factor of two either way; what the tables are for is to see which part limits a step, and what a run needs in memory.

## Counted in the graphs

Mask R-CNN with GroupNorm, 80 classes, one image on a canvas of 800 x 1344, all 512 RoIs and 128 masks in use: the most
there can be. A step is three times its forward pass, less the gradient of the photograph; a multiply-add is two FLOPs.
Gradients are float32 under every policy.

{table(["network", "parameters", "gradient MB", "TFLOP an image and step", "recomputation adds"], rows)}'''


def _assumptions():
  from rethink_tf.bench import capacity
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

Peaks and links are the makers' figures; float32 on an A100 is TF32, which TensorFlow uses unless told otherwise.
**Reached** is an assumption. Only the first is held against anything: Detectron2 trains this network (GN, from scratch,
640 to 800 pixels) at 0.338 s for 16 images on 8 V100 in float32, which for its smaller pictures and the count above is
about 60 % of the peak. In 16 bit and TF32, norms and other element-wise work, which is bound by memory, weighs more.

{table(["system", "hosts", "devices a host", "network GB/s a host", "cores a host"], systems)}

12.5 GB/s is 100 Gbit/s (Google's A2 and N1 machines). TPU v4-32 is 16 chips in four hosts; 100 GB/s are two of a
chip's links. An all-reduce is a ring inside a host, 2 (n - 1) / n of the gradients over its links, then one of the
hosts; it begins when all gradients are there. A host makes ready {capacity.IMAGES_PER_CORE} images a second and core
(measured: 250 to 300 on two, 800 / 1333 with masks and flips, results/benchmarks.md), and at most
{1 / capacity.PYTHON_SECONDS:.0f} a second in all, because 1.2 ms an image are Python, one thread at a time.'''


def _steps(networks):
  from rethink_tf.bench import capacity
  rows = []
  for system, batches in capacity.SYSTEMS:
    for policy in system.device.peak:
      rows += [_step_row(capacity, networks[FIRST], system, policy, batch) for batch in batches]
  head = ['system', 'policy', 'batch', 'images a device', 'compute ms', 'all-reduce ms', 'step ms', 'images/s',
          'input a host: images/s', 'JPEG MB/s', 'to devices MB/s', 'cores needed', 'limit', '6x: hours']
  return f'''## Steps of {FIRST}

JPEG: {COCO_BYTES / COCO_IMAGES / 1e3:.0f} kB an image (train2017: 18 GB). To devices:
{capacity.decoded_bytes() / 1e6:.2f} MB an image: uint8 pixels and the crops of {capacity.SLOTS} masks. Hours are
those of all iterations at this step time, without evaluation.

{table(head, rows)}'''


def _step_row(capacity, network, system, policy, batch):
  found = capacity.step(network, system, policy, batch)
  host = batch / found.seconds / system.hosts
  hours = rates(batch).total_steps * found.seconds / 3600
  return [system.name, policy, batch, -(-batch // system.devices), f'{1e3 * found.compute:.0f}',
          f'{1e3 * found.all_reduce:.1f}', f'{1e3 * found.seconds:.0f}', f'{batch / found.seconds:.0f}', f'{host:.0f}',
          f'{host * COCO_BYTES / COCO_IMAGES / 1e6:.0f}', f'{host * capacity.decoded_bytes() / 1e6:.0f}',
          f'{host / capacity.IMAGES_PER_CORE:.1f}', found.limit, f'{hours:.1f}']


def _others(networks):
  from rethink_tf.bench import capacity
  system, policy, batch = capacity.System(capacity.A100, 8, 8, 12.5e9, 96), 'mixed_bfloat16', 128
  rows = []
  for name, network in networks.items():
    found = capacity.step(network, system, policy, batch)
    rows.append([name, f'{1e3 * found.compute:.0f}', f'{1e3 * found.all_reduce:.1f}', f'{1e3 * found.seconds:.0f}',
                 f'{100 * found.all_reduce / found.seconds:.0f} %',
                 f'{rates(batch).total_steps * found.seconds / 3600:.1f}'])
  head = ['network', 'compute ms', 'all-reduce ms', 'step ms', 'share of the all-reduce', '6x: hours']
  return f'''## Other networks on {system.name}, {policy}, batch {batch}

{table(head, rows)}'''


def _limits(networks):
  from rethink_tf.bench import capacity
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
  head = ['system', 'policy', 'a device computes images/s', 'a host can feed each images/s',
          'cores a host below which the input is the limit', 'images a device at which the all-reduce takes as long',
          'network GB/s a host below which it is the limit at 1 image a device']
  return f'''## Where input or all-reduce become the limit

{FIRST}. The input is the limit where the third column exceeds the fourth; the all-reduce where fewer images lie on a
device than the sixth says (below 1: never).

{table(head, rows)}'''


def _schedules():
  rows = []
  for batch, (warmup, _) in BATCHES.items():
    schedule = rates(batch)
    first, second, end = schedule.points
    rows.append([batch, f'{float(schedule(warmup)):.2f}', f'{first:,}', f'{second:,}', f'{end:,}',
                 f'{warmup} from {float(schedule(0)):.5f}', 'Detectron' if batch == 16 else
                 "Detectron2's 9x of 64" if batch == 64 else 'not published', f'{5 * COCO_IMAGES / batch:,.0f}'])
  head = ['batch', 'rate', 'first drop', 'second drop', 'iterations', 'warm-up iterations, from rate', 'as in',
          "five epochs (Goyal et al.'s warm-up), iterations"]
  return f'''## The 6x schedule at each batch

`SCHEDULE = 6`, `BATCH_SIZE`, and for 64 and more `KTimesSchedule.warmup_steps = 1000`, `warmup_factor = 0.001`: rate
0.02 B / 16, iterations 540,000 · 16 / B. Nobody has published this detector from scratch beyond a batch of 64: there
the linear rule is an extrapolation. If the loss does not fall, lengthen the warm-up towards the last column first.

{table(head, rows)}'''


def _memory(networks):
  from rethink_tf.bench import capacity
  rows = []
  for name, network in networks.items():
    for kind, policy in (('float32', 'float32'), ('mixed', 'mixed_bfloat16')):
      for recompute in (False, True):
        fits = [capacity.images_that_fit(network, memory, policy, recompute) for memory in MEMORIES]
        again = network.block[kind] if recompute else 0.0
        rows.append([name, kind, 'yes' if recompute else 'no', f'{network.fixed[kind] / 1e9:.2f}',
                     f'{network.activations[kind, recompute] / 1e9:.2f}', f'{again / 1e9:.2f}', *fits])
  head = ['network', 'policy', 'recompute', 'fixed GB', 'GB an image', 'block GB an image',
          *(f'images in {memory / 1e9:.0f} GB' for memory in MEMORIES)]
  return f'''## Memory: images at a time on a device

By the rule of results/rows.md, read off the graph of the training step: **fixed** are weights, gradients and velocities
(all float32) and, in mixed precision, the 16-bit copies of the kernels; **an image**: what the forward pass keeps for
the backward pass; **block**: what recomputation brings back for a moment. Recomputation is of the backbone's blocks
alone. {100 * capacity.USABLE:.0f} % of a device are taken as usable; others have measured 7 to 13 % more than this rule
gives at two images (R50-FPN GN: 7.2 GB against 6.8; R101-FPN GN: 9.9 against 8.7, mmdetection's table), which does not
include what the framework and its workspaces take. On two CPU cores R50-FPN's peak was 4.7 GB, 3.6 with recomputation.

{table(head, rows)}

The batch need not fit: `run.images_per_device` is how many images a device holds at a time, gradients of the rest of
its share are accumulated, and the result is the same.'''


def main() -> None:
  """Counts the networks and writes the page."""
  from rethink_tf import console
  console.hide_library_info()
  from rethink_tf.bench import capacity

  networks = {}
  for name, settings in NETWORKS.items():
    begin = time.monotonic()
    networks[name] = capacity.count(settings)
    print(f'{time.monotonic() - begin:6.1f} s  {name}', file=sys.stderr, flush=True)
  try:
    with open(flags.FLAGS.output, 'w') as file:
      file.write(document(networks))
  except OSError as error:
    raise UserError(f'{flags.FLAGS.output}: cannot be written ({error.strerror})') from error


if __name__ == '__main__':
  flags.DEFINE_string('output', 'results/scaling.md', 'file to write', module_name=sys.argv[0])
  app.run(lambda argv: as_command(main, argv, 'stopped; nothing was written'))
