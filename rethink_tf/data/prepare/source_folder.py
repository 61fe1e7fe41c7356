"""The exported folder of an annotation tool: a listing of its files, and look-up of images by the names in its files.

Names from annotation files are only looked up in the listing, so that none of them can lead out of the folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import re
import unicodedata
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from rethink_tf.data.categories import as_text
from rethink_tf.data.json_files import load_json
from rethink_tf.errors import UserError, in_one_line, plain

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.webp', '.tif', '.tiff', '.gif', '.jp2', '.avif', '.heic')
ARCHIVES = ('.zip', '.tar', '.gz', '.tgz', '.7z', '.rar')
NOT_TEXT = 'not a text file in UTF-8, as which it should be saved'
EXAMINED = 40  # files of a kind whose contents a layout looks at to recognise its own
_MAX_FILES = 5_000_000
_MAX_KEYS = 64  # of an object, that its shape names
_MAX_HEAD = 1 << 20  # bytes at the beginning of a text file
_MAX_TEXT = 64 << 20  # bytes of a text file: a list of a million images, or the outlines of one


_SPLITS = {'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val',
           'test': 'test', 'testing': 'test'}
_NEUTRAL = {'', 'images', 'image', 'img', 'imgs', 'obj', 'data', 'set', 'split', 'labels', 'label', 'annotations',
            'coco', 'annotation', 'instances', 'person', 'keypoints', 'json', 'txt', 'csv', 'xml', 'via', 'project',
            'export', 'region', 'masks', 'mask', 'lvis', 'v1', 'manifest', 'jsonl', 'bbox', 'oidv6',
            'oidv7', 'det'}


class _Nearness(NamedTuple):
  """How likely an annotation file is that of an image of its name; larger ones are more likely."""

  same_split: int  # -1: the split of the image is another one, 0: one of them has none
  same_folder: bool
  shared: int  # components of the folders, from both ends


class JsonShape(NamedTuple):
  """The structure of a JSON object, without its contents."""

  keys: tuple[str, ...]
  first: JsonShape | None  # its first value, if that is an object


class SourceFolder:
  """The files below a folder, links followed.

  Attributes:
    root: the folder.
    files: paths relative to it, with '/', sorted.
    images: those of them with the suffix of an image.
  """

  def __init__(self, root: str, follow_links: bool = False) -> None:
    """List the folder; raises UserError unless it is a local folder, or if a link leads out of it."""
    if '://' in root:
      raise UserError(f'{root}: should be a local folder: copy the export to a disk first')
    self.root = os.path.expanduser(root)
    if not os.path.isdir(self.root):
      archive = os.path.isfile(self.root) and self.root.lower().endswith(ARCHIVES)
      raise UserError(f'{root}: ' + ('is an archive: unpack it, and give the folder' if archive else
                                     'no such folder: give the folder that the annotation tool has exported'))
    self.files = sorted(self._walk(follow_links), key=_sort_key)
    self._known = set(self.files)
    self.images = [file for file in self.files if has_suffix(file, IMAGE_SUFFIXES)]
    self._by_name: dict[str, list[str]] = defaultdict(list)
    self._by_stem: dict[str, list[str]] = defaultdict(list)
    for file in self.images:
      self._by_stem[_stem(file)].append(file)
      self._by_name[_folded(posixpath.basename(file))].append(file)
    self._shapes: dict[str, Any] = {}

  @functools.cached_property
  def _in_any_case(self) -> dict[str, list[str]]:
    found = defaultdict(list)
    for file in self.files:
      for name in {_folded(file), _folded(urllib.parse.unquote(file))}:
        found[name].append(file)
    return found

  @functools.cached_property
  def _annotations(self) -> dict[tuple[str, str], list[str]]:
    """(folded name, suffix) -> files that are not images."""
    found = defaultdict(list)
    for file in set(self.files).difference(self.images):
      found[_stem(file), _suffix(file)].append(file)
    return found

  def __contains__(self, file: str) -> bool:
    return file in self._known

  def in_any_case(self, file: str) -> str | None:
    """Return the file of this path, or the only one that differs from it in upper and lower case or by the percent
    encoding of an address; None without one."""
    if file in self._known:
      return file
    found = self._in_any_case.get(_folded(file), ())
    return found[0] if len(found) == 1 else None

  def size(self, file: str) -> int:
    """Return the size of a file in bytes; 0 if it cannot be read."""
    try:
      return os.path.getsize(self.path(file))
    except OSError:
      return 0

  def path(self, file: str) -> str:
    """Return the path of one of `files`."""
    return os.path.join(self.root, file)

  def with_suffix(self, *suffixes: str) -> list[str]:
    """Return the files with one of these suffixes, in either case."""
    return [file for file in self.files if has_suffix(file, suffixes)]

  def named(self, *names: str) -> list[str]:
    """Return the files with one of these names, in any folder."""
    return [file for file in self.files if posixpath.basename(file).lower() in names]

  def below(self, folder: str) -> list[str]:
    """Return the images below a folder of the source; '' for all."""
    return [file for file in self.images if is_below(file, folder)]

  def find_image(self, name: Any, folder: str = '', of: str = '', split: str | None = None) -> str | None:
    """Return the image that a name in an annotation file refers to; None if there is none, or no single one.

    The name may be a path of another machine, with either kind of slash, or an address: the last components must fit,
    and of several images that which shares most of them is taken, otherwise the one nearest to the annotation file. An
    image of another split, or with a nearer annotation file of its own, is taken only if the name has more of its path
    than the last component.

    folder: only images below it. of: the annotation file. split: of the annotation; None: that of the folders in the
    name or, if they say none, of the annotation file.
    """
    for one in names_in(name) if isinstance(name, str) else ():
      if (found := self._find_image(one, folder, of, split)) is not None:
        return found
    return None

  def _find_image(self, name: str, folder: str, of: str, split: str | None) -> str | None:
    wanted = [part for part in name.replace('\\', '/').split('/') if part not in ('', '.')]
    found = [file for file in self._by_name.get(_folded(wanted[-1]) if wanted else '', ()) if is_below(file, folder)]
    split = split or split_of('/'.join(wanted[:-1])) or split_of(posixpath.dirname(of))
    ranks = {file: (_shared_end(file.split('/'), wanted), _nearness(file, of, split),
                    posixpath.basename(file) == wanted[-1]) for file in found}
    chosen = _single_best(ranks)
    return chosen if chosen is not None and (ranks[chosen][0] > 1 or self._may_be_of(chosen, of, split)) else None

  def find_stem(self, name: str, of: str = '', split: str | None = None) -> str | None:
    """Return the image whose name without suffix is `name`; None if there is none, or no single one.

    of: the annotation file, to which the image is the nearest one. split: of the annotation; None: that of its folder.
    """
    split = split or split_of(posixpath.dirname(of))
    ranks = {file: _nearness(file, of, split) for file in self._by_stem.get(_folded(name), ())}
    chosen = _single_best(ranks)
    return chosen if chosen is not None and ranks[chosen].same_split >= 0 else None

  def image_of(self, file: str) -> str | None:
    """Return the image that has the name of an annotation file but for the suffix, the nearest one; None without a
    single one, or if it is of another split or has a nearer annotation file."""
    split = split_of(posixpath.dirname(file))
    found = self._by_stem.get(_stem(file)) or self._by_stem.get(_stem(urllib.parse.unquote(file)), ())
    chosen = _single_best({image: _nearness(image, file, split) for image in found})
    return chosen if chosen is not None and self._may_be_of(chosen, file, split) else None

  def _may_be_of(self, image: str, file: str, split: str | None) -> bool:
    """Whether an annotation file may be that of an image: none of the same name and kind is nearer to it."""
    own = _nearness(image, file, split)
    if own.same_split < 0:
      return False
    if own.same_folder or _stem(image) != _stem(file):
      return True
    return all(_nearness(image, other, split_of(posixpath.dirname(other))) <= own
               for other in self._annotations.get((_stem(image), _suffix(file)), ()))

  def load_json(self, file: str) -> Any:
    """Return the content of a JSON file; raises UserError if it is not valid."""
    return load_json(self.path(file))

  def json_shape(self, file: str) -> JsonShape | list[JsonShape] | None:
    """Return the structure of a JSON file; for a list, that of its first objects; None if it is not JSON."""
    if file not in self._shapes:
      self._shapes[file] = self._read_shape(file)
    return self._shapes[file]

  def read_text(self, file: str) -> str:
    """Return a text file; raises UserError if it is not UTF-8 text, or too large."""
    path = self.path(file)
    try:
      if not os.path.isfile(path):
        raise UserError(f'{path}: not a regular file')
      with open(path, 'rb') as stream:
        data = stream.read(_MAX_TEXT + 1)
      if len(data) > _MAX_TEXT:
        raise UserError(f'{path}: more than {_MAX_TEXT >> 20} MB are too many for a text file of annotations')
      return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
      raise UserError(f'{path}: {NOT_TEXT}: {in_one_line(error)}') from error
    except OSError as error:
      raise UserError(f'{path}: cannot be read: {in_one_line(error)}') from error

  def lines(self, file: str) -> Iterator[str]:
    """Yield the lines of a text file of any length; raises UserError if it is not UTF-8 text, or a line is too long."""
    path, count = self.path(file), 0
    try:
      with open(path, 'rb') as stream:  # a regular file: others are not listed
        while data := stream.readline(_MAX_TEXT + 1):
          count += 1
          if len(data) > _MAX_TEXT:
            raise UserError(f'{path}: line {count}: more than {_MAX_TEXT >> 20} MB are too many for a line')
          yield data.decode('utf-8-sig' if count == 1 else 'utf-8')
    except UnicodeDecodeError as error:
      raise UserError(f'{path}: line {count}: {NOT_TEXT}: {in_one_line(error)}') from error
    except OSError as error:
      raise UserError(f'{path}: cannot be read: {in_one_line(error)}') from error

  def first_lines(self, file: str, count: int) -> list[str]:
    """Return the first lines of a text file, as many as end within its first megabyte; [] if it cannot be read.

    What is not UTF-8 is replaced: `lines` says so.
    """
    try:
      with open(self.path(file), 'rb') as stream:
        data = stream.read(_MAX_HEAD + 1)
    except OSError:
      return []
    lines = data.split(b'\n', count)
    rest = lines[count:] or lines[-1:] * (len(data) > _MAX_HEAD)  # what may end within a line
    return b'\n'.join(lines[:len(lines) - len(rest)]).decode('utf-8-sig', 'replace').split('\n')

  def describe(self, files: list[str], shown: int = 3) -> str:
    """Return the first few names of files, for a message."""
    return ', '.join(map(as_text, files[:shown])) + (f' and {len(files) - shown} more' if len(files) > shown else '')

  def _walk(self, follow_links: bool) -> Iterator[str]:
    top = os.path.realpath(self.root)
    todo, visited, count = [''], {top}, 0
    while todo:
      folder = todo.pop()
      try:
        entries = list(os.scandir(os.path.join(self.root, folder)))
      except OSError as error:
        raise UserError(f'{plain(os.path.join(self.root, folder))}: cannot be listed: {in_one_line(error)}') from error
      for entry in entries:
        name = posixpath.join(folder, entry.name)
        if entry.name.startswith('.') or entry.name == '__MACOSX':
          continue
        linked = entry.is_symlink()
        try:
          is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself, which is like one to nothing
          continue
        target = os.path.realpath(entry.path) if linked or is_folder else ''
        if linked and not follow_links and os.path.commonpath([top, target]) != top:
          raise UserError(f'{plain(entry.path)}: is a link to {plain(target)}, outside of the folder: if that is '
                          'meant, add --follow_links')
        if is_folder:
          if target not in visited:  # a link may lead to a folder above it
            visited.add(target)
            todo.append(name)
        elif is_file:
          yield name
          count += 1
          if count > _MAX_FILES:
            raise UserError(f'{self.root}: more than {_MAX_FILES:,} files: give the folder of one data set')

  def _read_shape(self, file: str) -> JsonShape | list[JsonShape] | None:
    cache: dict[JsonShape, JsonShape] = {}  # the objects of a large file have few shapes

    def reduce(entry: dict[str, Any]) -> JsonShape:
      first = next(iter(entry.values()), None)
      shape = JsonShape(tuple(entry)[:_MAX_KEYS], first._replace(first=None) if isinstance(first, JsonShape) else None)
      return cache.setdefault(shape, shape)
    try:
      content = load_json(self.path(file), reduce)
    except UserError:
      return None
    if isinstance(content, list):
      return [entry for entry in content[:8] if isinstance(entry, JsonShape)]
    return content if isinstance(content, JsonShape) else None


def has_suffix(file: str, suffixes: tuple[str, ...]) -> bool:
  """Whether a name ends with one of these suffixes, in either case."""
  return file.lower().endswith(suffixes)


def names_in(value: str) -> list[str]:
  """Return the names of a file that a value in an annotation file may mean: of an address what its query names, and its
  path; the value itself, and what it is without percent encoding."""
  names = []
  if '?' in value or '://' in value:
    with contextlib.suppress(ValueError):  # no address
      parsed = urllib.parse.urlsplit(value)
      names += [one for _, one in urllib.parse.parse_qsl(parsed.query) if has_suffix(one, IMAGE_SUFFIXES)]
      names.append(urllib.parse.unquote(parsed.path))
  return list(dict.fromkeys([*names, value, urllib.parse.unquote(value)]))


def is_below(file: str, folder: str) -> bool:
  """Whether a relative path is below a folder; '' is the root."""
  return not folder or file.startswith(f'{folder}/')


def split_of(path: str) -> str | None:
  """Return the split that a component of a path names, the last one that does: 'train', 'val' or 'test'.

  The component has that word (with a year) and others that say nothing: obj_train_data, instances_val2017.json.
  """
  for part in reversed(path.replace('\\', '/').lower().split('/')):
    words = [re.sub(r'\d{4}$', '', word) for word in re.split(r'[\W_]+', part) if word]
    splits = {_SPLITS[word] for word in words if word in _SPLITS}
    if len(splits) == 1 and all(word in _SPLITS or word in _NEUTRAL for word in words):
      return splits.pop()
  return None


def _sort_key(file: str) -> tuple[str, ...]:
  return tuple(file.split('/'))


def _folded(name: str) -> str:
  return unicodedata.normalize('NFC', name).casefold()


def _stem(file: str) -> str:
  return _folded(posixpath.splitext(posixpath.basename(file))[0])


def _suffix(file: str) -> str:
  return posixpath.splitext(file)[1].lower()


def _nearness(image: str, file: str, split: str | None) -> _Nearness:
  """Compare the folders of an image and of an annotation file. split: of the annotation."""
  one, other = posixpath.dirname(image), posixpath.dirname(file)
  own = split_of(one)
  same_split = 0 if None in (own, split) else 1 if own == split else -1
  if one == other:
    return _Nearness(same_split, True, 0)
  ends = [one.split('/'), other.split('/')]
  end = _shared_end(*ends)
  start = _shared_end(*(parts[:len(parts) - end][::-1] for parts in ends))
  return _Nearness(same_split, False, start + end)


def _single_best(ranks: dict[str, Any]) -> str | None:
  """Return the file of the highest rank; None if there is none or several share it."""
  best = max(ranks.values(), default=None)
  chosen = [file for file, rank in ranks.items() if rank == best]
  return chosen[0] if len(chosen) == 1 else None


def _shared_end(parts: list[str], wanted: list[str]) -> int:
  """Return how many components agree, counted from the end."""
  count = 0
  for one, other in zip(reversed(parts), reversed(wanted), strict=False):
    if _folded(one) != _folded(other):
      break
    count += 1
  return count
