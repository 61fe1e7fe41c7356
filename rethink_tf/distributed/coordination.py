"""What workers tell one another beside gradients, by the service through which TensorFlow coordinates them."""

from __future__ import annotations

import contextlib
import threading

import tensorflow as tf
from absl import logging

from rethink_tf.distributed.workers import Workers
from rethink_tf.errors import WorkerLost, in_one_line

_NOTHING = '-'  # an empty value counts as none
_WATCH_SECONDS = 60.0
_SAVE_SECONDS = 120.0


def publish(key: str, value: str) -> None:
  """Tells the other workers.

  Raises:
    tf.errors.AlreadyExistsError: the key has a value.
  """
  from tensorflow.python.eager import context  # no public function does it

  context.context().set_config_key_value(f'rethink_tf/{key}', value or _NOTHING)


def published(key: str, timeout_seconds: float) -> str:
  """What another worker has published, or will within the time.

  Raises:
    WorkerLost: it has not.
  """
  try:
    return _value(key, timeout_seconds)
  except tf.errors.OpError as error:
    raise WorkerLost(f'another worker does not answer ({key}): {in_one_line(error)[:200]}; look at its log and start '
                     'all of them again') from error


def _value(key: str, timeout_seconds: float) -> str:
  from tensorflow.python.eager import context

  value = context.context().get_config_key_value(f'rethink_tf/{key}', timeout_in_ms=int(1000 * timeout_seconds))
  return '' if value == _NOTHING else value


class StopTogether:
  """Agrees on the step after which all workers end when one of them has received a signal.

  Whoever has received it names the step after the one that it has finished, and begins no other before all have heard
  of it: nobody can finish that step without it. A thread hears, since a worker that waits for gradients cannot.

  Attributes:
    step: the last one, None as long as no signal has come.
    signum: the signal.
  """

  def __init__(self, workers: Workers):
    self.step: int | None = None
    self.signum: int | None = None
    self._workers = workers
    self._heard = threading.Event()
    self._ended = False

  def watch(self) -> None:
    """Starts to listen."""
    threading.Thread(target=self._listen, name='stop', daemon=True).start()

  def ask(self, signum: int, last_step: int) -> None:
    """Proposes a last step and comes back when all know the one that holds; the first proposal does."""
    # Refused where another worker was a moment earlier, training is over, or the service has ended.
    with contextlib.suppress(tf.errors.OpError):
      publish('stop', f'{int(signum)} {last_step}')
    if not self._heard.wait(_WATCH_SECONDS) or self.step is None:
      return
    for index in range(self._workers.count):
      try:
        published(f'stop/{index}', _WATCH_SECONDS)
      except WorkerLost as error:
        logging.warning('%s', error.line())

  def saved(self) -> None:
    """Comes back when the chief's checkpoint of the last step is written: a launcher may end all when one has ended."""
    try:
      if self._workers.chief:
        publish('stopped', str(self.step))
      else:
        _value('stopped', _SAVE_SECONDS)
    except tf.errors.OpError as error:  # the chief has ended already, or cannot: this worker ends all the same
      logging.info('no word from the chief before the end: %s', in_one_line(error))

  def end(self) -> None:
    """Training is over: nobody needs to listen any more."""
    self._ended = True
    with contextlib.suppress(tf.errors.OpError):  # it has a value, or the service has ended
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
      with contextlib.suppress(tf.errors.OpError):  # whoever asks then waits in vain, and says so
        publish(f'stop/{self._workers.index}', step)
    self._heard.set()
