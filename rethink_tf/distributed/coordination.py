"""Messages between workers through TensorFlow's coordination service, and the agreement on a last step."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import tensorflow as tf
from absl import logging

from rethink_tf.distributed.workers import Workers
from rethink_tf.errors import UserError, WorkerLost, in_one_line

_EMPTY = '-'  # the service counts an empty value as missing
_WATCH_SECONDS = 60.0
_SAVE_SECONDS = 120.0


def publish(key: str, value: str) -> None:
  """Send a value to the other workers under a key.

  Raises:
    tf.errors.AlreadyExistsError: the key has a value already.
  """
  from tensorflow.python.eager import context  # there is no public function for it

  context.context().set_config_key_value(f'rethink_tf/{key}', value or _EMPTY)


def published(key: str, timeout_seconds: float) -> str:
  """Return the value that another worker publishes under a key, waiting for it if necessary.

  Raises:
    WorkerLost: no value within the timeout.
  """
  try:
    return _value(key, timeout_seconds)
  except tf.errors.OpError as error:
    late = isinstance(error, tf.errors.DeadlineExceededError)
    reason = f'not within {timeout_seconds / 60:g} minutes' if late else in_one_line(error, 200)
    raise WorkerLost(f'another worker does not answer ({key}): {reason}; look at its log and restart all workers'
                     ) from error


def _value(key: str, timeout_seconds: float) -> str:
  from tensorflow.python.eager import context

  value = context.context().get_config_key_value(f'rethink_tf/{key}', timeout_in_ms=int(1000 * timeout_seconds))
  return '' if value == _EMPTY else value


def check_same(workers: Workers, key: str, value: str, problem: Callable[[str], str]) -> None:
  """Compare a value of every worker with the chief's; all workers end if one differs.

  value: that of this worker. problem: describes how the chief's value differs from this worker's; '' if it does not.

  Raises:
    UserError: a worker differs.
    WorkerLost: another worker does not answer.
  """
  if workers.count == 1:
    return
  if workers.chief:
    publish(key, value)
    for other in range(1, workers.count):
      if found := published(f'{key}/{other}', workers.timeout):
        raise UserError(f'worker {other}: {found}')
    return
  found = problem(published(key, workers.timeout))
  publish(f'{key}/{workers.index}', found)
  if found:
    raise UserError(found)


class StopTogether:
  """Agreement on the step after which all workers end when one of them has received a signal.

  That worker proposes the step after the one it has finished, and begins no other before all workers have acknowledged
  the proposal; no worker can finish the proposed step without it. A thread listens for proposals, since a worker that
  waits for gradients cannot.

  Attributes:
    step: the last step, None while no signal has come.
    signum: the signal.
  """

  def __init__(self, workers: Workers):
    self.step: int | None = None
    self.signum: int | None = None
    self._workers = workers
    self._received = threading.Event()
    self._ended = False

  def watch(self) -> None:
    """Start the listening thread."""
    threading.Thread(target=self._listen, name='stop', daemon=True).start()

  def propose(self, signum: int, last_step: int) -> None:
    """Propose a last step, and wait until all workers know the step agreed on, which is the first proposal."""
    # Refused when another worker has proposed first, training is over, or the service has ended.
    with contextlib.suppress(tf.errors.OpError):
      publish('stop', f'{int(signum)} {last_step}')
    if not self._received.wait(_WATCH_SECONDS) or self.step is None:
      return
    for index in range(self._workers.count):
      try:
        published(f'stop/{index}', _WATCH_SECONDS)
      except WorkerLost as error:
        logging.warning('%s', error.line())

  def confirm_saved(self) -> None:
    """On the chief, report that the last checkpoint is written; on other workers, wait for this report.

    A launcher may end all workers as soon as one has ended.
    """
    try:
      if self._workers.chief:
        publish('stopped', str(self.step))
      else:
        _value('stopped', _SAVE_SECONDS)
    except tf.errors.OpError as error:  # the chief has ended or is stuck: this worker ends all the same
      logging.info('the chief has not confirmed its last checkpoint: %s', in_one_line(error))

  def end(self) -> None:
    """End the listening threads of all workers: training is over."""
    self._ended = True
    with contextlib.suppress(tf.errors.OpError):  # there is a proposal, or the service has ended
      publish('stop', '')

  def _listen(self) -> None:
    value = None
    while value is None and not self._ended:
      try:
        value = _value('stop', _WATCH_SECONDS)
      except tf.errors.DeadlineExceededError:
        continue
      except tf.errors.OpError:  # the service has ended
        break
    if value:
      signum, step = value.split()
      self.signum, self.step = int(signum), int(step)
      with contextlib.suppress(tf.errors.OpError):  # the proposing worker logs that the acknowledgement is missing
        publish(f'stop/{self._workers.index}', step)
    self._received.set()
