"""Compares settings of a detector that are not variables, as recorded with its weights, to those of a built model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from rethink_tf.errors import UserError

if TYPE_CHECKING:
  from rethink_tf.models.mask_rcnn import MaskRCNN
  from rethink_tf.weights.contents import Contents

# Half a cell off everywhere: never meant. The others may be changed with a purpose, which a warning leaves possible.
REFUSED = ('Anchors.offset', 'RoIPooler.aligned')
BINDINGS: Mapping[str, Callable[[MaskRCNN], Any]] = {
  'Anchors.offset': lambda model: model.anchors.offset,
  'RoIPooler.aligned': lambda model: model.box_pooler.aligned,
  'RoIPooler.sampling_ratio': lambda model: model.box_pooler.sampling_ratio,
  'Anchors.sizes': lambda model: model.anchors.sizes,
  'Anchors.ratios': lambda model: model.anchors.ratios,
  'RoISampler.box_weights': lambda model: model.roi_sampler.box_weights,
  'Cascade.box_weights': lambda model: model.cascade.box_weights if model.cascade is not None else None,
}


def check(contents: Contents, model: MaskRCNN) -> None:
  """Compare the settings that a detector's file records with those of a model.

  Raises:
    UserError: anchors or RoIAlign are on another grid; other differences are logged.
  """
  for name, configured in BINDINGS.items():
    recorded, ours = contents.settings.get(name), configured(model)
    if recorded is None or ours is None or _equal(recorded, ours):
      continue
    line = f'{contents.path}: was trained with {name} = {recorded!r}, the model has {ours!r}'
    if name in REFUSED:
      raise UserError(f'{line}: set {name} = {recorded!r}')
    logging.warning('%s: its outputs are those of its training only with %s = %r', line, name, recorded)


def _equal(a: Any, b: Any) -> bool:
  try:
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6)
  except (ValueError, TypeError):  # not an array of numbers: a configuration that was edited
    return False
