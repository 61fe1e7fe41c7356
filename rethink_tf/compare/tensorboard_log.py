"""TensorBoard log of a comparison: curves of all runs under the same tags, a layout of them, hyper-parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rethink_tf.compare.run_summary import Run

LAYOUT = {  # chart -> tags, as regular expressions
  'AP': {'box AP': ['eval/box/AP$'], 'mask AP': ['eval/mask/AP$'], 'AP50': ['eval/(box|mask)/AP50$'],
         'AP75': ['eval/(box|mask)/AP75$']},
  'Training': {'loss': ['loss/total$'], 'learning rate': ['learning_rate$']},
  'By images seen': {'box AP': ['by_images/box/AP$'], 'mask AP': ['by_images/mask/AP$']},
}


def write(runs: Sequence[Run], metric: str, logdir: str) -> None:
  """Write one event folder per run under `logdir`, the first also with the layout; an existing `logdir` is replaced.

  Tags: eval/box/AP, ..., loss/total and learning_rate by iterations; by_images/box/AP by images seen. The HPARAMS tab
  has initial weights, schedule, fraction, norm, learning rate and seed, with the final metric and the cost.
  """
  if tf.io.gfile.isdir(logdir):
    tf.io.gfile.rmtree(logdir)
  shown = [hyper_parameters(run) for run in runs]
  # The tab shows the first five columns in alphabetical order: leave out some that do not differ.
  same = {name for name in ('batch_size', 'images', 'seed') if len({each.get(name) for each in shown}) == 1}
  shown = [{name: value for name, value in each.items() if name not in same} for each in shown]
  shared = [_layout(), _experiment(shown, metric)]
  for run, each in zip(runs, shown, strict=True):
    folder = f'{logdir}/{run.name.replace("/", "_")}'
    _raw(folder, [*shared, *_session(run.name, each)])
    shared = []
    writer = tf.summary.create_file_writer(folder)
    with writer.as_default():
      _scalars(run, metric)
    writer.close()


def hyper_parameters(run: Run) -> dict[str, str | float]:
  """Return the hyper-parameters of a run for the HPARAMS tab; `write` leaves out some that do not differ."""
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
  """Write serialized summaries of plugins."""
  writer = tf.summary.create_file_writer(folder)
  with writer.as_default():
    for message in messages:
      tf.summary.experimental.write_raw_pb(message, step=0)
  writer.close()


def _layout() -> bytes:
  from tensorboard.plugins.custom_scalar import layout_pb2, summary

  categories = [
    layout_pb2.Category(title=title, chart=[
      layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=tags))
      for name, tags in charts.items()
    ]) for title, charts in LAYOUT.items()]
  return summary.pb(layout_pb2.Layout(category=categories)).SerializeToString()


def _experiment(shown: Sequence[dict[str, str | float]], metric: str) -> bytes:
  from tensorboard.plugins.hparams import api

  values = {}
  for run in shown:
    for name, value in run.items():
      values.setdefault(name, set()).add(value)
  kinds = {name: str if any(isinstance(value, str) for value in each) else float for name, each in values.items()}
  domains = [api.HParam(name, api.Discrete(sorted(each, key=str), dtype=kinds[name])) for name, each in values.items()]
  metrics = [api.Metric('final', display_name=f'final {metric}'), api.Metric('cost/pixels', display_name='pixels seen'),
             api.Metric('cost/seconds', display_name='seconds in training steps')]
  return api.hparams_config_pb(domains, metrics).SerializeToString()


def _session(name: str, shown: dict[str, str | float]) -> list[bytes]:
  from tensorboard.plugins.hparams import api, summary
  from tensorboard.plugins.hparams.api_pb2 import Status

  start = api.hparams_pb(shown, trial_id=name, start_time_secs=0.0)
  return [start.SerializeToString(), summary.session_end_pb(Status.STATUS_SUCCESS, 0.0).SerializeToString()]
