"""Files published by others: address, size and checksum, and whether a downloaded file is the published one."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from typing import NamedTuple

from rethink_tf.errors import UserError

MIB = 1 << 20
SCHEMES = ('https', 'http')  # a file on this machine is given by its path


class Digests(NamedTuple):
  """Size and checksums of a file, checksums as lower-case hexadecimal digits."""

  size: int
  sha256: str
  md5: str


class RemoteFile(NamedTuple):
  """A file at an address.

  size: bytes. mib: size in MiB to three decimals, where the publisher states no bytes.
  sha256, md5: checksum, or its first digits where the publisher gives no more; '' where none is published.
  md5_suffix: what the address of a file with its MD5 has more, '' if there is none.
  """

  url: str
  size: int | None = None
  mib: float | None = None
  sha256: str = ''
  md5: str = ''
  md5_suffix: str = ''

  @property
  def name(self) -> str:
    """Name of the file, the last component of its address."""
    return os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(self.url).path))

  @property
  def has_checksum(self) -> bool:
    return bool(self.sha256 or self.md5)

  def check_address(self) -> None:
    """Raise a UserError unless the address is one of http or https, and ends with the name of a file."""
    parts = urllib.parse.urlsplit(self.url)
    if parts.scheme not in SCHEMES or not parts.hostname:
      raise UserError(f'{self.url}: only https:// and http:// addresses are downloaded: of another file give the path')
    if not self.name or self.name.startswith('.') or set(self.name) & {'/', '\\', '\0'}:
      raise UserError(f'{self.url}: the address does not end with the name of a file')

  def difference(self, found: Digests) -> str:
    """Return how a file differs from the published one, '' if it does not."""
    if self.size is not None and found.size != self.size:
      return f'has {found.size:,} bytes instead of {self.size:,}'
    if self.mib is not None and abs(found.size / MIB - self.mib) > 0.001:
      return f'has {found.size / MIB:.3f} MiB instead of {self.mib:.3f}'
    for kind in ('sha256', 'md5'):
      published = getattr(self, kind)
      if not getattr(found, kind).startswith(published):
        return f'has the {kind} {getattr(found, kind)[:max(len(published), 16)]} instead of {published}'
    return ''


def digests(path: str) -> Digests:
  """Return size and checksums of a local file. Raises OSError."""
  sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
  with open(path, 'rb') as file:
    while block := file.read(1 << 22):
      sha256.update(block)
      md5.update(block)
      size += len(block)
  return Digests(size, sha256.hexdigest(), md5.hexdigest())
