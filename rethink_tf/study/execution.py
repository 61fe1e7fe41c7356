"""Execution of a study's stages, one after another or several side by side; completed ones are skipped."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rethink_tf.console import duration
from rethink_tf.errors import UserError
from rethink_tf.storage import files, identity
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.metrics_lines import evaluated_steps
from rethink_tf.storage.run_folder import RunFolder, total_steps
from rethink_tf.study import grid
from rethink_tf.study import stages as staging
from rethink_tf.study.processes import Pool, Slot
from rethink_tf.study.speeds import Speeds, kind_of
from rethink_tf.study.stages import Stage
from rethink_tf.study.worker import Reply, Request

POLL_SECONDS = 2.0
REPORT_SECONDS = 30.0
CALIBRATION_STEPS = (6, 100)  # at least and at most, after as many steps as at least
CALIBRATION_SECONDS = 8.0
CALIBRATION_IMAGES = 100  # held-out ones that are evaluated
_FORWARD = 1 / 3  # of a step is spent in the forward pass, which an evaluation consists of
_FORKED = ('checkpoints', 'eval', 'tensorboard', 'metrics.jsonl', 'initial_weights.json', 'categories.json',
           identity.FILE)


class Job(NamedTuple):
  """A stage that is being trained."""

  stage: Stage
  number: int
  head: str  # of its lines of progress
  begin: int  # step at which it began
  since: float  # in seconds since 1970, as in the lines of metrics
  shared: bool  # in the graph of an earlier run


class Runner:
  """Runs the stages of a study."""

  def __init__(self, output: str, data_dir: str | None = None, log: Callable[[str], None] = print,
               environments: Sequence[Mapping[str, str]] = ({},)) -> None:
    """Only store the arguments; nothing is written yet.

    Args:
      output: folder for the run folder of each trial, and <trial>.log with its output.
      data_dir: folder of the data set of every run; None: those of the configurations.
      log: prints a line of progress.
      environments: of the processes that train side by side.
    """
    files.refuse_patterns(os.path.abspath(output))
    self._output, self._data_dir, self._log = output, data_dir, log
    self._pool = Pool(environments)
    self._speeds = Speeds()
    self._reported: dict[int, tuple[float, str]] = {}  # stage -> time and text of its latest line of progress

  def __enter__(self) -> Runner:
    self._pool.__enter__()
    return self

  def __exit__(self, *exception: Any) -> None:
    self._pool.__exit__(*exception)

  def folder(self, name: str) -> str:
    """Return the run folder of a trial."""
    return os.path.join(self._output, name)

  def done(self, stage: Stage) -> bool:
    """Whether the last checkpoint of a stage exists, and, at the end of a run, its last evaluation."""
    path = self.folder(stage.trial.name)
    if not os.path.isdir(path):
      return False
    folder = RunFolder(path, create=False)
    latest = RunCheckpoints(folder).latest()
    if latest is None or latest < stage.end:
      return False
    return stage.partial or stage.end in evaluated_steps(folder.read_metrics())

  def images_left(self, stages: Sequence[Stage]) -> int:
    """Return the number of images that the stages still have to train on."""
    left = 0
    for stage in stages:
      if not self.done(stage):
        begin = min(max(stage.start, self.reached(stage)), stage.end)
        left += (stage.end - begin) * stage.config.batch_size
    return left

  def evaluated(self, name: str) -> bool:
    """Whether the run of a trial has an evaluation."""
    path = self.folder(name)
    return os.path.isdir(path) and bool(evaluated_steps(RunFolder(path, create=False).read_metrics()))

  def pretrain(self, path: str, files: Sequence[str], params: Sequence[str], data_dir: str | None,
               command: str = 'pretrain') -> None:
    """Pre-train in a run folder, or continue. command: 'train' for a detector.

    Raises:
      UserError: the command failed.
    """
    self._call(Request(command, files, params, data_dir, path, f'{path}.log'), *grid.keys(files, params, data_dir),
               lambda: last_step(f'{path}.log'))

  def run(self, stages: Sequence[Stage]) -> list[str]:
    """Run the stages that are not done; return one line per failed stage. Later stages of a failed run are skipped.

    As many are trained side by side as there are environments, each as soon as what it continues is complete.
    """
    failures: dict[int, str] = {}
    waiting = dict(enumerate(stages))
    for number in [number for number, stage in waiting.items() if self.done(stage)]:
      self._log(f'{_head(stages, number)}: complete to iteration {stages[number].end}')
      del waiting[number]
    while waiting or any(slot.job for slot in self._pool.slots):
      self._skip(stages, waiting, failures)
      for slot in self._pool.slots:
        if slot.job is None and (number := self._next(stages, waiting, slot)) is not None:
          del waiting[number]
          self._begin(stages, number, slot, failures)
      for slot in self._pool.wait(POLL_SECONDS):
        self._end(slot, failures)
      self._report(waiting)
    return [failures[number] for number in sorted(failures)]

  def remaining(self, stages: Sequence[Stage]) -> float:
    """Return the seconds until all stages are complete, running ones included; nan if no speed is known."""
    jobs = {slot.job.number: slot.job for slot in self._pool.slots if slot.job}
    graphs, total, longest = {slot.graph for slot in self._pool.slots}, 0.0, {}
    for stage in stages:
      speed = self._speeds.of(kind_of(stage))
      if speed is None:
        return math.nan
      begin = max(stage.start, self.reached(stage))
      shared = bool(stage.config.graph) and stage.config.graph in graphs
      graphs.add(stage.config.graph)
      seconds = speed.start(shared) + speed.seconds(max(stage.end - begin, 0), staging.evaluations(stage, begin))
      total += seconds
      longest[stage.trial.name] = longest.get(stage.trial.name, 0.0) + seconds
    for job in jobs.values():
      seconds = self._left(job)
      total += seconds
      longest[job.stage.trial.name] = longest.get(job.stage.trial.name, 0.0) + seconds
    return max([total / len(self._pool.slots), *longest.values()], default=0.0)

  def reached(self, stage: Stage) -> int:
    """Return the step that the run of a stage has reached, 0 before its first checkpoint."""
    path = self.folder(stage.trial.name)
    return (RunCheckpoints(RunFolder(path, create=False)).latest() or 0) if os.path.isdir(path) else 0

  def calibrate(self, stage: Stage) -> None:
    """Measure the speed of a stage by training a few steps of it, with two evaluations, in a temporary folder.

    Raises:
      UserError: the command failed.
    """
    self._log(f'timing some steps and two evaluations of {stage.trial.name}')
    request = Request('train', stage.trial.files, stage.trial.params, self._data_dir, '', '',
                      held_out=CALIBRATION_IMAGES)
    self._calibrate(kind_of(stage), request, stage.config.graph, stage.config.process)

  def calibrate_pretraining(self, path: str, files: Sequence[str], params: Sequence[str],
                            data_dir: str | None) -> float:
    """Train a few steps of a pre-training in a temporary folder; return the seconds of what remains of it.

    Raises:
      UserError: the command failed.
    """
    self._log(f'timing some steps of pre-training {path}')
    # Without evaluations: ImageNet has 50,000 held-out images.
    request = Request('pretrain', files, params, data_dir, '', '', evaluates=False)
    whole = self._calibrate(path, request, *grid.keys(files, params, data_dir))
    reached = RunCheckpoints(RunFolder(path, create=False)).latest() if os.path.isdir(path) else None
    speed = self._speeds.of(path)
    if speed is None:
      raise UserError(f'{path}: its schedule is too short to be timed')
    self._speeds.forget(path)  # it says nothing about training
    left = max(whole.total_steps - (reached or 0), 0)
    steps_per_evaluation = whole.batches_per_evaluation * _FORWARD  # of as many seconds
    return speed.start(False) + speed.seconds(left, 0) + speed.step * steps_per_evaluation * math.ceil(
      whole.evaluations * left / whole.total_steps)

  @staticmethod
  def pretrained(path: str) -> bool:
    """Whether the last checkpoint of a pre-training exists."""
    if not os.path.isdir(path):
      return False
    folder = RunFolder(path, create=False)
    latest, last = RunCheckpoints(folder).latest(), total_steps(folder)
    return latest is not None and last is not None and latest >= last

  def _calibrate(self, kind: str, request: Request, graph: str, process: str) -> Reply:
    """Train a few steps, then a few more with the graph traced for them; return the first reply."""
    with tempfile.TemporaryDirectory(prefix='calibration-', ignore_cleanup_errors=True) as scratch:
      path, (least, most) = os.path.join(scratch, 'run'), CALIBRATION_STEPS
      request = request._replace(path=path, log=f'{path}.log', steps=least)
      reply = self._call(request, graph, process)
      earlier = _lines(path)
      train = [line for line in earlier if line.get('kind') == 'train']
      done = train[-1]['step'] if train else 0
      if reply.total_steps <= done:
        evaluated = sum(line.get('eval_seconds', 0.0) for line in earlier)
        self._speeds.note_whole(kind, reply._replace(seconds=reply.seconds +
                                                     evaluated * (1 / reply.evaluated_share - 1)))
        return reply
      step = (train[-1]['seconds'] - train[0]['seconds']) / max(done - train[0]['step'], 1)
      more = round(min(max(CALIBRATION_SECONDS / max(step, 1e-3), least), most))
      since = time.time()
      again = self._call(request._replace(steps=done + more), graph, process)
      later = _lines(path, since)
      self._speeds.note_run(kind, later, again, max(line.get('step', 0) for line in later) - done)
      if not self._speeds.known(kind):  # nothing was left to train
        self._speeds.note_run(kind, earlier, reply, done)
      self._speeds.note_first(kind, reply, done)
      self._speeds.note_share(kind, reply.evaluated_share)
      return reply

  def _call(self, request: Request, graph: str, process: str, progress: Callable[[], str] = lambda: '') -> Reply:
    """Train one run to its end, with nothing running beside it, and log its progress.

    Raises:
      UserError: it failed; the message is its error line.
    """
    slot, latest = self._pool.slots[0], ''
    slot.start(request, request, graph, process)
    reported = time.monotonic()
    while not self._pool.wait(POLL_SECONDS):
      if time.monotonic() - reported > REPORT_SECONDS:
        reported, line = time.monotonic(), progress()
        if line and line != latest:  # no progress during evaluation and tracing
          self._log(line)
        latest = line
    return slot.result()

  def _skip(self, stages: Sequence[Stage], waiting: dict[int, Stage], failures: dict[int, str]) -> None:
    """Fail the stages that continue a failed one."""
    for number in sorted(waiting):
      if any(k in failures for k in staging.needed(stages, number)):
        failures[number] = f'{waiting.pop(number).trial.name}: skipped, since the run it continues has failed'

  def _next(self, stages: Sequence[Stage], waiting: Mapping[int, Stage], slot: Slot) -> int | None:
    """Return the stage that a slot trains next: preferably one with the graph of the slot's process, else the first."""
    busy = {one.job.number for one in self._pool.slots if one.job}
    ready = [number for number in sorted(waiting)
             if not any(k in waiting or k in busy for k in staging.needed(stages, number))]
    return next((number for number in ready if slot.graph and waiting[number].config.graph == slot.graph),
                ready[0] if ready else None)

  def _begin(self, stages: Sequence[Stage], number: int, slot: Slot, failures: dict[int, str]) -> None:
    stage, head = stages[number], _head(stages, number)
    try:
      for k in staging.forks_before(stages, number):
        if k not in failures:
          self._fork(stages[k])
      if stage.fork_of is not None:
        self._fork(stage)
    except (UserError, OSError) as error:
      self._fail(number, head, stage, error if isinstance(error, UserError) else UserError(str(error)), failures)
      return
    params = [*stage.trial.params]
    if stage.partial:
      params += [*stage.config.quiet, _stop(stage.end, stage)]
    path = self.folder(stage.trial.name)
    begin = max(stage.start, self.reached(stage))
    self._log(f'{head}: iterations {begin} to {stage.end}')
    job = Job(stage, number, head, begin, time.time(), bool(slot.graph) and slot.graph == stage.config.graph)
    slot.start(Request('train', stage.trial.files, params, self._data_dir, path, f'{path}.log'), job,
               stage.config.graph, stage.config.process)

  def _end(self, slot: Slot, failures: dict[int, str]) -> None:
    job: Job = slot.job
    try:
      reply = slot.result()
    except UserError as error:
      self._fail(job.number, job.head, job.stage, error, failures)
      return
    lines = _lines(self.folder(job.stage.trial.name), job.since)
    self._speeds.note_run(kind_of(job.stage), lines, reply, job.stage.end - job.begin)
    self._log(f'{job.head}: done in {duration(time.time() - job.since)}'
              + (', in the graph of an earlier run' if reply.shared else '') + f', {reply.megabytes} MB')

  def _fail(self, number: int, head: str, stage: Stage, error: UserError, failures: dict[int, str]) -> None:
    self._log(f'{head}: {error.line()}')
    failures[number] = f'{stage.trial.name}: {error.line()}'

  def _report(self, waiting: Mapping[int, Stage]) -> None:
    """Log a line of progress for each run at intervals, unless it is evaluating or tracing."""
    for slot in self._pool.slots:
      job: Job | None = slot.job
      if job is None:
        continue
      latest, text = self._reported.get(job.number, (job.since, ''))
      if time.time() - max(latest, job.since) >= REPORT_SECONDS:
        line = self.progress(job, list(waiting.values()))
        if line and line != text:
          self._log(line)
        self._reported[job.number] = time.time(), line

  def progress(self, job: Job, waiting: Sequence[Stage]) -> str:
    """Return a line with the progress of a run and the time left for it and for the study; '' before its first step."""
    lines = [line for line in _lines(self.folder(job.stage.trial.name), job.since) if line.get('kind') == 'train']
    if not lines:
      return ''
    text = f'{job.head}: iteration {lines[-1]["step"]}/{job.stage.end}'
    if len(lines) > 1 and 'images_per_second' in lines[-1]:  # the first one includes tracing
      text += f', {lines[-1]["images_per_second"]:.3g} images/s'
    left, study = self._left(job), self.remaining(waiting)
    return text if math.isnan(left + study) else f'{text}, ETA {duration(left)}, study {duration(study)}'

  def _left(self, job: Job) -> float:
    """Return the seconds until a running stage is complete; nan if its speed is not known."""
    kind, lines = kind_of(job.stage), _lines(self.folder(job.stage.trial.name), job.since)
    self._speeds.note_steps(kind, lines)
    speed = self._speeds.of(kind)
    if speed is None:
      return math.nan
    step = max([job.begin, *(line['step'] for line in lines if line.get('kind') == 'train')])
    left = speed.seconds(job.stage.end - step, staging.evaluations(job.stage, step))
    return left if lines else left + max(speed.start(job.shared) - (time.time() - job.since), 0.0)

  def _fork(self, stage: Stage) -> None:
    """Copy the trunk's run up to iteration `start` into the run folder of a stage, atomically."""
    target = self.folder(stage.trial.name)
    if os.path.isdir(target):
      return  # forked before
    source = self.folder(stage.fork_of.name)
    if stage.start not in RunCheckpoints(RunFolder(source, create=False)).steps():
      raise UserError(f'{source} no longer has the checkpoint of iteration {stage.start}, from which '
                      f'{stage.trial.name} continues: set Study.share_prefixes = False, or remove that folder to train '
                      'it again')
    temporary = f'{target}.forking'
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    for name in _FORKED:
      path = os.path.join(source, name)
      if os.path.isdir(path):
        shutil.copytree(path, os.path.join(temporary, name))
      elif os.path.isfile(path):
        shutil.copy2(path, os.path.join(temporary, name))
    for step in RunCheckpoints(RunFolder(temporary, create=False)).steps():
      if step > stage.start:
        shutil.rmtree(os.path.join(temporary, 'checkpoints', f'step-{step:08d}'))
    identity.fork(RunFolder(temporary, create=False))
    # Metrics of later iterations are cancelled by the line with which the new run resumes.
    os.rename(temporary, target)


def _head(stages: Sequence[Stage], number: int) -> str:
  return f'[{number + 1}/{len(stages)}] {stages[number].trial.name}'


def _stop(steps: int, stage: Stage) -> str:
  """Return the binding that ends a run after some steps."""
  return f'KTimesSchedule.stop_k = {steps / stage.config.unit!r}'


def _lines(path: str, since: float = 0.0) -> list[dict[str, Any]]:
  """Return the metrics lines that a run has written since a given time."""
  if not os.path.isfile(os.path.join(path, 'metrics.jsonl')):
    return []
  return [line for line in RunFolder(path, create=False).read_metrics() if line.get('time', 0.0) >= since]


def last_step(log: str) -> str:
  """Return the last progress line in a command's output, '' if there is none."""
  with contextlib.suppress(FileNotFoundError), open(log, errors='replace') as file:
    return next((line.strip() for line in reversed(file.readlines()) if re.match(r'step ', line)), '')
  return ''
