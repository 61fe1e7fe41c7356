"""ONNX files, converted by tf2onnx and run by onnxruntime; all three packages are the extra `onnx`."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from rethink_tf.errors import UserError
from rethink_tf.export import refusals

if TYPE_CHECKING:  # the check for the packages needs no TensorFlow
  from rethink_tf.export.comparison import Found, Run
  from rethink_tf.export.graphs import Tensors

OPSET = 17
PACKAGES = ('tf2onnx', 'onnx', 'onnxruntime')
_CANNOT_RUN = 'onnxruntime cannot run the file of this detector'
METADATA = 'rethink_tf'  # key of the description in the file's metadata


def require() -> None:
  """Raise a UserError if a package of the extra is missing; does not import any of them."""
  missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
  if missing:
    raise UserError(f"--format=onnx needs {', '.join(missing)}, which is not installed: pip install 'rethink_tf[onnx]'")


def convert(function: Callable[..., Tensors], threshold: float, about: str) -> bytes:
  """Return the ONNX file of a traced tf.function of an image and a score threshold, which has a default value there.

  about: description of the detector, for the metadata.

  Raises:
    UserError: ONNX has no counterpart of an operation.
  """
  import onnx
  import tf2onnx

  from rethink_tf import console

  logging.getLogger('tf2onnx').setLevel(logging.CRITICAL)  # unknown operations are reported below
  with refusals.in_words('tf2onnx cannot convert this detector'), console.held_stderr():
    model, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=OPSET)
  unknown = sorted({node.op_type for node in _nodes(model.graph) if not onnx.defs.has(node.op_type, node.domain)})
  if unknown:
    raise UserError(f'ONNX has no counterpart of the operations {", ".join(unknown)[:200]}, which a part of this '
                    'detector uses: export a SavedModel')
  # An input with an initializer of its name may be left out.
  model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(threshold), 'score_threshold'))
  onnx.helper.set_model_props(model, {METADATA: about})
  return model.SerializeToString()


def runner(content: bytes) -> Run:
  """Return a function of an image and a score threshold that runs an ONNX file on the CPU.

  Raises:
    UserError: onnxruntime refuses the file, or fails to run it; also from the function.
  """
  import onnxruntime

  onnxruntime.set_default_logger_severity(3)  # errors
  with refusals.in_words(_CANNOT_RUN):
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
  names = [output.name for output in session.get_outputs()]

  def run(image: np.ndarray, threshold: np.float32) -> Found:
    inputs = {'image': image, 'score_threshold': np.asarray(threshold, np.float32)}
    with refusals.in_words(_CANNOT_RUN):
      return dict(zip(names, session.run(names, inputs), strict=True))

  return run


def _nodes(graph: Any) -> Iterator[Any]:
  """Yield the nodes of a graph and of the bodies of its loops and conditions."""
  for node in graph.node:
    yield node
    for attribute in node.attribute:
      if attribute.HasField('g'):
        yield from _nodes(attribute.g)
