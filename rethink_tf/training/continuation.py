"""Whether a run may continue with this configuration and data; what has changed since is logged and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from absl import logging

from rethink_tf import gin_files
from rethink_tf.data import digest
from rethink_tf.data.categories import categories_to_json
from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.identity import Identity
from rethink_tf.storage.settings import Change
from rethink_tf.structures import Devices, Experiment


class Changes(NamedTuple):
  """Settings and data with which a run continues that differ from those so far."""

  settings: Sequence[Change] = ()
  data: Sequence[str] = ()


def check(experiment: Experiment) -> tuple[Identity, Changes]:
  """Return the identity of the run from now on, and what has changed, which is logged; nothing is written.

  Call it once all parts are built: gin's operative configuration lists only what has been called.

  Raises:
    UserError: a setting that changes the meaning of a step differs from that of the run so far.
  """
  was, folder = experiment.recorded, experiment.folder
  step = experiment.checkpoints.latest()
  if was is None and step is not None and identity.read(folder) is not None:
    raise UserError(f'{folder.path}: another start has written to this run in the meantime: run the same command again')
  splits = {'train': experiment.train_input.source, 'held_out': experiment.eval_input.source}
  now = identity.of(categories_to_json(tuple(splits['train'].categories)), gin_files.operative_config(),
                    {name: digest.summarize(source) for name, source in splits.items()})
  if was is None:
    if step is not None and not experiment.allow_changes:
      raise UserError(f'{folder.path}: has checkpoints, up to step {step}, but neither identity.json nor config.gin, '
                      'which tell whose they are: restore these files, choose another --model_dir and start from this '
                      'folder with --weights, or resume with this configuration by --allow_changes')
    return _with_name_of(experiment, now), Changes()
  if not was.recorded:
    now = _with_name_of(experiment, now)
  settings = identity.check(was, now, folder, step, experiment.allow_changes)
  data = [f'{name}: {", ".join(found)}' for name in splits if name in was.data
          and (found := digest.differences(was.data[name], now.data[name]))]
  for line in data:
    logging.warning('%s: the data is not that of the run so far, up to step %d: %s', folder.path, step, line)
  if step > experiment.total_steps:
    logging.warning('%s: the run is at step %d, beyond the end of the schedule (%d)', folder.path, step,
                    experiment.total_steps)
  return now, Changes(settings, data)


def _with_name_of(experiment: Experiment, now: Identity) -> Identity:
  """Give a run whose identity.json was removed the name that its checkpoints bear: they stay its own."""
  runs = experiment.checkpoints.runs()
  return now._replace(run=runs[0], ancestors=tuple(runs[1:])) if runs else now


def record(experiment: Experiment, now: Identity, changes: Changes, step: int) -> None:
  """Write the identity of the run from now on, which is at `step`."""
  written = identity.write(experiment.folder, experiment.recorded, now, step, changes.settings, changes.data,
                           gin_files.operative_config())
  experiment.checkpoints.belong_to(written, experiment.allow_changes)


def warn_of_other_statistics(experiment: Experiment) -> None:
  """Warn if SyncBatchNorm takes its statistics over another number of images than before: the devices have changed."""
  was = Devices.of_start(experiment.folder.read_command())
  now = experiment.devices
  if was is not None and was.statistics != now.statistics and '@sync_batch_norm' in gin_files.operative_config():
    logging.warning('%s: SyncBatchNorm took its statistics over %d images, from now on over %d: the result will be '
                    'that of neither; to avoid it, keep run.images_per_device x replicas',
                    experiment.folder.path, was.statistics, now.statistics)
