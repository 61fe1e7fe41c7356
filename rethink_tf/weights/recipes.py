"""The training of a run of this package apart from its seed: pre-trainings that differ in nothing else form one arm."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from rethink_tf.errors import UserError
from rethink_tf.storage import identity, settings
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.weights import costs

_DERIVED = ('each', 'turned')  # fields of the summary of a data set that follow from its images
_SEED = 'run.seed'


def of_run(checkpoint: str) -> dict[str, Any]:
  """Return what initial_weights.json records about the training of a checkpoint, {} if unknown.

  recipe: a digest of all that the weights depend on but run.seed: settings, those of earlier starts too, training
  data, images seen, and the weights that the run began with. seeds: of the run, and of those that led to it.
  """
  folder = os.path.dirname(os.path.dirname(checkpoint.rstrip('/')))
  try:
    own = identity.read(RunFolder(folder, create=False))
  except UserError:
    return {}
  if own is None or not own.recorded:
    return {}
  start, seen = costs.start_of(folder), costs.at_checkpoint(checkpoint)
  digest = hashlib.sha256(json.dumps([
    {name: value for name, value in own.settings.items() if _counts(name)}, [_change(entry) for entry in own.history],
    _data(own.data.get('train')), seen and seen.images, start and (start.get('recipe') or start.get('sha256')),
  ], sort_keys=True, default=str).encode()).hexdigest()
  return {'recipe': digest, 'seeds': [own.settings.get(_SEED, 0), *((start or {}).get('seeds') or ())]}


def _data(summary: Any) -> Any:
  """Return the summary of the training data (data/digest.py) without what earlier versions lack."""
  if not isinstance(summary, dict):
    return summary
  return {name: value for name, value in summary.items() if name not in _DERIVED}


def _counts(name: Any) -> bool:
  return isinstance(name, str) and name != _SEED and settings.kind_of(name) != settings.FREE


def _change(entry: Any) -> Any:
  """Return what a start changed, from an entry of the history, which may be malformed."""
  found = entry if isinstance(entry, dict) else {}
  changed = found.get('settings') if isinstance(found.get('settings'), list) else []
  return [found.get('step') if changed or found.get('data') else None, found.get('data'),
          [one for one in changed if isinstance(one, dict) and _counts(one.get('name'))]]
