"""The input of a TPU slice, measured without one: python -m tools.slice_input --output=results/slices.md.

Two processes with TensorFlow alone play its hosts; this one, their only client, places the input on them. Compares the
batches of two hosts with those of one, from two steps on, and with the Python input; then measures each, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from rethink_tf.bench.measure import Timing
  from rethink_tf.data.detection.input import TrainInput
  from rethink_tf.structures import Batch

HOSTS = 2
_SERVER = '''
import json, sys
import tensorflow as tf
spec = tf.train.ClusterSpec(json.loads(sys.argv[1]))
server = tf.distribute.Server(spec, job_name='worker', task_index=int(sys.argv[2]), protocol='grpc')
print('ready', flush=True)
server.join()
'''


class Differences(NamedTuple):
  """Of the Python input: shares of the pixel values that are apart by one level of 256, and by more."""

  batches: int
  one_level: float
  more: float


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data_dir', help='folder of converted records; by default synthetic images are written')
  parser.add_argument('--split', default='train2017')
  parser.add_argument('--keypoints', action='store_true')
  parser.add_argument('--batch_size', type=int, default=4)
  parser.add_argument('--short_side', type=int, default=800)
  parser.add_argument('--batches', type=int, default=12, help='that are compared, and measured in a round')
  parser.add_argument('--rounds', type=int, default=5, help='0: compare only')
  parser.add_argument('--output', help='Markdown file; default: print')
  options = parser.parse_args()
  with contextlib.ExitStack() as stack:
    cluster = stack.enter_context(hosts())
    connect(cluster)
    folder = options.data_dir or _write_records(stack.enter_context(tempfile.TemporaryDirectory()))
    from rethink_tf.data.augment import Resize
    from rethink_tf.data.detection.input import TrainInput
    from rethink_tf.data.detection.records import RecordSource
    source = RecordSource(folder, options.split, training=True, keypoints=options.keypoints)
    resize = Resize(options.short_side, round(options.short_side * 1333 / 800))
    inputs = TrainInput(source, options.batch_size, resize=resize)
    found = compare(inputs, options.batches)
    timings = measure(inputs, options.batches, options.rounds) if options.rounds else {}
  command = f'python -m tools.slice_input --data_dir=data/{source.name.split("/")[0]} --split={options.split}'
  text = report(found, timings, options.batches, options.batch_size, source.name,
                command if options.data_dir else 'python -m tools.slice_input')
  if options.output:
    with open(options.output, 'w') as file:
      file.write(text)
  else:
    print(text, end='')


@contextlib.contextmanager
def hosts() -> Iterator[dict[str, list[str]]]:
  """Start the processes of the hosts, in an empty environment of Python; yield the cluster's addresses."""
  with contextlib.ExitStack() as stack:
    listeners = [stack.enter_context(socket.create_server(('localhost', 0))) for _ in range(HOSTS)]
    cluster = {'worker': [f'localhost:{listener.getsockname()[1]}' for listener in listeners]}
  bare = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  servers = [subprocess.Popen([sys.executable, '-c', _SERVER, json.dumps(cluster), str(index)], env=bare, cwd='/',
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for index in range(HOSTS)]
  try:
    for server in servers:
      if server.stdout.readline() != b'ready\n':
        raise RuntimeError('a server has ended before it was ready')
    yield cluster
  finally:
    for server in servers:
      server.kill()
      server.wait()


def connect(cluster: Mapping[str, Sequence[str]]) -> None:
  """Make this process the client of the hosts; before any operation of TensorFlow."""
  import tensorflow as tf
  tf.config.experimental_connect_to_cluster(tf.train.ClusterSpec(dict(cluster)), job_name='coordinator')


def on_hosts(inputs: TrainInput, start: int, steps: int, count: int = HOSTS) -> list[Iterator[Batch]]:
  """Return an iterator of each of the first `count` hosts over its share of the batches."""
  import tensorflow as tf
  iterators = []
  for host in range(count):
    with tf.device(f'/job:worker/task:{host}/device:CPU:0'):
      context = tf.distribute.InputContext(count, host, count)
      iterators.append(iter(inputs.graph_dataset(start, steps, context)))
  return iterators


def compare(inputs: TrainInput, batches: int) -> Differences:
  """Compare two hosts with one, bit by bit, from step 0 and from the middle on; and one with the Python input.

  Raises:
    AssertionError: they differ.
  """
  import numpy as np
  whole = list(inputs.graph_dataset(0, batches))
  for start in (0, batches // 2):
    shares = on_hosts(inputs, start, batches - start)
    for step in range(start, batches):
      for host, share in enumerate(made := [next(share) for share in shares]):
        assert f'/job:worker/replica:0/task:{host}/' in share.images.device, share.images.device
      for name, expected, *parts in zip(whole[step]._fields, whole[step], *made, strict=True):
        found = np.concatenate([each.numpy() for each in parts])
        assert np.array_equal(found, expected), f'step {step}: {name}'
  counts = np.zeros(256, np.int64)
  for step, batch in enumerate(whole):
    for name, ours, theirs in zip(batch._fields, batch, inputs.batch(step), strict=True):
      if name == 'images':
        counts += np.bincount(np.abs(ours.numpy().astype(np.int16) - theirs).ravel(), minlength=256)
      else:
        assert np.array_equal(ours, theirs), f'step {step}: {name}'
  return Differences(batches, counts[1] / counts.sum(), counts[2:].sum() / counts.sum())


def measure(inputs: TrainInput, batches: int, rounds: int) -> dict[str, Timing]:
  """Measure the time of `batches` batches of each input, in turns. All processes share the cores of this machine.

  Nothing of another turn is read in advance: a graph has the batches of one turn alone, and Python's reads are waited
  for.
  """
  from rethink_tf.bench.measure import in_turns
  python = iter(inputs.dataset())

  def take_python() -> None:
    _take([python], batches)
    inputs.wait_for_step(sys.maxsize // 64, 60.0)

  makers = {'graph': lambda start: [iter(inputs.graph_dataset(start, batches))],
            'graph, on another host': lambda start: on_hosts(inputs, start, batches, 1),
            f'graph, on {HOSTS} other hosts': lambda start: on_hosts(inputs, start, batches)}
  turns = {name: iter([make(turn * batches) for turn in range(rounds + 1)]) for name, make in makers.items()}
  return in_turns({'Python': take_python, **{name: functools.partial(_take_next, left, batches)
                                             for name, left in turns.items()}}, rounds)


def _take_next(turns: Iterator[Sequence[Iterator[Batch]]], batches: int) -> None:
  _take(next(turns), batches)


def _take(iterators: Sequence[Iterator[Batch]], batches: int) -> None:
  for _ in range(batches):
    for ids in [next(iterator).image_ids for iterator in iterators]:
      ids.numpy()  # waits for the batch; its images stay on their host


def report(found: Differences, timings: Mapping[str, Timing], batches: int, batch_size: int, name: str,
           command: str) -> str:
  """Return the results in Markdown."""
  lines = [
    '# The input of a TPU slice of several hosts', '',
    f'Written by `{command} --output=results/slices.md`.',
    '**Not measured on a TPU.** Two processes on one machine, with TensorFlow and nothing of this package, are the '
    'hosts; one', 'client places the input on them (docs/cloud.md).', '',
    f'Data: {name}, batches of {batch_size}.', '',
    f'- {found.batches} batches of two hosts, from step 0 on and again from the middle on, are those of one host, bit '
    'by bit.',
    f'- Of the same batches of the Python input, {100 * found.one_level:.1f} % of the pixel values differ by one level '
    f'of 256, {100 * found.more:.1f} % by more;', '  sizes, boxes, classes, masks, keypoints and seeds are equal.', '']
  if timings:
    python = timings['Python'].median
    lines += ['| input | batches/s | images/s | of the Python input |', '| --- | --- | --- | --- |']
    lines += [f'| {kind} | {batches / timing.median:.1f} | {batches * batch_size / timing.median:.0f} | '
              f'{python / timing.median:.2f} |' for kind, timing in timings.items()]
    lines += ['', f'Medians of {timings["Python"].rounds} rounds in turns, on {os.cpu_count()} cores that all '
              'processes share.']
  return '\n'.join(lines).rstrip() + '\n'


def _write_records(folder: str) -> str:
  from rethink_tf.bench.pipelines import write_images
  from rethink_tf.data.conversion import convert
  from rethink_tf.data.detection.coco import CocoSource
  images = write_images(os.path.join(folder, 'images'))
  records = os.path.join(folder, 'records')
  convert(CocoSource(images, 'train2017'), records, 'train2017', num_shards=4, png_masks=False)
  return records


if __name__ == '__main__':
  main()
