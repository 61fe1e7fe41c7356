"""Safetensors files, read by the format's own library, which first checks the header, all bounds and overlaps."""

from __future__ import annotations

import safetensors
from safetensors import SafetensorError

from rethink_tf.errors import UserError, in_one_line
from rethink_tf.weights.contents import Lazy

_NUMBERS = {'F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U8', 'U16', 'U32', 'U64', 'BOOL'}


def load(path: str) -> dict[str, Lazy]:
  """Return the arrays by name, each read on demand.

  Raises:
    UserError: damaged header, arrays that overlap or end outside the file, or an unsupported element type.
  """
  try:
    file = safetensors.safe_open(path, 'numpy')
    arrays = {}
    for name in file.keys():
      array = file.get_slice(name)
      if array.get_dtype() not in _NUMBERS:
        raise UserError(f'{path}: {name} is of type {array.get_dtype()}: give weights in float32, float16 or bfloat16')
      arrays[name] = Lazy(array.get_shape(), lambda name=name: file.get_tensor(name))
  except (SafetensorError, OSError, ValueError) as error:
    raise UserError(f'{path}: not a complete safetensors file ({in_one_line(error)}): fetch it again') from error
  return arrays
