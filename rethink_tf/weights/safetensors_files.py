"""Safetensors files, read by the format's own library, which first checks the header, all bounds and overlaps."""

from __future__ import annotations

import safetensors
from safetensors import SafetensorError

from rethink_tf.errors import UserError, excerpt, in_one_line
from rethink_tf.weights.contents import MAX_ARRAYS, Lazy, check_names

_NUMBERS = {'F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U8', 'U16', 'U32', 'U64', 'BOOL'}
_MAX_HEADER = 256 * MAX_ARRAYS  # bytes; 100 for each array


def load(path: str) -> dict[str, Lazy]:
  """Return the arrays by name, each read on demand.

  Raises:
    UserError: damaged header, arrays that overlap or end outside the file, too many of them, or an unsupported element
      type.
  """
  try:
    with open(path, 'rb') as opened:
      length = int.from_bytes(opened.read(8), 'little')
    if length > _MAX_HEADER:  # the library takes a minute for a million arrays without elements
      raise UserError(f'{path}: its list of arrays has {length:,} bytes, too many for a network: use another file')
    file = safetensors.safe_open(path, 'numpy')
    arrays = {}
    names = file.keys()
    check_names(names, path)
    for name in names:
      array = file.get_slice(name)
      if array.get_dtype() not in _NUMBERS:
        raise UserError(f'{path}: {excerpt(name)} is of type {array.get_dtype()}: give weights in float32, float16 or '
                        'bfloat16')
      arrays[name] = Lazy(array.get_shape(), lambda name=name: file.get_tensor(name))
  except (SafetensorError, OSError, ValueError) as error:
    raise UserError(f'{path}: not a complete safetensors file ({in_one_line(error)}): download it again') from error
  return arrays
