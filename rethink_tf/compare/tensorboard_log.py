"""TensorBoard log of a comparison: curves of all runs under the same tags, a layout of them, hyper-parameters."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rethink_tf.compare.groups import labelled_sides
from rethink_tf.compare.run_summary import SCRATCH, Run, metric_name
from rethink_tf.compare.tables import different_settings
from rethink_tf.errors import UserError, plain

_SIDE = '(scratch|pretrain)'  # in the name of a run
_OWN = re.compile(rf'\d{{2,}}_.*{_SIDE}')  # folder of a run in the log: see log_names
# TensorBoard's address that shows AP unsmoothed and colours runs by side; neither can be set in a log.
ADDRESS = f'http://localhost:6006/?smoothing=0&runColorGroup=regex:{_SIDE}#timeseries'
LAYOUT = {  # chart -> tags, as regular expressions; charts without a tag in any run are left out
  'AP': {'box AP': ['eval/box/AP$'], 'mask AP': ['eval/mask/AP$'], 'keypoint AP': ['eval/keypoint/AP$'],
         'VOC mAP': ['eval/voc/mAP$'], 'top-1 accuracy': ['eval/top-1$'], 'AP50': ['eval/(box|mask|keypoint)/AP50$'],
         'AP75': ['eval/(box|mask|keypoint|voc)/AP75$']},
  'Training': {'loss': ['loss/total$'], 'learning rate': ['learning_rate$']},
  'By images seen': {'box AP': ['by_images/box/AP$'], 'mask AP': ['by_images/mask/AP$']},
}

# Settings of hyper_parameters, and macros, which repeat settings.
_COVERED = re.compile(r'^[A-Z_]+$|(^|\.)(norm|base_rate|batch_size|num_images|fraction)$')


def write(runs: Sequence[Run], metric: str, logdir: str) -> None:
  """Write one event folder per run under `logdir`, the first also with the layout; an earlier log there is replaced.

  Tags: eval/box/AP, ..., loss/total and learning_rate against iterations; by_images/box/AP against images seen. The
  HPARAMS tab shows settings that differ between the runs (of a single run: initial weights and schedule), the final
  metric and the cost.

  Raises:
    UserError: `logdir` holds something that no comparison has written.
  """
  check(logdir)
  if tf.io.gfile.isdir(logdir):
    tf.io.gfile.rmtree(logdir)
  shown = _differing_settings(runs)
  shared = [_layout(runs), _experiment(shown, metric)]
  for (name, run), each in sorted(zip(log_names(runs), shown, strict=True), key=lambda pair: pair[0][0]):
    _raw(f'{logdir}/{name}', [*shared, *_session(name, each)])
    shared = []
    writer = tf.summary.create_file_writer(f'{logdir}/{name}')
    with writer.as_default():
      _scalars(run, metric)
    writer.close()


def _differing_settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """Return for each run the settings that are not the same in all; initial weights and schedule if there are none."""
  arms = {run.name: {'weights': side.arm} for _, side in labelled_sides(runs) for run in side.runs if side.arm}
  found = [hyper_parameters(run) | arms.get(run.name, {}) for run in runs]
  compared = {key for run in runs for key, _ in run.twin_key}
  for name, values in (different_settings(runs) if len(runs) > 1 else {}).items():
    if name in compared and not _COVERED.search(name):
      for settings, value in zip(found, values, strict=True):
        settings[name] = value
  names = {name for settings in found for name in settings}
  differing = {name for name in names if len({settings.get(name) for settings in found}) > 1} or {'init', 'schedule'}
  return [{name: value for name, value in settings.items() if name in differing} for settings in found]


@contextlib.contextmanager
def replacing(logdir: str) -> Iterator[str]:
  """Yield a temporary folder that replaces the log if no error is raised; on gs://, the log's own folder.

  Raises:
    OSError, tf.errors.OpError: the storage refuses it.
  """
  if '://' in logdir:
    yield logdir
    return
  parent, name = os.path.split(logdir)
  temporary = os.path.join(parent, f'.{name}.{os.getpid()}.partial')
  try:
    yield temporary
    check(logdir)
    if tf.io.gfile.isdir(logdir):
      tf.io.gfile.rmtree(logdir)
    tf.io.gfile.rename(temporary, logdir)
  finally:
    if tf.io.gfile.isdir(temporary):
      tf.io.gfile.rmtree(temporary)


def check(logdir: str) -> None:
  """Check that a folder is missing, empty or the log of a comparison, which may be replaced.

  Raises:
    UserError: it holds something else, such as the log of a run.
  """
  if not tf.io.gfile.isdir(logdir):
    return
  for path, folders, names in tf.io.gfile.walk(logdir):
    top = path.rstrip('/') == logdir.rstrip('/')
    for name in (*folders, *names):
      own = _OWN.match(name) if top else name.startswith('events.out.tfevents.')
      if not own or (name in names) == top or os.path.islink(os.path.join(path, name)):
        raise UserError(f'{plain(os.path.join(path, name))}: no comparison has written it, and a report replaces this '
                        'TensorBoard log: move it, or choose another --output')


def command(output: str) -> str:
  """Return the command that shows the log of a report, and the address to open."""
  return f'tensorboard --logdir={output}/tensorboard, then open {ADDRESS}'


def log_names(runs: Sequence[Run]) -> list[tuple[str, Run]]:
  """Return each run with its name in the log, in the order of `runs`.

  A number in front sorts them as on the page, since TensorBoard's colours follow the order of names: from scratch, then
  pre-trained, the shortest schedule first. The side, which ADDRESS colours by, is added to names that lack it.
  """
  ordered = [run.name for _, side in labelled_sides(runs) for run in side.runs]
  digits, found = max(2, len(str(len(runs)))), []
  for run in runs:
    own, named = 'scratch' if run.init == SCRATCH else 'pretrain', re.search(_SIDE, run.name)
    side = '' if named is not None and named[1] == own else f'{own}_'
    found.append((f'{ordered.index(run.name) + 1:0{digits}}_{side}{run.name.replace("/", "_")}', run))
  return found


def hyper_parameters(run: Run) -> dict[str, str | float]:
  """Return the hyper-parameters of a run for the HPARAMS tab; `write` leaves out those that do not differ.

  `write` also adds the name of the initial weights where there are several.
  """
  settings = run.settings

  def first(*names: str) -> Any:
    return next((settings[name] for name in names if settings.get(name) is not None), None)

  values = {
    'init': run.init, 'schedule': run.schedule, 'seed': float(run.seed),
    'norm': str(first('ResNet.norm', 'FPN.norm') or 'none').lstrip('@'),
    'learning_rate': first('KTimesSchedule.base_rate', 'EpochSchedule.base_rate'),
    'batch_size': first('run.batch_size'),
    'images': first('train/coco.num_images', 'coco.num_images', 'train/synthetic.num_images', 'voc.num_images'),
    'fraction': first('train/coco.fraction', 'coco.fraction'),
  }
  return {name: value if isinstance(value, str) else float(value) for name, value in values.items()
          if value is not None}


def _scalars(run: Run, metric: str) -> None:
  for name, (steps, values) in {'loss/total': run.losses, 'learning_rate': run.rates}.items():
    for step, value in zip(steps, values, strict=True):
      tf.summary.scalar(name, value, int(step))
  for name, values in run.curve.metrics.items():
    for step, images, value in zip(run.curve.steps, run.curve.images, values, strict=True):
      if np.isfinite(value):
        tf.summary.scalar(f'eval/{name}', value, int(step))
        if name.endswith('/AP') and np.isfinite(images):
          tf.summary.scalar(f'by_images/{name}', value, int(images))
  if np.isfinite(final := run.final(metric)):
    tf.summary.scalar('final', final, int(run.curve.steps[-1]))
  tf.summary.scalar('cost/pixels', run.seen.pixels, int(run.curve.steps[-1]))
  tf.summary.scalar('cost/seconds', run.curve.seconds[-1], int(run.curve.steps[-1]))


def _raw(folder: str, messages: Sequence[bytes]) -> None:
  """Write serialized summaries of TensorBoard plugins."""
  writer = tf.summary.create_file_writer(folder)
  with writer.as_default():
    for message in messages:
      tf.summary.experimental.write_raw_pb(message, step=0)
  writer.close()


def _layout(runs: Sequence[Run]) -> bytes:
  from tensorboard.plugins.custom_scalar import layout_pb2, summary

  metrics = {name for run in runs for name in run.curve.metrics}
  known = ['loss/total', 'learning_rate', *(f'{prefix}/{name}' for name in metrics for prefix in ('eval', 'by_images'))]
  shown = {title: {name: tags for name, tags in charts.items()
                   if any(re.match(tag, one) for tag in tags for one in known)} for title, charts in LAYOUT.items()}
  categories = [
    layout_pb2.Category(title=title, chart=[
      layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=tags))
      for name, tags in charts.items()
    ]) for title, charts in shown.items() if charts]
  return summary.pb(layout_pb2.Layout(category=categories)).SerializeToString()


def _experiment(shown: Sequence[dict[str, str | float]], metric: str) -> bytes:
  from tensorboard.plugins.hparams import api

  values = {}
  for run in shown:
    for name, value in run.items():
      values.setdefault(name, set()).add(value)
  kinds = {name: str if any(isinstance(value, str) for value in each) else float for name, each in values.items()}
  domains = [api.HParam(name, api.Discrete(sorted(each, key=str), dtype=kinds[name])) for name, each in values.items()]
  metrics = [api.Metric('final', display_name=f'final {metric_name(metric)}'),
             api.Metric('cost/pixels', display_name='pixels seen'),
             api.Metric('cost/seconds', display_name='seconds in training steps')]
  return api.hparams_config_pb(domains, metrics).SerializeToString()


def _session(name: str, shown: dict[str, str | float]) -> list[bytes]:
  from tensorboard.plugins.hparams import api, summary
  from tensorboard.plugins.hparams.api_pb2 import Status

  start = api.hparams_pb(shown, trial_id=name, start_time_secs=0.0)
  return [start.SerializeToString(), summary.session_end_pb(Status.STATUS_SUCCESS, 0.0).SerializeToString()]
