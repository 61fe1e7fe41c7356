"""Where downloads are kept, and whether this machine downloads: RETHINK_TF_CACHE and RETHINK_TF_OFFLINE."""

from __future__ import annotations

import os

from rethink_tf.errors import UserError

CACHE = 'RETHINK_TF_CACHE'
OFFLINE = 'RETHINK_TF_OFFLINE'
CACHE_HELP = f'folder that keeps downloads; default: {CACHE}, else ~/.cache/rethink_tf'
OFFLINE_HELP = f'download nothing (as {OFFLINE}=1)'


def cache_folder(kind: str) -> str:
  """Return the folder of one kind of downloads ('weights', 'data'), below ~/.cache/rethink_tf by default.

  Raises:
    UserError: RETHINK_TF_CACHE is not a folder of this machine.
  """
  own = os.environ.get(CACHE, '')
  if '://' in own:
    raise UserError(f'{CACHE} = {own}: use a folder of this machine')
  user = os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache')
  return os.path.join(os.path.expanduser(own or os.path.join(user, 'rethink_tf')), kind)


def is_offline() -> bool:
  """Whether downloads are off."""
  return os.environ.get(OFFLINE, '').lower() not in ('', '0', 'false', 'no')


def apply(cache_dir: str | None, offline: bool) -> None:
  """Set the environment of this process, and of those that it starts, by the flags of a command."""
  if cache_dir:
    os.environ[CACHE] = cache_dir
  if offline:
    os.environ[OFFLINE] = '1'
