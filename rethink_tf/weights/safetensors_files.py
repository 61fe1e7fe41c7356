"""Safetensors, with the format's own library, which checks the header, all bounds and overlaps before anything else."""

from __future__ import annotations

import safetensors
from safetensors import SafetensorError

from rethink_tf.errors import UserError
from rethink_tf.weights.contents import Lazy

_FLOATS = {'F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U8', 'U16', 'U32', 'U64', 'BOOL'}


def load(path: str) -> dict[str, Lazy]:
  """Arrays by the names in the file, each read on demand.

  Raises:
    UserError: damaged header, arrays that overlap or end outside the file, an element type that is no plain number.
  """
  try:
    file = safetensors.safe_open(path, 'numpy')
    arrays = {}
    for name in file.keys():
      part = file.get_slice(name)
      if part.get_dtype() not in _FLOATS:
        raise UserError(f'{path}: {name} is of type {part.get_dtype()}: give weights in float32, float16 or bfloat16')
      arrays[name] = Lazy(part.get_shape(), lambda name=name: file.get_tensor(name))
  except (SafetensorError, OSError, ValueError) as error:
    raise UserError(f'{path}: not a complete safetensors file ({" ".join(str(error).split())}): fetch it '
                    'again') from error
  return arrays
