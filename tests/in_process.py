"""Commands called in the process of the tests: a Python with TensorFlow takes seconds to start."""

import contextlib
import io
import os
import runpy
import sys
import types

import gin
from absl import app, flags, logging


def call(command, *arguments, cwd=None):
  """`python -m rethink_tf.<command> <arguments>` without a process: returncode, stdout and stderr as text.

  What C++ code prints is not seen. The flags that the command defines, its configuration, its log filters and, of a run
  with run.deterministic, TensorFlow's determinism are taken back afterwards. Commands that train need
  strategy.kind = 'one_device': the tests share one MirroredStrategy.
  """
  app.define_help_flags()
  # Flags that other tests have defined, also in pytest's own process, which a command would define again.
  foreign = {name: flags.FLAGS[name] for name in set(flags.FLAGS)
             if not str(flags.FLAGS.find_module_defining_flag(name)).startswith('absl')}
  for name in foreign:
    delattr(flags.FLAGS, name)
  known = set(flags.FLAGS)
  handler = logging.get_absl_handler()
  filters, formatter, verbosity = list(handler.filters), handler.formatter, logging.get_verbosity()
  argv, folder, hooks = sys.argv, os.getcwd(), sys.excepthook
  output, errors, code = io.StringIO(), io.StringIO(), 0
  stream = handler.python_handler.stream
  try:
    sys.argv = [f'rethink_tf.{command}', *map(str, arguments)]
    if cwd is not None:
      os.chdir(cwd)
    flags.FLAGS.unparse_flags()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
      handler.python_handler.stream = errors
      runpy.run_module(f'rethink_tf.{command}', run_name='__main__', alter_sys=True)
  except SystemExit as end:
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
  finally:
    sys.argv, sys.excepthook = argv, hooks
    os.chdir(folder)
    handler.python_handler.stream = stream
    handler.filters[:] = filters
    handler.setFormatter(formatter)
    logging.set_verbosity(verbosity)
    app.EXCEPTION_HANDLERS.clear()
    for name in set(flags.FLAGS) - known:
      delattr(flags.FLAGS, name)
    for name, flag in foreign.items():
      flags.FLAGS[name] = flag
    flags.FLAGS.mark_as_parsed()
    gin.clear_config()
    if 'tensorflow' in sys.modules:  # deterministic operations have no XLA kernels, and the public API has no way back
      sys.modules['tensorflow.python.framework.config'].disable_op_determinism()
  return types.SimpleNamespace(returncode=code, stdout=output.getvalue(), stderr=errors.getvalue())
