"""Reading of JSON files with a limit on their size."""

import json
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from rethink_tf.errors import UserError, in_one_line
from rethink_tf.process import garbage_collection
from rethink_tf.storage.files import open_regular

MAX_JSON_BYTES = 4 << 30  # of a file; COCO's have 450 MB, those of the largest data sets a few gigabytes


def load_json(file: str, object_hook: Callable[[dict[str, Any]], Any] | None = None,
              max_bytes: int = MAX_JSON_BYTES) -> Any:
  """Read a JSON file, local or gs://.

  Raises:
    UserError: the file cannot be read, is larger than max_bytes, or is not valid JSON.
  """
  try:
    with open_regular(file) as stream:
      size = stream.size()
      if size > max_bytes:
        raise UserError(f'{file}: {size:,} bytes exceed the limit of {max_bytes:,}: split the file')
      text = stream.read(size)
  except tf.errors.OpError as error:
    raise UserError(f'{file}: cannot be read: {in_one_line(error)}') from error
  try:
    with garbage_collection.paused():  # of a COCO file, which becomes millions of objects
      return json.loads(text, object_hook=object_hook)
  except (ValueError, RecursionError, MemoryError) as error:
    raise UserError(f'{file}: not valid JSON: {in_one_line(error)}') from error
