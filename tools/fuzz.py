"""Fuzzer: read corrupted files of every kind that the package reads, and report the outcomes.

  python -m tools.fuzz --cases=20000 --output=results/fuzz.md

Whatever a file of data, annotations, weights or settings holds, the package reads it, skips and counts it, or reports
the problem in one line. Anything else is a failure: another exception, a message of several lines, a process that
exits or hangs, excessive memory. Case i of a kind depends on the seed, the kind and i only; `--only=images --case=17`
runs one case and shows the traceback.

Cases run in forks of this process, which has imported TensorFlow without using it: a crash costs one case.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import faulthandler
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib

import numpy as np

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

CHUNK = 50  # cases per fork
CPU_SECONDS = 20  # per case; then the whole chunk is killed
WALL_SECONDS = 180  # without output, for processes that wait without using the CPU
ADDRESS_SPACE = 8 << 30  # bytes beyond those of the process at the fork
MEMORY = 1 << 30  # bytes that a case may add to the process; an image of 100 megapixels takes 300 MB
FAILURE = 'FAILURE'
OUTCOMES = ('accepted', 'clear error', 'counted skip', FAILURE)


@dataclasses.dataclass
class Tally:
  """Outcomes of the cases of one kind."""

  outcomes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  failures: list[tuple[int, str]] = dataclasses.field(default_factory=list)
  slowest: tuple[float, int] = (0.0, 0)  # CPU seconds, case
  largest: tuple[int, int] = (0, 0)  # bytes, case

  def add(self, case: int, outcome: str, message: str, seconds: float, memory: int) -> None:
    if outcome != FAILURE and memory > MEMORY:
      outcome, message = FAILURE, f'{memory >> 20} MB of memory ({outcome}: {message})'
    self.outcomes[outcome] += 1
    if outcome == FAILURE:
      self.failures.append((case, message))
    self.slowest = max(self.slowest, (seconds, case))
    self.largest = max(self.largest, (memory, case))


class OutOfTime(BaseException):
  """A case has exceeded its CPU time."""


def targets() -> tuple:
  """All kinds, imported late: importing TensorFlow takes seconds, and --help should not wait."""
  from tools import fuzz_data, fuzz_exports, fuzz_results, fuzz_security, fuzz_weights
  return (fuzz_data.TARGETS + fuzz_exports.TARGETS + fuzz_weights.TARGETS + fuzz_security.TARGETS
          + fuzz_results.TARGETS)


def generator(seed: int, kind: str, case: int) -> np.random.Generator:
  return np.random.default_rng([seed, zlib.crc32(kind.encode()), case])


def judge(target, seed: int, case: int, seeds: pathlib.Path, work: pathlib.Path) -> tuple[str, str]:
  """Run a case -> (outcome, message)."""
  from rethink_tf.data.images import ImageError
  from rethink_tf.errors import UserError
  try:
    return target.run(generator(seed, target.name, case), seeds, work), ''
  except UserError as error:
    message = str(error)
    # gin appends the constructors being called, a line each; the commands print the first.
    shown = message.split('\n  In call')[0]
    if any(letter != '\t' and (letter < ' ' or '\x7f' <= letter < '\xa0') for letter in shown):
      return FAILURE, f'UserError with control characters or of several lines: {message[:300]!r}'
    return 'clear error', message
  except ImageError as error:
    return ('counted skip', str(error)) if '\n' not in str(error) else (FAILURE, f'of several lines: {error!r}')
  except OutOfTime:
    return FAILURE, f'over {CPU_SECONDS} s: {"; ".join(_places(sys.exc_info()[2]))}'
  except BaseException as error:  # any other than KeyboardInterrupt is a failure
    if isinstance(error, KeyboardInterrupt):
      raise
    return FAILURE, f'{type(error).__name__}: {str(error)[:200]!r} at {"; ".join(_places(error.__traceback__))}'


def _places(trace) -> list[str]:
  """The last frames of a traceback within this package."""
  found = [f'{pathlib.Path(frame.filename).name}:{frame.lineno} {frame.name}' for frame in traceback.extract_tb(trace)
           if 'rethink_tf' in frame.filename]
  return found[-2:]


def _work_through(target, seed, cases, seeds, work, pipe):
  """In a fork: run cases, and write one line of JSON before and after each."""
  def out_of_time(*_):
    raise OutOfTime

  from absl import logging
  logging.set_verbosity(logging.FATAL)
  faulthandler.disable()
  silence = os.open(os.devnull, os.O_WRONLY)
  os.dup2(silence, 1)
  os.dup2(silence, 2)
  signal.signal(signal.SIGPROF, out_of_time)
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limit = pages * resource.getpagesize() + ADDRESS_SPACE
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

  def report(**fields):
    os.write(pipe, json.dumps(fields).encode() + b'\n')

  for case in cases:
    report(begin=case)
    before = _memory(reset=True)
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
      outcome, message = judge(target, seed, case, seeds, work)
    except OutOfTime:  # between two lines of `judge`
      outcome, message = FAILURE, f'over {CPU_SECONDS} s'
    signal.setitimer(signal.ITIMER_PROF, 0)
    report(end=case, outcome=outcome, message=message[:500], seconds=time.process_time() - began,
           memory=max(_memory() - before, 0))


def _memory(reset: bool = False) -> int:
  """Peak memory of this process in bytes since the last reset."""
  if reset:
    pathlib.Path('/proc/self/clear_refs').write_text('5')
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) << 10


def _forked(work) -> tuple[int, int]:
  """Fork a process that calls work(pipe) -> (process, pipe to read)."""
  reading, writing = os.pipe()
  child = os.fork()
  if child == 0:
    try:
      os.close(reading)
      work(writing)
      os._exit(0)
    except BaseException:
      traceback.print_exc()
      os._exit(9)
  os.close(writing)
  return child, reading


def _chunk(target, seed, cases, seeds, work, tally: Tally) -> None:
  """Run cases in forks until all are done; after a crash or a hang a new fork continues with the next case."""
  cases = list(cases)
  while cases:
    child, pipe = _forked(lambda pipe, rest=tuple(cases): _work_through(target, seed, rest, seeds, work, pipe))
    current, rest, hung = None, b'', False
    while True:
      if not select.select([pipe], [], [], WALL_SECONDS)[0]:
        hung = True
        os.kill(child, signal.SIGKILL)
        break
      data = os.read(pipe, 1 << 16)
      if not data:
        break
      *lines, rest = (rest + data).split(b'\n')
      for line in map(json.loads, lines):
        if 'begin' in line:
          current = line['begin']
        else:
          tally.add(current, line['outcome'], line['message'], line['seconds'], line['memory'])
          cases.remove(current)
          current = None
    os.close(pipe)
    status = os.waitpid(child, 0)[1]
    if current is not None:
      ended = 'hangs' if hung else f'the process ends: {signal.Signals(status & 127).name}' if status & 127 else \
        f'the process exits with {status >> 8}'
      tally.add(current, FAILURE, ended, 0.0, 0)
      cases.remove(current)
    elif cases and not os.waitstatus_to_exitcode(status) == 0:
      raise RuntimeError(f'{target.name}: a fork ended between two cases with status {status}')


def run(cases: int, seed: int = 0, only: str | None = None, first: int = 0) -> dict[str, Tally]:
  """Run `cases` in all, divided evenly among the kinds -> {kind: outcomes}."""
  chosen = [target for target in targets() if only in (None, target.name)]
  if not chosen:
    raise SystemExit(f'--only={only}: the kinds are {", ".join(target.name for target in targets())}')
  gc.freeze()  # else the collector of each fork copies the pages of all that is imported
  tallies = {}
  root = pathlib.Path(tempfile.mkdtemp(prefix='fuzz-'))
  try:
    for number, target in enumerate(chosen):
      seeds = root / f'{number}-valid'
      seeds.mkdir()
      child, pipe = _forked(lambda pipe, target=target, seeds=seeds: target.build(seeds))
      os.close(pipe)
      if os.waitpid(child, 0)[1]:
        raise RuntimeError(f'{target.name}: the valid files could not be written')
      tally = tallies[target.name] = Tally()
      count = cases // len(chosen) + (number < cases % len(chosen))
      for begin in range(first, first + count, CHUNK):
        _chunk(target, seed, range(begin, min(begin + CHUNK, first + count)), seeds, root / f'{number}-work', tally)
      print(f'{target.name}: {dict(tally.outcomes)}, slowest {tally.slowest[0]:.1f} s, peak memory '
            f'{tally.largest[0] >> 20} MB', file=sys.stderr, flush=True)
      for case, message in tally.failures[:20]:
        print(f'  {FAILURE} case {case}: {message}', file=sys.stderr, flush=True)
  finally:
    shutil.rmtree(root, ignore_errors=True)
  return tallies


def show(kind: str, seed: int, case: int) -> None:
  """Run one case in this process, with its traceback."""
  target, = (target for target in targets() if target.name == kind)
  with tempfile.TemporaryDirectory() as folder:
    seeds = pathlib.Path(folder) / 'valid'
    seeds.mkdir()
    target.build(seeds)
    print(target.run(generator(seed, kind, case), seeds, pathlib.Path(folder) / 'work'))


def report(tallies: dict[str, Tally], cases: int, seed: int, seconds: float) -> str:
  """The table as Markdown."""
  packages = ('tensorflow', 'numpy', 'pillow', 'opencv-python-headless', 'h5py', 'safetensors', 'pycocotools',
              'protobuf', 'gin-config')
  total = sum((tally.outcomes for tally in tallies.values()), collections.Counter())
  lines = [
    '# Corrupted files', '',
    'Every file that the package reads may come from an untrusted source. Here valid files are corrupted at random',
    '(bits, byte ranges, fields, types, numbers, names, headers under correct checksums, programs in pickles) and read',
    'as a command would read them. *Accepted*: the rest was valid. *Clear error*: one line that names the file.',
    '*Counted skip*: skipped and counted. A *failure* is anything else: another exception, a crash, over '
    f'{CPU_SECONDS} s of', f'CPU time, or over {MEMORY >> 20} MB of memory.', '',
    f'`python -m tools.fuzz --cases={cases} --seed={seed} --output=results/fuzz.md`: {sum(total.values()):,} cases, '
    f'{total[FAILURE]} failures, {seconds / 60:.0f} minutes', f'on {os.cpu_count()} shared cores.', '',
    f'| kind | cases | {" | ".join(OUTCOMES).replace(FAILURE, "failures")} | slowest | peak memory |',
    '|---|---:|---:|---:|---:|---:|---:|---:|']
  for kind, tally in tallies.items():
    lines.append(f'| {kind} | {sum(tally.outcomes.values()):,} | '
                 + ' | '.join(f'{tally.outcomes[outcome]:,}' for outcome in OUTCOMES)
                 + f' | {tally.slowest[0]:.1f} s (case {tally.slowest[1]}) | {tally.largest[0] >> 20} MB '
                 f'(case {tally.largest[1]}) |')
  every = ' | '.join(f'{total[outcome]:,}' for outcome in OUTCOMES)
  lines.append(f'| all | {sum(total.values()):,} | {every} | | |')
  for kind, tally in tallies.items():
    lines += [f'\n{FAILURE} {kind}, case {case}: {message}' for case, message in tally.failures]
  lines += ['', 'Slowest: CPU time of one case. Peak memory: what a case added to the process. `python -m',
            f'tools.fuzz --only=KIND --case=N --seed={seed}` repeats one. Python {platform.python_version()},',
            ', '.join(f'{name} {importlib.metadata.version(name)}' for name in packages) + '.', '']
  return '\n'.join(lines)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--cases', type=int, default=2000, help='of all kinds together')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--first', type=int, default=0, help='number of the first case of each kind')
  parser.add_argument('--only', help='one kind')
  parser.add_argument('--case', type=int, help='run one case of that kind in this process, with its traceback')
  parser.add_argument('--output', help='file for the table')
  options = parser.parse_args()
  if options.case is not None:
    show(options.only, options.seed, options.case)
    return 0
  began = time.monotonic()
  tallies = run(options.cases, options.seed, options.only, options.first)
  text = report(tallies, options.cases, options.seed, time.monotonic() - began)
  if options.output:
    pathlib.Path(options.output).write_text(text)
  print(text)
  return int(any(tally.failures for tally in tallies.values()))


if __name__ == '__main__':
  sys.exit(main())
