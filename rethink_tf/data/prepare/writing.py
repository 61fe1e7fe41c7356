"""The prepared folder: images as links or copies, COCO json and a manifest, moved into place when all is written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import shutil
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from rethink_tf.errors import UserError, in_one_line

MANIFEST = 'prepared.json'
_MAX_MANIFEST = 16 << 20


class Spool:
  """A temporary file of JSON values, one a line, so that the annotations of a large data set need no memory."""

  def __init__(self, path: str) -> None:
    self._file = open(path, 'w+b')  # closed by `close`
    self._path = path

  def add(self, content: Any) -> tuple[int, int]:
    """Append a value; return its offset and length."""
    data = json.dumps(content).encode()
    offset = self._file.seek(0, os.SEEK_END)
    self._file.write(data)
    return offset, len(data)

  def get(self, place: tuple[int, int]) -> Any:
    """Return a value by its offset and length."""
    self._file.seek(place[0])
    return json.loads(self._file.read(place[1]))

  def close(self) -> None:
    """Delete the file."""
    self._file.close()
    os.remove(self._path)


class OutputFolder:
  """The output folder, which appears, complete, when `finish` is called.

  Attributes:
    path: the folder. work: the temporary folder in which it is built.
  """

  def __init__(self, path: str, source: str, arguments: dict[str, Any]) -> None:
    """Check that the folder may be written; arguments: by which it is known that it is the same result.

    Raises:
      UserError: it is in the source or around it, holds something else, or the result of other arguments.
    """
    if '://' in path:
      raise UserError(f'{path}: --output_dir should be a local folder; copy it to a bucket afterwards')
    self.path = os.path.abspath(os.path.expanduser(path)).rstrip('/')
    self._arguments = arguments
    own, other = os.path.realpath(self.path), os.path.realpath(source)
    if os.path.commonpath([own, other]) in (own, other):
      raise UserError(f'{path}: --output_dir should be neither in {source} nor around it')
    self._replaces = self._check(path)
    parent, name = os.path.split(self.path)
    self._temporary = os.path.join(parent, f'.{name}.{socket.gethostname()}-{os.getpid()}.partial')
    self.work = os.path.join(self._temporary, name)

  @contextlib.contextmanager
  def writing(self) -> Iterator[None]:
    """Create the temporary folder; it is removed at the end of the context, whatever happens.

    Raises:
      UserError: the storage refuses it.
    """
    try:
      self._remove_abandoned()
      os.makedirs(os.path.join(self.work, 'annotations'))
      yield
    except OSError as error:
      raise UserError(f'{self.path}: cannot be written: {in_one_line(error)}; choose another --output_dir, or free '
                      'space') from error
    finally:
      shutil.rmtree(self._temporary, ignore_errors=True)

  def spool(self) -> Spool:
    """Return a spool beside the result."""
    return Spool(os.path.join(self._temporary, 'spool'))

  def scratch(self, name: str) -> str:
    """Return the path of a file beside the result, which is removed with it."""
    return os.path.join(self._temporary, name)

  def write_annotations(self, split: str, images: Iterable[dict[str, Any]], annotations: Iterable[dict[str, Any]],
                        categories: list[dict[str, Any]]) -> None:
    """Write a COCO json, one image or annotation a line."""
    with open(os.path.join(self.work, 'annotations', f'instances_{split}.json'), 'w', encoding='utf-8') as file:
      file.write('{"images": [')
      for name, entries in (('"annotations": [', images), ('"categories": [', annotations)):
        for i, entry in enumerate(entries):
          file.write((',\n' if i else '\n') + json.dumps(entry))
        file.write(f'],\n{name}')
      file.write(',\n'.join(map(json.dumps, categories)) + ']}\n')

  def place_image(self, source: str, split: str, name: str, copy: bool) -> str:
    """Put an image below the folder of its split; return 'hard link', 'symbolic link' or 'copy'."""
    target = os.path.join(self.work, split, name)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not copy:
      real = os.path.realpath(source)
      with contextlib.suppress(OSError):  # another file system, one without links, or the file of somebody else
        os.link(real, target)
        return 'hard link'
      with contextlib.suppress(OSError):
        os.symlink(real, target)
        return 'symbolic link'
    shutil.copyfile(source, target)
    return 'copy'

  def image_path(self, split: str, name: str) -> str:
    """Return the path for an image that the caller writes, and create its folder."""
    target = os.path.join(self.work, split, name)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    return target

  def finish(self, content: dict[str, Any]) -> None:
    """Write the manifest and move the result into place."""
    manifest = {'arguments': self._arguments, **content, 'files': _digest(self.work)}
    with open(os.path.join(self.work, MANIFEST), 'w', encoding='utf-8') as file:
      json.dump(manifest, file, indent=1)
      file.write('\n')
    if self._replaces:
      os.rename(self.path, self.scratch('earlier'))
    elif os.path.isdir(self.path):
      os.rmdir(self.path)  # empty
    os.rename(self.work, self.path)

  def _check(self, path: str) -> bool:
    """Check what is at the path; return whether it is an earlier result of the same arguments, to be replaced."""
    if not os.path.lexists(self.path) or os.path.isdir(self.path) and not os.listdir(self.path):
      return False
    manifest = _read_manifest(os.path.join(self.path, MANIFEST))
    if manifest is None:
      raise UserError(f'{path}: exists and was not written by this command: choose another --output_dir, or delete it')
    if manifest.get('arguments') != self._arguments:
      raise UserError(f'{path}: was prepared from another source or with other arguments: choose another --output_dir, '
                      'or delete it')
    if manifest.get('files') != _digest(self.path):
      raise UserError(f'{path}: files have been added or removed since it was prepared: choose another --output_dir, '
                      'or delete it')
    return True

  def _remove_abandoned(self) -> None:
    """Remove temporary folders that killed processes of this machine left behind."""
    parent, name = os.path.split(self.path)
    prefix = f'.{name}.{socket.gethostname()}-'
    for entry in os.listdir(parent) if os.path.isdir(parent) else ():
      number = entry.removeprefix(prefix).removesuffix('.partial')
      if entry.startswith(prefix) and entry.endswith('.partial') and number.isdigit() and not _alive(int(number)):
        shutil.rmtree(os.path.join(parent, entry), ignore_errors=True)


def _alive(process: int) -> bool:
  if process == os.getpid():
    return False
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except OSError:
    return True
  return True


def _digest(folder: str) -> dict[str, Any]:
  """Return number and hash of the names of the files in a folder, without the manifest."""
  names = sorted(os.path.relpath(os.path.join(path, name), folder) for path, _, files in os.walk(folder)
                 for name in files)
  names = [name for name in names if name != MANIFEST]
  listed = '\n'.join(names).encode('utf-8', 'surrogateescape')
  return {'count': len(names), 'sha256': hashlib.sha256(listed).hexdigest()}


def _read_manifest(path: str) -> dict[str, Any] | None:
  try:
    if not os.path.isfile(path) or os.path.getsize(path) > _MAX_MANIFEST:
      return None
    with open(path, encoding='utf-8') as file:
      content = json.load(file)
  except (OSError, ValueError, RecursionError):
    return None
  return content if isinstance(content, dict) and 'arguments' in content else None


def safe_name(name: str) -> str:
  """Return a name valid in every file system and JSON: control characters and bytes that are not UTF-8 are replaced."""
  if name.isprintable():
    return name
  cleaned = ''.join(letter if letter.isprintable() or letter == '/' else '_' for letter in name)
  stem, suffix = posixpath.splitext(cleaned)
  return f'{stem}-{hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]}{suffix}'
