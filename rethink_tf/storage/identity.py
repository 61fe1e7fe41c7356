"""The identity of a run: classes, data and settings, recorded in its folder and compared before anything is written.

identity.json
  run         a random name, which its checkpoints bear too; `ancestors`: of the runs that it was copied from
  version     of the package, at the latest start
  categories  in the order of classes, as in categories.json
  data        split -> summary (data/digest.py)
  settings    binding -> value, as in config.gin
  history     for each start that changed something: when, at which step, what, and the earlier configuration's file

Runs of versions before 0.2 have none: their classes are those of categories.json, their settings those of config.gin.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

import rethink_tf
from rethink_tf.errors import UserError, in_one_line, plain
from rethink_tf.redaction import redact
from rethink_tf.storage import retries
from rethink_tf.storage import settings as bindings
from rethink_tf.storage.files import open_regular
from rethink_tf.storage.run_folder import RunFolder

FILE = 'identity.json'
CATEGORIES = 'categories.json'
CONFIG = 'config.gin'
HISTORY = 'earlier_configs'  # folder of every configuration that config.gin has had before
_MAX_BYTES = 64 << 20

Categories = list[dict[str, Any]]


class Identity(NamedTuple):
  """The identity of a run: name, classes, data and settings."""

  run: str  # '': of a run of an earlier version
  categories: Categories | None  # in the order of classes; None: not known
  settings: dict[str, Any]
  data: dict[str, dict[str, Any]] = {}
  version: str = ''
  ancestors: tuple[str, ...] = ()
  history: tuple[dict[str, Any], ...] = ()

  @property
  def recorded(self) -> bool:
    """Whether it was read from identity.json."""
    return bool(self.run)

  def owns(self, run: str | None) -> bool:
    """Whether a checkpoint with the given run name is of this run; checkpoints of earlier versions have no name."""
    return not (self.run and run) or run in (self.run, *self.ancestors)


def of(categories: Categories, operative_config: str, data: Mapping[str, dict[str, Any]]) -> Identity:
  """Return the identity of a new run."""
  return Identity(uuid.uuid4().hex, list(categories), bindings.parse(redact(operative_config)), dict(data),
                  rethink_tf.__version__)


def read(folder: RunFolder) -> Identity | None:
  """Return the identity of the run in a folder, None if there is no run; for earlier versions from its other files.

  Raises:
    UserError: identity.json is damaged, or the storage refuses it.
  """
  text = _text(folder, FILE)
  if text is not None:
    return _parse(text, folder.join(FILE))
  config, categories = _text(folder, CONFIG), _text(folder, CATEGORIES)
  if config is None and categories is None:
    return None
  return Identity('', _categories(categories), bindings.parse(config or ''))


def check(was: Identity, now: Identity, folder: RunFolder, step: int, allow_changes: bool) -> list[bindings.Change]:
  """Compare the settings with which a run would continue to its own; log a table of changes and return them.

  Raises:
    UserError: a setting changes the meaning of a step, and `allow_changes` is not given.
  """
  found = bindings.changes(was.settings, now.settings)
  meaning = [change for change in found if change.kind == bindings.MEANING]
  if found:
    log = logging.warning if meaning or any(change.kind == bindings.LENGTH for change in found) else logging.info
    log('%s: settings that are not those of the run so far, which stands at step %d:\n%s', folder.path, step,
        bindings.table(found))
  if meaning and was.recorded and not allow_changes:
    raise UserError(
      f'{folder.path}: its checkpoint of step {step} was trained with other settings: {bindings.listed(meaning)}: '
      f'start with {folder.join(CONFIG)}, choose another --model_dir, or continue with the new settings by '
      '--allow_changes')
  if was.version and was.version != now.version:
    logging.info('%s: was trained with version %r of the package, this is %r', folder.path, was.version, now.version)
  return found


def check_network(was: Identity, operative_config: str, folder: RunFolder, allow_changes: bool) -> None:
  """Compare the network that is about to be evaluated with the one that was trained.

  Raises:
    UserError: a setting on which its outputs depend differs, and `allow_changes` is not given.
  """
  found = [change for change in bindings.changes(was.settings, bindings.parse(redact(operative_config)))
           if bindings.of_the_network(change.name)]
  if not found:
    return
  logging.warning('%s: the network is not the one that was trained:\n%s', folder.path, bindings.table(found))
  if was.recorded and not allow_changes:
    raise UserError(f'{folder.path}: its checkpoints were trained with another network: {bindings.listed(found)}: '
                    'leave out --gin_file and --gin_param, which config.gin in the run folder replaces, or evaluate it '
                    'all the same with --allow_changes')


def write(folder: RunFolder, was: Identity | None, now: Identity, step: int,
          changes: Sequence[bindings.Change] = (), data_changes: Sequence[str] = (), config: str = '') -> Identity:
  """Record the identity of a run that begins (was: None) or continues; return it.

  config: the configuration of this start, which is about to replace config.gin; if it differs, the present one is kept
  in
  earlier_configs/.
  """
  kept = _keep_config(folder, redact(config))
  history = list(was.history) if was is not None else []
  if was is not None and (changes or data_changes or was.version != now.version):
    history.append({
      'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'), 'step': step,
      'version': [was.version or None, now.version], 'data': list(data_changes), 'earlier_config': kept,
      'settings': [{'name': change.name, 'was': change.was, 'now': change.now, 'kind': change.kind}
                   for change in changes]})
  if was is not None:
    now = now._replace(run=was.run or now.run, ancestors=was.ancestors or now.ancestors,
                       categories=was.categories or now.categories, history=tuple(history))
  folder.write_text(FILE, json.dumps(now._asdict(), indent=1) + '\n')
  if _categories(_text(folder, CATEGORIES)) != now.categories:  # also one that is damaged: predict and export read it
    folder.write_text(CATEGORIES, json.dumps(now.categories))
  return now


def fork(folder: RunFolder) -> None:
  """Give a copied run folder a name of its own; it keeps the checkpoints that it was copied with."""
  was = read(folder)
  if was is not None and was.recorded:
    now = was._replace(run=uuid.uuid4().hex, ancestors=(*was.ancestors, was.run))
    folder.write_text(FILE, json.dumps(now._asdict(), indent=1) + '\n')


def check_owner(identity: Identity | None, state: Mapping[str, Any], checkpoint: str) -> None:
  """Check that a checkpoint bears the name of the run in whose folder it lies.

  Raises:
    UserError: it is that of another run.
  """
  run = state.get('run')
  if identity is not None and isinstance(run, str) and not identity.owns(run):
    raise UserError(f'{checkpoint}: is a checkpoint of another run (its name is {plain(run[:8])}, that of this folder '
                    f'{plain(identity.run[:8])}): remove it, start from it with --weights, or take it as it is with '
                    '--allow_changes')


def _keep_config(folder: RunFolder, config: str) -> str | None:
  """Copy config.gin, unless it is `config`, to earlier_configs/; return the name of the copy, None without one."""
  text = _text(folder, CONFIG)
  if text in (None, config):
    return None
  names = sorted(tf.io.gfile.listdir(folder.join(HISTORY))) if tf.io.gfile.isdir(folder.join(HISTORY)) else []
  for name in names:
    if _text(folder, f'{HISTORY}/{name}') == text:
      return f'{HISTORY}/{name}'
  name = f'{HISTORY}/config-{len(names):03d}.gin'
  folder.make_folder(HISTORY)
  folder.write_text(name, text)
  return name


def _text(folder: RunFolder, name: str) -> str | None:
  """Return the text of a file in a run folder, None if there is none."""
  path = folder.join(name)

  def read_file() -> str:
    with open_regular(path) as file:
      return file.read().decode('utf-8', 'replace') if file.size() <= _MAX_BYTES else ''

  try:
    return retries.call(read_file, path)
  except tf.errors.NotFoundError:
    return None
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{path}: cannot be read: {in_one_line(error)}') from error


def _parse(text: str, path: str) -> Identity:
  try:
    content = json.loads(text)
    identity = Identity(**{name: content[name] for name in Identity._fields if name in content})
    identity = identity._replace(ancestors=tuple(identity.ancestors), history=tuple(identity.history))
    sound = isinstance(identity.run, str) and identity.run and _are_categories(identity.categories) and \
        isinstance(identity.settings, dict) and isinstance(identity.version, str) and \
        isinstance(identity.data, dict) and all(isinstance(split, dict) for split in identity.data.values())
  except (ValueError, TypeError, RecursionError):
    sound = False
  if not sound:
    raise UserError(f'{path}: is damaged: restore it, or remove it: config.gin and categories.json then take its place')
  return identity


def _categories(text: str | None) -> Categories | None:
  try:
    found = json.loads(text or 'null')
  except (ValueError, RecursionError):
    return None
  return found if found and _are_categories(found) else None


def _are_categories(found: Any) -> bool:
  return isinstance(found, list) and all(
    isinstance(one, dict) and isinstance(one.get('name'), str) and isinstance(one.get('keypoints', []), list)
    for one in found)

