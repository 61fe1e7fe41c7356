"""Annotation files in JSON, read with a limit on their size."""

import gc
import json
from typing import Any

import tensorflow as tf

from rethink_tf.errors import UserError

MAX_JSON_BYTES = 4 << 30  # of a file; COCO's are 450 MB, those of the largest data sets a few gigabytes


def load_json(file: str, object_hook: Any = None, max_bytes: int = MAX_JSON_BYTES) -> Any:
  """A json file, local or gs://.

  Raises:
    UserError: cannot be read, is too large, or is not json.
  """
  try:
    with tf.io.gfile.GFile(file, 'rb') as stream:
      size = stream.size()
      if size > max_bytes:
        raise UserError(f'{file}: {size:,} bytes are more than the {max_bytes:,} that are read: divide it')
      text = stream.read(size)
  except tf.errors.OpError as error:
    raise UserError(f'{file}: cannot be read: {error.message}') from error
  # A COCO file makes millions of objects, none in cycles: the collector would only walk over them, again and again.
  enabled = gc.isenabled()
  gc.disable()
  try:
    return json.loads(text, object_hook=object_hook)
  except (ValueError, RecursionError, MemoryError) as error:
    raise UserError(f'{file}: not valid JSON: {error}') from error
  finally:
    if enabled:
      gc.enable()
