"""Distribution strategies: one device, all devices of a machine, several machines, or a TPU (section 4: 8 GPUs)."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
import tensorflow as tf
from absl import logging

from rethink_tf import console
from rethink_tf.distributed.coordination import publish, published
from rethink_tf.distributed.tf_config import FORM, Cluster, cluster, is_evaluator
from rethink_tf.distributed.workers import ALONE, Workers, assemble, software
from rethink_tf.errors import UserError, WorkerLost, in_one_line, needs_models, shortened
from rethink_tf.process import signals
from rethink_tf.storage import files, writer_lock
from rethink_tf.storage.run_folder import RunFolder

KINDS = ('default', 'one_device', 'mirrored', 'multi_worker', 'tpu')
COMMUNICATIONS = ('auto', 'ring', 'nccl')
_HEARTBEAT_SECONDS = 30  # without a heartbeat, after which a worker counts as lost
_POLL_SECONDS = 0.5
_WEEK = 10080  # minutes


@gin.register
def strategy(
  kind: str = 'default',
  num_devices: int | None = None,
  logical_cpus: int | None = None,
  tpu: str = 'local',
  communication: str = 'auto',
  timeout_minutes: float = 10.0,
) -> tf.distribute.Strategy:
  """Return the distribution strategy of a run. Call it before any TensorFlow op.

  Args:
    kind: 'one_device', the first GPU, or the CPU without GPUs; 'mirrored', all GPUs or logical CPUs; 'multi_worker',
      the GPUs, or the CPU, of every machine in TF_CONFIG; 'tpu', the cores of a TPU; 'default', multi_worker if
      TF_CONFIG lists several machines, mirrored if there are several GPUs or logical CPUs, else one_device.
    num_devices: use the first devices of this machine only.
    logical_cpus: split the CPU, for replicas without GPUs.
    tpu: 'local' on a TPU VM of one host, or the name of a TPU or of a slice of several hosts, which trains from
      TFRecords.
    communication: between machines, 'auto', 'ring' or 'nccl'.
    timeout_minutes: how long machines wait for one another, at the start and for the results of an evaluation.

  Raises:
    UserError: unknown kind, fewer devices than requested, a number of them for a TPU, or TensorFlow has started before
      `logical_cpus`; TF_CONFIG is missing, malformed or describes another kind; there is no TPU.
    WorkerLost: a machine is missing after the timeout.
  """
  if kind not in KINDS:
    raise UserError(f"strategy.kind = '{kind}' must be one of {', '.join(KINDS)}")
  if communication not in COMMUNICATIONS:
    raise UserError(f"strategy.communication = '{communication}' must be one of {', '.join(COMMUNICATIONS)}")
  for name, count in (('num_devices', num_devices), ('logical_cpus', logical_cpus)):
    if count is not None and count < 1:
      raise UserError(f'strategy.{name} = {count} must be at least 1')
  if not 0 < timeout_minutes <= _WEEK:  # of TensorFlow's and Python's clocks, which overflow
    raise UserError(f'strategy.timeout_minutes = {timeout_minutes:g} must be above 0, and at most {_WEEK}, a week')
  found = cluster()
  if kind == 'tpu':
    for name, count in (('num_devices', num_devices), ('logical_cpus', logical_cpus)):
      if count is not None:
        raise UserError(f"strategy.{name} = {count} has no effect with strategy.kind = 'tpu', which uses all cores: "
                        'leave it out, or bind None')
    return _tpu(tpu)
  if found is not None and kind in ('default', 'multi_worker'):
    if logical_cpus is not None:
      raise UserError("strategy.logical_cpus is for one machine: TensorFlow gives each of several workers one CPU")
    return _multi_worker(found, num_devices, communication, timeout_minutes)
  if found is not None:
    raise UserError(f"strategy.kind = '{kind}' is for one machine, but TF_CONFIG lists {len(found.addresses)} workers: "
                    "use strategy.kind = 'multi_worker', or unset TF_CONFIG")
  if kind == 'multi_worker':
    raise UserError(f"strategy.kind = 'multi_worker' needs the environment variable TF_CONFIG with all workers, "
                    f"{FORM}; on one machine use strategy.kind = 'default'")
  return _one_machine(kind, num_devices, logical_cpus)


def _one_machine(kind: str, num_devices: int | None, logical_cpus: int | None) -> tf.distribute.Strategy:
  if logical_cpus is not None:
    _split_cpu(logical_cpus)
  gpus, cpus = ([device.name.removeprefix('/device:') for device in tf.config.list_logical_devices(type_)]
                for type_ in ('GPU', 'CPU'))
  devices = cpus[:logical_cpus] if logical_cpus is not None or not gpus else gpus
  if num_devices is not None and num_devices > len(devices):
    raise UserError(f'strategy.num_devices = {num_devices}, but TensorFlow finds {len(gpus)} GPU(s) and {len(cpus)} '
                    'CPU device(s): lower it, install the CUDA libraries (make install EXTRAS=cuda), or split '
                    'the CPU with strategy.logical_cpus')
  if kind == 'one_device' and (num_devices or 1) > 1:
    raise UserError(f"strategy.num_devices = {num_devices} needs strategy.kind = 'mirrored'")
  devices = devices[:1] if kind == 'one_device' else devices[:num_devices]
  if kind == 'mirrored' or len(devices) > 1:
    return _mirrored(tuple(devices))
  return _one_device(devices[0])


@functools.cache
def _one_device(device: str) -> tf.distribute.OneDeviceStrategy:
  """Return the strategy for a device, the same object each time, so that runs of one process may share variables."""
  return tf.distribute.OneDeviceStrategy(device)


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
  """Return the strategy of these devices, the same object each time: a second one would reuse its collective keys."""
  return tf.distribute.MirroredStrategy(list(devices))


def _split_cpu(count: int) -> None:
  cpu = tf.config.list_physical_devices('CPU')[0]
  try:
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
  except RuntimeError as error:
    found = len(tf.config.list_logical_devices('CPU'))
    if found < count:
      raise UserError(f'strategy.logical_cpus = {count}: TensorFlow has started with {found} CPU device(s) already; '
                      'call strategy() before any TensorFlow op, in a fresh process') from error


def _multi_worker(found: Cluster, num_devices: int | None, communication: str,
                  timeout_minutes: float) -> tf.distribute.Strategy:
  from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
  from tensorflow.python.eager import context  # no public function sets these timeouts, an hour by default

  gpus = tf.config.list_physical_devices('GPU')
  if num_devices is not None and num_devices > max(len(gpus), 1):
    raise UserError(f'strategy.num_devices = {num_devices}, but this worker has {len(gpus)} GPU(s)')
  tf.config.set_visible_devices(gpus[:num_devices], 'GPU')
  leader = found.jobs[0][0]
  options = tf.distribute.experimental.CommunicationOptions(
    implementation=tf.distribute.experimental.CommunicationImplementation(communication.upper()))
  context.context().configure_coordination_service(
    'standalone', service_leader=f'/job:{leader}/task:0',
    cluster_register_timeout_in_ms=int(60000 * timeout_minutes), heartbeat_timeout_in_ms=1000 * _HEARTBEAT_SECONDS,
    coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name=name, num_tasks=n) for name, n in found.jobs])
  logging.info('worker %d of %d: waiting for all of %s, at most %g minutes', found.index, len(found.addresses),
               ', '.join(found.addresses), timeout_minutes)
  assemble(found.addresses, found.index, 60 * timeout_minutes)
  late = (f'error: worker {found.index} of {len(found.addresses)} could not join the others within {timeout_minutes:g} '
          'minutes (strategy.timeout_minutes): look at their logs, and restart all workers')
  try:
    # The server logs its start at every log level. It waits for a worker that has ended since, whatever its timeout.
    with signals.deadline(60 * timeout_minutes, late, WorkerLost.exit_code), console.held_stderr():
      result = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
  except (tf.errors.OpError, RuntimeError) as error:
    raise WorkerLost(f'worker {found.index} of {len(found.addresses)} could not join the others, restart all workers: '
                     f'{in_one_line(error, 300)}') from error
  result.timeout_seconds = 60 * timeout_minutes
  return result


def _tpu(address: str) -> tf.distribute.Strategy:
  if '://' in address:  # connecting to a missing TPU would never return
    raise UserError(f"strategy.tpu = '{address}' is another machine, where Python cannot read the images: run on the "
                    'TPU VM itself with --tpu=local')
  with needs_models("strategy.kind = 'tpu'"):
    from official.common import distribute_utils
  try:
    result = distribute_utils.get_distribution_strategy('tpu', tpu_address=address)
  except Exception as error:  # ValueError, OpError, RuntimeError or an error of the cloud libraries
    raise UserError(f"strategy.tpu = '{address}': no TPU found ({in_one_line(error, 200)}); run on a TPU VM with its "
                    'TensorFlow and --tpu=local, or check the name') from error
  return result


def num_hosts(strategy: tf.distribute.Strategy) -> int:
  """Return the number of hosts that run one program while Python runs on one of them: those of a TPU slice, else 1."""
  return strategy.extended.num_hosts if isinstance(strategy, tf.distribute.TPUStrategy) else 1


def join_workers(strategy: tf.distribute.Strategy, model_dir: str, create: bool,
                 settings: str) -> tuple[RunFolder, Workers]:
  """Connect the workers of a job; return the run folder and the index of this process.

  The chief alone writes to the run folder. From here on the other workers print warnings and errors only.

  settings: the configuration, one setting per line; it must be the same on all workers, as must be the versions of the
    package and of TensorFlow, and number and type of the devices.

  Raises:
    UserError: another job trains in the run folder; the configuration of a worker differs, or it
      does not see the chief's run folder; TF_CONFIG makes this process an evaluator, and it is to train.
  """
  if create and is_evaluator():
    raise UserError("TF_CONFIG says task.type = 'evaluator', which does not train: start `python -m rethink_tf."
                    f'evaluate --follow --model_dir={model_dir}` in its place, or unset TF_CONFIG')
  found = cluster() if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) else None
  if found is None:
    folder = _run_folder(model_dir, create)
    if create:
      writer_lock.refuse_if_held(folder)
    return folder, ALONE
  index, count = found.index, len(found.addresses)
  settings = f'--model_dir={model_dir}\n{software()}\n{replicas(strategy)}\n{settings}'
  if index == 0:
    folder = _run_folder(model_dir, create)
    token = uuid.uuid4().hex
    if create:
      writer_lock.refuse_if_held(folder)
    if create and tf.io.gfile.isdir(folder.join('gather')):
      tf.io.gfile.rmtree(folder.join('gather'))  # files of an earlier start of the job
    tf.io.gfile.makedirs(folder.join('gather'))
    with tf.io.gfile.GFile(folder.join('gather', token), 'w') as file:
      file.write(token)
    publish('settings', f'{token}\n{settings}')
    for other in range(1, count):
      problem = published(f'ready/{other}', strategy.timeout_seconds)
      if problem:
        raise UserError(f'worker {other}: {problem}')
    tf.io.gfile.remove(folder.join('gather', token))
  else:
    token, _, expected = published('settings', strategy.timeout_seconds).partition('\n')
    try:
      check_same_settings(expected, settings)
      folder = ReadOnlyFolder(model_dir, token)
    except UserError as error:
      publish(f'ready/{index}', error.line())
      raise
    publish(f'ready/{index}', '')
    logging.info('worker %d of %d: the chief prints progress and results', index, count)
    logging.set_verbosity(logging.WARNING)
    sys.stdout = open(os.devnull, 'w')
  return folder, Workers(index, count, token, strategy.timeout_seconds)


def replicas(strategy: tf.distribute.Strategy) -> str:
  """Return number and type of this worker's devices, of which TensorFlow takes every worker to have the same."""
  used = strategy.extended.worker_devices
  return f'{len(used)} device(s) of type {tf.DeviceSpec.from_string(used[0]).device_type}'


def _run_folder(model_dir: str, create: bool) -> RunFolder:
  folder = RunFolder(model_dir, create=create)
  if not create:
    files.refuse_links(folder.path)  # evaluations are written there too
  return folder


@contextlib.contextmanager
def report_lost_workers(workers: Workers) -> Iterator[None]:
  """Turn TensorFlow's error about a lost worker into one line, and stop waiting for results of other workers.

  Raises:
    WorkerLost: another worker has ended or does not answer.
  """
  try:
    yield
  except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError,
          tf.errors.InternalError, tf.errors.FailedPreconditionError) as error:
    workers.stop()
    if workers.count == 1 or 'ollective' not in error.message:
      raise
    reason = shortened(' '.join(error.message[error.message.find('Collective ops is aborted'):].split()), 200)
    raise WorkerLost('another worker has ended or cannot be reached: look at its log; the same command on all workers '
                     f'continues from the last checkpoint ({reason})') from error
  except BaseException:
    workers.stop()
    raise


def check_same_step(workers: Workers, step: int) -> None:
  """Check that this worker has restored the same checkpoint as the chief.

  Raises:
    UserError: it has restored another one.
  """
  if workers.count == 1:
    return
  if workers.chief:
    publish('step', str(step))
  elif int(published('step', workers.timeout)) != step:
    raise UserError(f'worker {workers.index} finds the checkpoint of step {step} in the run folder, the chief another '
                    'one: all workers must share one folder; run the same command on all of them again')


class ReadOnlyFolder(RunFolder):
  """The run folder on workers other than the chief, which read it and write nothing.

  token: name of a file that the chief has written to gather/ in its run folder.

  Raises:
    UserError: the folder is not the one of the chief.
  """

  def __init__(self, path: str, token: str):
    for _ in range(int(60 / _POLL_SECONDS)):  # network file systems cache the absence of a file for a while
      if tf.io.gfile.exists(os.path.join(os.path.expanduser(path), 'gather', token)):
        break
      time.sleep(_POLL_SECONDS)
    else:
      raise UserError(f'the run folder {path} is not the one that the chief writes to: set --model_dir to storage that '
                      'all workers share, gs://... or a network file system')
    super().__init__(path, create=False)

  def writer(self, name: str = '') -> tf.summary.SummaryWriter:
    return tf.summary.create_noop_writer()

  def attempt(self, name: str, action: Callable[[], Any]) -> bool:
    return True

  def write_text(self, name: str, text: str) -> None:
    pass

  def append_metrics(self, metrics: Mapping[str, Any]) -> None:
    pass

  def put_text(self, name: str, text: str) -> None:
    pass

  def make_folder(self, name: str) -> None:
    pass

  def save_provenance(self, argv: Sequence[str], operative_config: str, devices: Mapping[str, int] | None = None,
                      hardware: str | None = None) -> None:
    pass

  def flush(self) -> None:
    pass


def check_same_settings(expected: str, own: str) -> None:
  """Check that this worker's settings, one a line, are those of the chief (`expected`).

  Raises:
    UserError: they differ; it names what is only here and what is only on the chief.
  """
  if expected == own:
    return
  theirs, ours = (set(text.splitlines()) for text in (expected, own))
  different = [f'{", ".join(sorted(lines)[:3]) or "nothing"} {where}'
               for lines, where in ((ours - theirs, 'here'), (theirs - ours, 'on the chief'))]
  raise UserError(f'this worker has another configuration than the chief: {"; ".join(different)}: run the '
                  'same command on all workers')
