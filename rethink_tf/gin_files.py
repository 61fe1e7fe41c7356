"""Finding, reading and checking gin configurations: every error is one line that names the file and the fix.

gin itself silently accepts three errors that are rejected here: a misspelt macro, a misspelt scope, and an include
hidden by a folder of the same name in the working directory.

A configuration counts as data, even that of a run of unknown origin: it can only name parts that this package
registers.
A file may import only this package; other modules are imported by a binding on the command line.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.resources
import inspect
import os
import pathlib
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config_parser

from rethink_tf.errors import UserError, in_one_line
from rethink_tf.process import bindings, gin_errors, gin_statements, unused

_SCOPES = {'train', 'eval'}  # what a misspelt one may mean; a reference (@scope/Part()) enters them
_PARAM = '--gin_param'
_MAX_FILES = 1000  # with repetitions
_MAX_DEPTH, _MAX_VALUES = 50, 10_000  # of a macro that refers to others
_LITERALS = (bool, int, float, complex, str, bytes, dict)  # of Python, that gin reads, besides None and sequences
_MAX_BYTES = 1 << 20  # of a file; the largest shipped one has a few thousand


def parse(gin_files: Sequence[str], gin_params: Sequence[str] = ()) -> unused.Usage:
  """Replace gin's configuration by that of the files, then the bindings, and lock it.

  Returns the parts in use, and remarks about files and bindings that have no effect (process/unused.py).

  Files and their includes are looked up in the working directory first, then among the configurations shipped with the
  package. Local paths and gs://. A binding 'import my_parts' registers the user's own parts before the files are read.

  Raises:
    UserError: a file is not found; a syntax error; an unknown configurable, parameter, macro or scope; an unused
      macro; a missing required value; an import in a file that no binding allows.
  """
  try:
    return _parse(gin_files, gin_params)
  except UserError as error:  # text quoted from a file may contain terminal control characters
    raise UserError(''.join(letter if letter.isprintable() else '?' for letter in str(error))) from error


def _parse(gin_files: Sequence[str], gin_params: Sequence[str]) -> unused.Usage:
  gin.clear_config()
  reader = _Reader()
  imports = [binding for binding in gin_params if re.fullmatch(r'\s*(import|from)\s.*', binding)]
  for binding in imports:
    reader.read_text(_PARAM, binding)
  for name in gin_files:
    reader.source = name
    reader.read_file(name)
  for binding in gin_params:
    if binding not in imports:
      reader.source = _PARAM
      reader.read_text(_PARAM, binding)
  reader.check_macros()
  reader.check_names()
  bindings.check_scopes(reader.bindings)
  bindings.check_hidden(reader.bindings)
  bindings.check_types({'/'.join(filter(None, key)): values for key, values in gin.config._CONFIG.items()
                        if not key[1].endswith(('gin.macro', 'gin.constant'))}, gin_errors.signature, _literal,
                       {name.rpartition('.')[2] for name, _ in gin.config._REGISTRY.items()}.__contains__)
  with _explained('configuration'):
    gin.finalize()
  return unused.usage(reader.bindings, list(dict.fromkeys(gin_files)), shipped_root() / 'gin_configs')


def operative_config() -> str:
  """Return the values in use as a gin file that parses back to the same run; complete once the parts are built."""
  return gin.operative_config_str()


def text() -> str:
  """Return all bindings as a gin file, whether or not they are used."""
  return gin.config_str()


def clear() -> None:
  """Remove all bindings."""
  gin.clear_config()


def bound(parameter: str) -> Any:
  """Return the value bound to 'configurable.parameter', None if there is none."""
  try:
    return gin.query_parameter(parameter)
  except ValueError:
    return None


def without_effect(function: Callable[..., Any], passed: Mapping[str, Mapping[str, str]]) -> None:
  """Refuse bindings of parameters that a function passes to its parts itself; gin would silently ignore them.

  passed: argument of the function -> parameter of the part -> what to bind instead, for the message.

  Raises:
    UserError: there is such a binding.
  """
  for name, parameters in passed.items():
    part = bound(f'{function.__name__}.{name}')
    part = part.configurable.name if isinstance(part, gin.config.ConfigurableReference) else None
    for (scope, selector), values in gin.config._CONFIG.items():
      for parameter in values.keys() & parameters.keys() if selector.rpartition('.')[2] == part else ():
        whole = '/'.join(filter(None, (scope, f'{part}.{parameter}')))
        raise UserError(f'{whole} has no effect, since {function.__name__} passes its own: {parameters[parameter]}')


def argument(function: Callable[..., Any], name: str) -> Any:
  """Return the argument that gin would pass: the bound value with resolved references, or the default."""
  bound_value = bound(f'{function.__name__}.{name}')
  if bound_value is None:
    return inspect.signature(function).parameters[name].default
  return copy.deepcopy(bound_value)  # resolves references, as gin does


def rebind(values: Mapping[str, Any]) -> None:
  """Bind settings ('eval/coco.num_images') of a configuration that has been read to other values."""
  with gin.unlock_config():
    for name, value in values.items():
      gin.bind_parameter(name, value)


def effective(names: Iterable[str]) -> dict[str, Any]:
  """Return the values of settings ('train/coco.fraction'), bound or the defaults of signatures, as literals.

  References are strings ('@group_norm'). A setting of nothing that is registered, or whose default is not a literal, is
  left out.
  """
  found = {}
  for name in names:
    owner, _, parameter = name.split('/')[-1].rpartition('.')
    scopes = name.split('/')[:-1]
    value = inspect.Parameter.empty
    for i in range(len(scopes) + 1):  # the innermost scope first
      with contextlib.suppress(ValueError):
        value = gin.query_parameter('/'.join([*scopes[i:], f'{owner}.{parameter}']))
        break
    else:
      value = default(f'{owner}.{parameter}')
    value = _literal(value)
    if value is not inspect.Parameter.empty:
      found[name] = value
  return found


def default(name: str) -> Any:
  """Return the default of 'configurable.parameter' in its signature; Parameter.empty without one."""
  owner, _, parameter = name.rpartition('.')
  with contextlib.suppress(AttributeError, KeyError, ValueError):
    return inspect.signature(gin.config._REGISTRY.get_match(owner).wrapped).parameters[parameter].default
  return inspect.Parameter.empty


def _literal(value: Any) -> Any:
  """Return a bound value with macros resolved and references as strings; Parameter.empty for what is not a literal."""
  if isinstance(value, gin.config.ConfigurableReference):
    if value.configurable.name == 'macro':
      return _literal(bound(f'{value.scoped_selector.rpartition("/")[0]}/macro.value'))
    return repr(value)
  if isinstance(value, (list, tuple)):
    items = [_literal(item) for item in value]
    return inspect.Parameter.empty if inspect.Parameter.empty in items else items
  return value if value is None or isinstance(value, _LITERALS) else inspect.Parameter.empty


def default_run_folder(gin_files: Sequence[str]) -> str | None:
  """Return runs/<name of the first file>, relative to the working directory; None without files."""
  return f'runs/{pathlib.PurePosixPath(gin_files[0]).stem}' if gin_files else None


def saved_config(model_dir: str) -> str:
  """Return the path of the gin file in a run folder (RunFolder.save_provenance).

  Raises:
    UserError: it does not exist.
  """
  path = f'{model_dir.rstrip("/")}/config.gin'
  if not _exists(path):
    raise UserError(f'no config.gin in {model_dir}: check --model_dir, or name the configuration with --gin_file')
  return path


def shipped_root() -> pathlib.Path:
  """Return the folder that contains gin_configs/: the package if installed, its parent in a checkout."""
  package = pathlib.Path(str(importlib.resources.files('rethink_tf')))
  return package if (package / 'gin_configs').is_dir() else package.parent


class _Reader:
  """Reads files with their includes, and records where macros and scopes are set and used."""

  def __init__(self):
    self._stack: list[str] = []  # files being read, the outermost first
    self._where = ''
    self._macros_set: dict[str, str] = {}  # name -> file and line
    self._macros_used: dict[str, str] = {}
    self._scopes_set: dict[str, str] = {}
    self._allowed_imports: set[str] = set()
    self._scopes_used = set(_SCOPES)
    self._uses: dict[str, Sequence[str]] = {}  # macro -> macros in its value
    self.bindings: list[bindings.Binding] = []
    self.source = _PARAM  # of what is read now: the file that was named, not its include
    self._files = 0

  def read_file(self, name: str) -> None:
    path = _find(name, self._stack)
    if path in self._stack:
      raise UserError(f'{self._stack[-1]}: include "{name}" is circular')
    self._files += 1
    if self._files > _MAX_FILES:
      raise UserError(f'{name}: over {_MAX_FILES} includes')
    with _explained(name):
      text = _read(path, name)
    self._stack.append(path)
    self.read_text(name, text)
    self._stack.pop()

  def read_text(self, name: str, text: str) -> None:
    """Parse the text between includes piece by piece; includes are looked up here, not by gin."""
    with _explained(name):
      includes, own = self._record(name, text)
    lines = text.splitlines(keepends=True)
    start = 0
    for line, included in [*includes, (len(lines) + 1, None)]:
      self.bindings += [binding for at, binding in own if start < at < line]  # between those of the includes
      piece = gin_statements.Text('\n' * start + ''.join(lines[start:line - 1]), name)  # keeps the line numbers
      with _explained(name):
        gin.parse_config(piece)
      if included is not None:
        self.read_file(included)
      start = line

  def _record(self, name: str, text: str) -> tuple[list[tuple[int, str]], list[tuple[int, bindings.Binding]]]:
    """Record the macros and scopes of a text; return its includes, as (line, file), and its bindings, with lines."""
    includes, own = [], []
    for statement, macros, references in gin_statements.statements(name, text):
      where = name if name == _PARAM else f'{name}:{statement.location.line_num}'
      self._macros_used.update({macro: name for macro in macros if macro not in self._macros_used})
      self._scopes_used.update(scope for reference in references for scope in reference.split('/')[:-1])
      if isinstance(statement, config_parser.IncludeStatement):
        includes.append((statement.location.line_num, statement.filename))
      elif isinstance(statement, config_parser.ImportStatement):
        self._check_import(statement.module, where)
      elif isinstance(statement, config_parser.BindingStatement) and not statement.arg_name:
        macro = '/'.join(filter(None, [statement.scope, statement.selector]))
        self._macros_set.setdefault(macro, where)
        self._uses[macro] = macros
      elif isinstance(statement, (config_parser.BindingStatement, config_parser.BlockDeclaration)) and statement.scope:
        for scope in statement.scope.split('/'):
          self._scopes_set.setdefault(scope, where)
      if isinstance(statement, config_parser.BindingStatement):
        of_part = bool(statement.arg_name)  # or of a macro
        own.append((statement.location.line_num, bindings.Binding(
          where, tuple(statement.scope.split('/')) if of_part and statement.scope else (),
          statement.selector.rpartition('.')[2] if of_part else f'%{statement.selector}', statement.arg_name or '',
          (*references, *(f'%{macro}' for macro in macros)), self.source)))
    return includes, own

  def _check_import(self, module: str, where: str) -> None:
    if module.startswith('__gin__'):
      raise UserError(f'{where}: dynamic registration would let a file call any function: name parts of rethink_tf')
    if where == _PARAM:
      self._allowed_imports.add(module)
    elif module.split('.')[0] != 'rethink_tf' and module not in self._allowed_imports:
      raise UserError(f"{where}: imports {module}, which would run it: if you trust it, add {_PARAM}='import {module}' "
                      '(from Python: gin_params)')

  def check_macros(self) -> None:
    """Raise a UserError for a macro whose value would be huge: twenty lines can double one twenty times."""
    found: dict[str, tuple[int, int]] = {}

    def measure(name: str, outside: int) -> tuple[int, int]:
      """Return the number of macros in the value of one, and how deep they are nested."""
      if name not in found:
        inner = [measure(used, outside + 1) for used in self._uses.get(name, ()) if outside <= _MAX_DEPTH]
        found[name] = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
      size, depth = found[name]
      if outside + depth > _MAX_DEPTH:
        raise UserError(f'{self._macros_set.get(name, name)}: macros are nested over {_MAX_DEPTH} deep: write '
                        'the values themselves')
      if size > _MAX_VALUES:
        raise UserError(f'{self._macros_set[name]}: the value of {name} refers to over {_MAX_VALUES:,} others: '
                        'write the values themselves')
      return size, depth
    for name in self._uses:
      measure(name, 0)

  def check_names(self) -> None:
    """Raise a UserError for a macro or scope that is only set or only used."""
    used = {name: where for name, where in self._macros_used.items() if '.' not in name}  # %gin.REQUIRED is not a macro
    for name, where in self._macros_set.items():
      if name not in used:
        raise UserError(f'{where}: {name} is set, but no binding uses it{gin_errors.suggestion(name, used)}')
    for name, where in used.items():
      if name not in self._macros_set:
        raise UserError(f'{where}: %{name} is used, but nothing sets it{gin_errors.suggestion(name, self._macros_set)}')
    for name, where in self._scopes_set.items():
      if name not in self._scopes_used:
        raise UserError(f'{where}: nothing enters the scope {name}/{gin_errors.suggestion(name, self._scopes_used)}')


def _find(name: str, stack: Sequence[str]) -> str:
  """Return the path of a file. stack: the files that include it, the outermost first."""
  remote = '://' in name
  candidates = [name] if remote or pathlib.Path(name).is_absolute() else [name, str(shipped_root() / name)]
  for path in candidates:
    with _explained(name):
      if not remote and os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        raise UserError(f'{name}: not a regular file')  # reading a FIFO or a device may never end
      if _exists(path):
        return path
  shipped = [path.relative_to(shipped_root()).as_posix()
             for path in sorted((shipped_root() / 'gin_configs').glob('**/*.gin'))]
  searched = '' if len(candidates) == 1 else f' in {pathlib.Path.cwd()} or {shipped_root()}'
  included = f', included by {stack[-1]}' if stack else ''
  raise UserError(f'no gin file {name}{searched}{included}{gin_errors.suggestion(name, shipped)}')


def find(names: Sequence[str], required: bool = False) -> None:
  """Check that gin files exist; for local files it does not import TensorFlow, unlike `parse`.

  Raises:
    UserError: one does not, or there is none though it is required.
  """
  if required and not names:
    raise UserError('no configuration: give --gin_file=gin_configs/demo.gin or another file of gin_configs/')
  for name in names:
    if '://' not in name:
      _find(name, [])


def _exists(path: str) -> bool:
  """Whether a file exists, local or gs://; TensorFlow, which takes seconds to import, is only needed for gs://."""
  if '://' not in path:
    return os.path.isfile(path)
  with _storage_errors() as gfile:
    return gfile.exists(path) and not gfile.isdir(path)


def _read(path: str, name: str) -> str:
  """Return the text of a file, local or gs://. name: of the file in messages."""
  if '://' in path:
    with _storage_errors() as gfile, gfile.GFile(path, 'rb') as file:
      size, data = file.size(), file.read(_MAX_BYTES)
  else:
    with open(path, 'rb') as file:
      size, data = os.fstat(file.fileno()).st_size, file.read(_MAX_BYTES)
  if size > _MAX_BYTES:
    raise UserError(f'{name}: {size:,} bytes are too many for a configuration')
  try:
    return data.decode('utf-8-sig').replace('\r\n', '\n').replace('\r', '\n')  # as in text files of Windows
  except UnicodeDecodeError as error:
    raise UserError(f'{name}: not a text file in UTF-8, as which it should be saved: {in_one_line(error)}') from error


@contextlib.contextmanager
def _storage_errors() -> Iterator[Any]:
  """Yield tf.io.gfile; raise TensorFlow's errors as OSError."""
  import tensorflow as tf

  try:
    yield tf.io.gfile
  except tf.errors.OpError as error:
    raise OSError(error.message) from error


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
  """Turn gin's errors about the file `name` into a UserError of one line."""
  try:
    yield
  except UserError:
    raise
  except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, SyntaxError, ImportError, OSError,
          tokenize.TokenError) as error:
    raise UserError(f'{name}{gin_errors.line_of(error, name, _PARAM)}: {gin_errors.reason(error)}') from error
