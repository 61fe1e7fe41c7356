"""The start of a command: flags and --help, errors in one line, exit codes."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import types
import warnings
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from rethink_tf.errors import Interrupted, UserError, WorkerLost, in_one_line, storage_error
from rethink_tf.process.output import lost_output, protect_output
from rethink_tf.process.signals import CLEANUP_SECONDS, EXIT_CODES, Watchdog, handled_signals
from rethink_tf.redaction import RedactingFilter, redact, redacted_tracebacks

_HOME = re.compile(r'\A(--?\w+=)(~.*)', re.DOTALL)
_HELP = ('-h', '-?', '-help', '--help', '--helpshort')  # of this command; absl's --helpfull also lists the libraries'

# What takes the place of flags of Detectron2, mmdetection, tf-models-official and ultralytics.
_OF_OTHER_TOOLS = {
  **dict.fromkeys(('run_dir', 'work_dir', 'project'), 'use --model_dir=...'),
  **dict.fromkeys(('config', 'config_file', 'cfg'), 'use --gin_file=...'),
  **dict.fromkeys(('data', 'data_root'), 'use --data_dir=...'),
  **dict.fromkeys(('opts', 'cfg_options', 'params_override'), "use --gin_param='NAME = value'"),
  **dict.fromkeys(('epochs', 'max_iter'), "use --gin_param='SCHEDULE = 2', (classifier: 'EpochSchedule.epochs = 90')"),
  **dict.fromkeys(('batch', 'batch_size'), "use --gin_param='BATCH_SIZE = 8'"),
  **dict.fromkeys(('lr', 'lr0'), "it scales with the batch; use --gin_param='BATCH_SIZE = 8'"),
  **dict.fromkeys(('imgsz', 'img_size'), "use --gin_param='Resize.short_side = (640,)'"),
  'seed': "use --gin_param='run.seed = 1'",
  'amp': """use --gin_param="run.precision = 'mixed_bfloat16'\"""",
}

def start(main: Callable[..., None], takes_arguments: bool = False,
          interrupted: str = 'stopped', result_is_printed: bool = False,
          cleanup_seconds: float | None = CLEANUP_SECONDS) -> None:
  """Parse the command line, call main, and turn errors into one line and an exit code (as_command).

  takes_arguments: main is called with the positional arguments. result_is_printed: standard output is the result, so
  that an error of writing it ends with exit code 1; other commands continue without their output. cleanup_seconds:
  after a signal, in which threads that read must have ended; None: unlimited.
  After a signal or the loss of a worker the process exits at once: Python would wait for the scoring thread, and
  TensorFlow for the worker.
  """
  def command(argv: list[str]) -> None:
    try:
      call, others = (functools.partial(main, argv[1:]), argv[:1]) if takes_arguments else (main, argv)
      as_command(call, others, interrupted, cleanup_seconds, result_is_printed)
    except SystemExit as end:
      if end.code in (*EXIT_CODES.values(), WorkerLost.exit_code):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)
      raise

  protect_output(report=not result_is_printed)
  # Of google.api_core, which TensorFlow imports, with Python 3.10.
  warnings.filterwarnings('ignore', 'You are using a .*Python version', FutureWarning)
  logging.get_absl_handler().addFilter(RedactingFilter())
  app.run(command, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  """Parse the flags, and return what is left; --help prints the flags of the command and exits with code 0.

  A wrong flag prints one line, as other errors do, and exits with code 1: absl prints two to four, and the parser's
  name. In --name=~/runs/a the home directory stands for ~, which a shell replaces at the beginning of a word only.
  """
  argv = [_HOME.sub(lambda found: found[1] + os.path.expanduser(found[2]), argument) for argument in argv]
  arguments = argv[1:argv.index('--')] if '--' in argv else argv[1:]
  if any(argument in _HELP for argument in arguments):
    app.usage(shorthelp=True, writeto_stdout=True)
    sys.exit(0)
  try:
    left = flags.FLAGS(argv)
    _refuse_empty(left[1:])
    return left
  except (flags.Error, UserError) as error:
    line = error.line() if isinstance(error, UserError) else _flag_error(error)
    print(f'error: {redact(line)}', file=sys.stderr)
    sys.exit(1)


def _flag_error(error: flags.Error) -> str:
  """Describe what is wrong with the flags, in one line, from absl's message."""
  missing = re.findall(r'Flag (--\w+) must have a value other than None', str(error))
  if missing:
    return f'give {" and ".join(missing)}; see --help'
  if isinstance(error, flags.UnrecognizedFlagError):
    return f'unknown flag --{error.flagname}{_instead(error)}'
  text = re.sub(r"\('Non-boolean argument to boolean flag', .*\)", 'use true or false', in_one_line(error))
  return f'{text}; see --help'


def _instead(error: flags.UnrecognizedFlagError) -> str:
  """What to write in place of an unknown flag."""
  cure = _OF_OTHER_TOOLS.get(error.flagname.replace('-', '_'), '')
  if cure and re.search(r'--(\w+)', cure)[1] in flags.FLAGS:
    return f': {cure}'
  absls = {flag.name for module, defined in flags.FLAGS.flags_by_module_dict().items() if module.startswith('absl.')
           for flag in defined}
  similar = [name for name in re.findall(r'\w+', str(error).partition('Did you mean:')[2]) if name not in absls]
  return f': did you mean --{" or --".join(similar)}?' if similar else '; see --help'


def _refuse_empty(arguments: Sequence[str]) -> None:
  """Check that no argument and no value of a flag is empty: --data_dir=$UNSET does not ask for its default.

  An empty binding (--gin_param=) binds nothing, as it says.

  Raises:
    UserError: one is empty.
  """
  for name in flags.FLAGS:
    flag = flags.FLAGS[name]
    values = flag.value if isinstance(flag.value, list) and flag.value else [flag.value]
    if flag.present and not name.endswith('_param') and any(value in ('', []) for value in values):
      raise UserError(f'--{name} is empty, as with a shell variable that is not set: give it a value, or leave the '
                      'flag out')
  if '' in arguments:
    raise UserError(f"argument {list(arguments).index('') + 1} is empty, as with a shell variable that is not set: "
                    'give it a value, or leave it out')


def check_path(path: str | None, message: str) -> None:
  """Check that a local path of the command line exists, before TensorFlow is imported, which takes seconds.

  Raises:
    UserError: '<path>: <message>'.
  """
  if path and '://' not in path and not os.path.exists(os.path.expanduser(path)):
    raise UserError(f'{path}: {message}')


@redacted_tracebacks()
def as_command(main: Callable[[], None], argv: Sequence[str], interrupted: str,
               cleanup_seconds: float | None = CLEANUP_SECONDS, result_is_printed: bool = False) -> None:
  """Call main, unless an argument is left over, and turn exceptions into a line and an exit code.

  A UserError prints one line and exits with its exit code (1; 69 for WorkerLost). Ctrl-C, SIGTERM and SIGHUP print
  `interrupted`, or the message of Interrupted, and exit with 130 or 75, also from a call into C that never returns. An
  error of storage may come from anywhere, and is one line too. Any other exception gives Python's traceback, redacted.
  """
  watchdog = Watchdog(interrupted, cleanup_seconds)

  def interrupt(signum: int, frame: types.FrameType | None) -> None:
    watchdog.reacted.set()
    raise Interrupted(signum)

  try:
    with handled_signals(interrupt, watchdog.watch):
      if argv[1:]:
        raise UserError(f'unexpected argument {argv[1]!r}: options are written --name=value; see --help')
      main()
      sys.stdout.flush()
      if result_is_printed and lost_output() is not None:
        raise UserError(f'standard output: cannot be written: {in_one_line(lost_output())}')
  except UserError as error:
    print(f'error: {redact(error.line())}', file=sys.stderr)
    sys.exit(error.exit_code)
  except KeyboardInterrupt as error:
    signum = getattr(error, 'signum', signal.SIGINT)
    print(getattr(error, 'message', None) or interrupted, file=sys.stderr)
    sys.exit(EXIT_CODES[signum])
  except Exception as error:
    if (found := storage_error(error)) is None:
      raise
    print(f'error: {redact(found.line())}', file=sys.stderr)
    sys.exit(found.exit_code)
  finally:
    watchdog.done.set()
