"""Keeps the libraries' own log lines off the terminal; warnings and errors stay."""

from __future__ import annotations

import contextlib
import logging
import os

import tensorflow as tf
from absl import logging as absl_logging


def hide_library_info() -> None:
  """Shows this package's information lines plainly, those of the libraries not at all."""
  absl_logging.set_verbosity(absl_logging.INFO)
  handler = absl_logging.get_absl_handler()
  handler.setFormatter(None)  # plain lines, without the prefix of a server log
  handler.addFilter(lambda record: record.levelno > logging.INFO or 'rethink_tf' in record.pathname)
  # One trace for each padded shape is meant, not a mistake to warn of.
  tf.get_logger().addFilter(lambda record: 'tf.function retracing' not in record.getMessage())


def compile_once() -> None:
  """Lets XLA compile for the first time, while the line it prints about that, whatever the log level, is hidden.

  Starts TensorFlow: call it after the devices are chosen.
  """
  with stderr_closed():
    tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(0.0))


@contextlib.contextmanager
def stderr_closed():
  """Sends what C++ code writes to the standard error nowhere."""
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nowhere, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)
