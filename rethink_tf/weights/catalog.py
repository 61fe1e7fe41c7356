"""Published weights by name: their addresses, properties, training and cost.

Addresses, sizes and checksums are those of the publishers' own files, which each entry names; none was guessed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rethink_tf.downloads import remote_file, settings
from rethink_tf.downloads.remote_file import RemoteFile
from rethink_tf.errors import UserError, plain

if TYPE_CHECKING:
  from rethink_tf.weights.contents import Contents

LIST = 'python -m rethink_tf.weights --list'


class Cost(NamedTuple):
  """Samples seen in a pre-training, in the units of Fig. 2.

  source: where the numbers are from. assumed: the publisher does not state all of them.
  """

  images: float
  instances: float
  pixels: float
  source: str
  assumed: bool = False

  def record(self) -> dict[str, Any]:
    """Return what a run that starts from these weights records."""
    assumed = ' (partly assumed)' if self.assumed else ''
    return {'images': self.images, 'instances': self.instances, 'pixels': self.pixels,
            'source': f'{self.source}{assumed}'}


class Entry(NamedTuple):
  """Published weights.

  remote: file, its address, and size and checksum as far as they are published. source: where the address stands.
  network, norm ('bn', 'folded', 'gn', 'none'), channels ('rgb', 'bgr'), stride_in_1x1, pixel_mean, pixel_std (RGB,
  range 0-255): as in weights.contents.Contents; a detector of Detectron2 does not record them itself.
  init: file of gin_configs/init. cost: of the pre-training. tried: when somebody has downloaded from the address and
  found the published file; '' while nobody has.
  """

  name: str
  remote: RemoteFile
  source: str
  licence: str
  kind: str
  network: str
  norm: str
  channels: str
  stride_in_1x1: bool
  pixel_mean: tuple[float, float, float]
  pixel_std: tuple[float, float, float]
  init: str
  cost: Cost
  tried: str = ''

  @property
  def address_state(self) -> str:
    return f'address tried {self.tried}' if self.tried else 'address not tried'

  @property
  def folder(self) -> str:
    """The folder of the cache."""
    return os.path.join(settings.cache_folder('weights'), self.name)

  @property
  def path(self) -> str:
    """The path of the file in the cache, whether it is there or not."""
    return os.path.join(self.folder, self.remote.name)

  def completed(self, contents: Contents) -> Contents:
    """Return the contents of the file, completed with what the catalog knows."""
    known = {name: getattr(self, name) for name in ('norm', 'channels', 'stride_in_1x1', 'pixel_mean', 'pixel_std')}
    missing = {name: value for name, value in known.items() if getattr(contents, name) is None}
    if self.kind == 'detector' and not contents.settings:
      from rethink_tf.weights.detectron2_settings import CONVENTIONS
      missing['settings'] = CONVENTIONS['detectron2']
    if self.kind == 'detector' and contents.classes is None:  # all of the table were trained on COCO
      from rethink_tf.weights.contents import coco_classes
      missing['classes'] = coco_classes(contents.arrays)
    return contents._replace(**missing)


def entries() -> Mapping[str, Entry]:
  """Return all published weights by name."""
  from rethink_tf.weights import catalog_entries
  return catalog_entries.ENTRIES


def is_path(text: str) -> bool:
  """Whether a value of --weights or WEIGHTS can only be a path, since it has a separator or an extension."""
  return '/' in text or os.sep in text or '.' in text


def find(text: str) -> Entry | None:
  """Return the weights that a value of --weights or WEIGHTS names, None for a path.

  A name has neither separator nor extension, and wins over a file of the same name: that is ./NAME.
  """
  return None if is_path(text) else entries().get(text)


def check(text: str) -> None:
  """Check that --weights or WEIGHTS is the name of published weights, or a path that exists.

  Raises:
    UserError: it is neither; it names similar ones.
  """
  if '://' in text or find(text) is not None:
    return
  local = os.path.expanduser(text)
  if os.path.exists(local) or os.path.exists(f'{local}.index'):
    return
  base = os.path.basename(text.rstrip('/'))
  published = [name for name, entry in entries().items() if base == entry.remote.name]
  if published:
    raise UserError(f'{plain(text)}: no such file: give its path, or --weights={published[0]}, which downloads it')
  if is_path(text):
    raise UserError(f'{plain(text)}: no such file: give the path of a weight file or a run folder, or a name of {LIST}')
  close = _similar(text)
  raise UserError(f'{plain(text)}: no such file, and no published weights of this name'
                  f'{"; did you mean " + " or ".join(close) + "?" if close else ""}: see {LIST}')


def _similar(text: str) -> list[str]:
  """Return names similar to a text, which may be a file name or another spelling: R-50-GN, resnet50."""
  words = text.lower().replace('-', '_')
  keys = {name: name for name in entries()}
  for name, entry in entries().items():
    stem = os.path.splitext(entry.remote.name)[0].lower().replace('-', '_')
    keys |= {stem: name, name.partition('_')[2]: name}
  return list(dict.fromkeys(keys[key] for key in difflib.get_close_matches(words, keys, n=3, cutoff=.6)))[:3]


def local_path(text: str) -> str:
  """Return the path of weights by name or path; those of a name are downloaded unless they are in the cache.

  Raises:
    UserError: the download fails, or downloads are off.
  """
  entry = find(text)
  if entry is None:
    check(text)
    return os.path.expanduser(text)
  from absl import logging

  from rethink_tf.downloads import cache
  if os.path.lexists(text):
    logging.warning('%s: the published weights of this name are used; write ./%s for the file', text, text)
  return cache.fetch(entry.remote, entry.folder, entry.name)


def of_file(path: str, sha256: str) -> Entry | None:
  """Return the entry of a file that is given by its path: by its SHA-256, else by its name and MD5; None if unknown."""
  found = of_digest(sha256)
  named = [entry for entry in entries().values() if entry.remote.md5 and entry.remote.name == os.path.basename(path)]
  if found is not None or not named or not os.path.isfile(path):
    return found
  digests = remote_file.digests(path)
  return next((entry for entry in named if not entry.remote.difference(digests)), None)


def of_digest(sha256: str) -> Entry | None:
  """Return the entry whose published SHA-256, of at least 8 digits, is the beginning of a file's; None if unknown."""
  return next((entry for entry in entries().values()
               if len(entry.remote.sha256) >= 8 and sha256.startswith(entry.remote.sha256)), None)
