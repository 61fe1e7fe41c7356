"""A process that trains runs of a study one after another; runs with the same graph share the traced trainer.

It reads one request (JSON) per line from standard input and answers with a line on standard output; the output of a run
goes to its log. An error ends the process as it ends the training command, with a line in the log and an exit code, and
the study starts another process. SIGTERM ends it at a step, with everything saved and exit code 75; so does the end of
the study, which closes standard input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rethink_tf.errors import UserError, in_one_line
from rethink_tf.process import entry
from rethink_tf.process.signals import RESUMES

if TYPE_CHECKING:
  from rethink_tf.training.sharing import SharedGraphs

COMMANDS = {'train': 'rethink_tf/train.py', 'pretrain': 'rethink_tf/pretrain.py'}


class Request(NamedTuple):
  """A run to train, or to continue."""

  command: str  # 'train' or 'pretrain'
  files: Sequence[str]
  params: Sequence[str]
  data_dir: str | None
  path: str  # of the run folder
  log: str
  steps: int | None = None  # only so many, with a line of metrics for each
  evaluates: bool = True
  held_out: int | None = None  # evaluated at most

  @property
  def arguments(self) -> list[str]:
    """The arguments of the equivalent training command."""
    return arguments(self.files, self.params, self.path, self.data_dir)


class Reply(NamedTuple):
  """Measurements of a run that is complete."""

  seconds: float  # of the run, without the start of the process
  import_seconds: float  # of TensorFlow and the package, 0 after the first run of the process
  total_steps: int  # of its schedule
  evaluations: int  # of its schedule; only with Request.steps
  batches_per_evaluation: float  # of as many images as a step has
  shared: bool  # it has used the graph of an earlier run
  megabytes: int  # memory of the process after the run
  evaluated_share: float = 1.0  # of the held-out images, with Request.held_out


def arguments(files: Sequence[str], params: Sequence[str], path: str, data_dir: str | None) -> list[str]:
  """Return the arguments of the training command for a run."""
  return [*(f'--gin_file={file}' for file in files), *(f'--gin_param={param}' for param in params),
          f'--model_dir={path}', *([f'--data_dir={data_dir}'] if data_dir else [])]


def main() -> None:
  """Train the requested runs until standard input ends."""
  replies = os.fdopen(os.dup(1), 'w')
  _write_to(os.devnull)
  requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
  busy = threading.Event()
  threading.Thread(target=_read, args=(requests, busy), name='requests', daemon=True).start()
  graphs = None
  while (request := requests.get()) is not None:
    busy.set()
    try:
      _write_to(request.log)
      begin = time.monotonic()
      from rethink_tf.training.sharing import SharedGraphs  # imports TensorFlow, whose lines belong into the log

      graphs = graphs or SharedGraphs()
      reply = _train(request, graphs, time.monotonic() - begin)
      _write_to(os.devnull)
    finally:
      busy.clear()  # also of a run that fails: no signal then, so that the exit code is that of the failure
    with contextlib.suppress(OSError):  # the study has ended; the standard input says so too
      print(json.dumps(reply._asdict()), file=replies, flush=True)
  os._exit(0)  # all is saved, and Python would wait for the threads of TensorFlow


def _train(request: Request, graphs: SharedGraphs, import_seconds: float) -> Reply:
  from rethink_tf import experiment, gin_files
  from rethink_tf.training import loop

  begin = time.monotonic()
  package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  sys.argv = [os.path.join(package, COMMANDS[request.command]), *request.arguments]  # for command.json
  try:
    experiment.configure(request.files, request.params, request.data_dir)
    share = 1.0 if request.held_out is None else hold_out_fewer(request.held_out)
    made = experiment.run('train', request.path, graphs=graphs)
    total_steps, evaluations = made.total_steps, 0
    batches = len(made.eval_input.source.image_ids) / made.train_input.batch_size
    if request.steps is not None:
      unit, evaluations = made.steps_per_execution, sum(made.due(step) for step in range(1, total_steps)) + 1
      made = dataclasses.replace(made, total_steps=min(-(-request.steps // unit) * unit, total_steps), log_every=unit,
                                 own_evaluation=request.evaluates and made.own_evaluation)
    loop.train(made)
  finally:
    gin_files.clear()
  del made
  gc.collect()
  return Reply(time.monotonic() - begin, import_seconds, total_steps, evaluations, batches, graphs.shared, _megabytes(),
               share)


def hold_out_fewer(images: int) -> float:
  """Limit the number of held-out images of the configuration; return their share of all, 1 if there are no more."""
  from rethink_tf import experiment, gin_files

  source = repr(gin_files.bound('run.eval_source')).removeprefix('@')
  limits = gin_files.effective([f'{source}.num_images', f'{source}.fraction'])
  if len(limits) < 2:  # a source of the user's own
    return 1.0
  whole = len(gin_files.argument(experiment.run, 'eval_source')(training=False).image_ids)
  if whole <= images:
    return 1.0
  gin_files.rebind({f'{source}.num_images': images, f'{source}.fraction': 1.0})
  return images / whole


def _read(requests: queue.SimpleQueue[Request | None], busy: threading.Event) -> None:
  """Pass requests on; if the study is killed during a run, end the run with a checkpoint."""
  for line in sys.stdin:
    requests.put(Request(**json.loads(line)))
  requests.put(None)
  if busy.is_set():
    os.kill(os.getpid(), signal.SIGTERM)


def _write_to(path: str) -> None:
  """Append what is written to the standard output and the standard error, also by C++ code, to a file.

  Raises:
    UserError: it cannot be written.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  try:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
  except OSError as error:
    raise UserError(f'{path}: cannot be written: {in_one_line(error)}') from error
  os.dup2(file, 1)
  os.dup2(file, 2)
  os.close(file)


def _megabytes() -> int:
  with contextlib.suppress(OSError, ValueError, IndexError), open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') >> 20
  return 0


def read_reply(line: str) -> Reply:
  """Parse a line into a Reply."""
  fields: dict[str, Any] = json.loads(line)
  return Reply(**fields)


if __name__ == '__main__':
  entry.start(main, interrupted=RESUMES)
