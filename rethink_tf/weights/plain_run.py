"""Starts a cascade from a run without one: the switch to a cascade for the last 270k iterations (section 5.1)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import gin
import numpy as np

from rethink_tf.errors import UserError
from rethink_tf.storage import manifests
from rethink_tf.weights import costs
from rethink_tf.weights.contents import Array, Contents
from rethink_tf.weights.detectron2 import Entry
from rethink_tf.weights.pretrained import Loaded, Model, PretrainedWeights, Tables

if TYPE_CHECKING:
  from rethink_tf.models.mask_rcnn import MaskRCNN

HEADS = ('first', 'random')
_LATER = re.compile(r'cascade/(?:heads|predictors)/\d+/')


@gin.register
class PlainRun(PretrainedWeights):
  """weights(detector) loads a run without cascade into a detector with one, which continues at that run's iteration.

  How the paper initializes the further stages is unpublished. heads: 'first' copies the first stage's weights, 'random'
  keeps their random values. The first stage has the plain run's weights; its class-agnostic deltas are the mean of the
  class-specific ones. Velocities start at zero.

  path: a run folder of this package, or one of its checkpoints (checkpoints/step-00540000).
  """

  def __init__(self, path: str, heads: str = 'first'):
    super().__init__(path, part='detector')
    if heads not in HEADS:
      raise UserError(f"PlainRun.heads = {heads!r}: use one of {', '.join(HEADS)}")
    self.heads = heads

  def __call__(self, detector: MaskRCNN) -> Loaded:
    """Load as PretrainedWeights.

    Raises:
      UserError: not a plain run of the same detector, or the model has no cascade.
    """
    if getattr(detector, 'cascade', None) is None:
      raise UserError('PlainRun loads weights into a cascade: add --gin_file=gin_configs/models/cascade.gin, or load a '
                      'whole detector with gin_configs/init/detector.gin')
    return super().__call__(detector)

  def _load(self, contents: Contents, detector: Model) -> Loaded:
    loaded = super()._load(contents, detector)
    manifest = manifests.read(contents.checkpoint)
    step, state = manifest.get('step'), manifest.get('state')
    progress = state.get('progress') if isinstance(state, dict) else None
    if type(step) is not int or not 0 <= step < 2 ** 40 or not isinstance(progress, dict | None):
      raise UserError(f'{self.path}: the manifest of its checkpoint does not record an iteration: use another one')
    run = os.path.dirname(os.path.dirname(contents.checkpoint.rstrip('/')))
    # Its samples are counted on from the plain run's: only what that one started from is a cost of its own.
    return loaded._replace(step=step, progress=progress, cost=None,
                           continues={'continues': costs.start_of(run)})

  def _tables(self, contents: Contents, detector: Model) -> Tables:
    if not contents.own:
      raise UserError(f'{self.path}: is not a run of this package, so its iteration is unknown: start a cascade from '
                      'it with gin_configs/init/detector.gin')
    entries, arrays = super()._tables(contents, detector)
    if any(_LATER.match(name) for name in arrays):
      raise UserError(f'{self.path}: has a cascade already: load it with gin_configs/init/detector.gin')
    if self.heads == 'random':
      entries = {name: entry for name, entry in entries.items() if not _LATER.match(name)}
    return entries, fill(arrays, entries)


def fill(arrays: Mapping[str, Array], entries: Mapping[str, Entry]) -> dict[str, Array]:
  """Return a plain run's arrays, with the first stage copied to the others and its box deltas made class-agnostic."""
  arrays = dict(arrays)
  for name, entry in entries.items():
    source = name.replace('cascade/heads', 'box_head', 1).replace('cascade/predictors', 'box_predictor', 1)
    source = re.sub(r'^(box_head|box_predictor)/\d+/', r'\1/', source) if _LATER.match(name) else name
    if source not in arrays:
      continue
    array, shape = arrays[source], tuple(entry.variable.shape)
    if source.startswith('box_predictor/deltas/') and tuple(array.shape) != shape:
      array = np.asarray(array)
      array = array.reshape([*array.shape[:-1], -1, 4]).mean(-2)  # [..., 4 K] -> [..., 4]
    arrays[name] = array
  return arrays
