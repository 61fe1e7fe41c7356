"""Inspection of the training and held-out data of a configuration: a report, image grids and plots."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rethink_tf import experiment, gin_files
from rethink_tf.data import class_names, own_source
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.errors import UserError
from rethink_tf.evaluation import object_limits
from rethink_tf.inspect_data import plots, report
from rethink_tf.inspect_data.report import Split
from rethink_tf.storage import files
from rethink_tf.structures import LeftOut, Source


def inspect_configured(output: str, images: int = 16, read_files: str = 'read') -> tuple[Split, Split]:
  """Inspect the data of gin's present configuration; arguments and result as for `inspect`."""
  def argument(name: str) -> Any:
    return gin_files.argument(experiment.run, name)

  return inspect(argument('train_source'), argument('eval_source'),
                 lambda source: argument('train_input')(source, argument('batch_size'), argument('seed')), output,
                 images, read_files)


def inspect(train_source: Callable[..., Source], eval_source: Callable[..., Source],
            train_input: Callable[[Source], TrainInput], output: str, images: int = 16,
            read_files: str = 'read') -> tuple[Split, Split]:
  """Inspect both splits, print the report and write all files. The limits on objects are those of gin's configuration.

  Args:
    train_source, eval_source: constructors of the sources, called with training=True or False.
    train_input: constructor of the training input.
    output: folder for report.txt, report.json, statistics.png, training.png and suspicious.png.
    images: training images to draw; 0 writes no training.png.
    read_files: 'none', 'read' to find duplicate files, or 'decode' to find damaged ones too.

  Returns:
    The training and the held-out split.

  Raises:
    UserError: a source cannot be read, is not a detection source, or the output cannot be written.
  """
  trained_on = train_source(training=True)
  if not hasattr(trained_on, 'sizes'):  # those of images with classes have none
    raise UserError('this configuration trains a classifier: inspect_data supports detection data only')
  own_source.checked(trained_on)
  inputs = train_input(trained_on)
  training = report.analyse('training', train_source, read_files, trained_on)
  held_out = report.analyse('held out', eval_source, read_files)
  shared = report.shared_images(training, held_out)
  padding = report.padding(inputs)
  lacking = ((split.source.name, getattr(split.source, 'left_out', LeftOut())) for split in (training, held_out))
  notes = [f'{name}: {left_out.total} of {left_out.listed} images cannot be used: {left_out}'
           for name, left_out in lacking if left_out.total]
  try:
    class_names.match(held_out.source, trained_on.categories, trained_on.name)
  except UserError as error:
    notes.append(f'training refuses these splits: {error.line()}')
  if training.source is trained_on:
    notes.append(f'{trained_on.name}: only the {len(trained_on.image_ids)} images that are trained on are described')
  notes += (object_limits.describe(trained_on, object_limits.of_training(), 'trained on')
           + object_limits.describe(held_out.source, object_limits.of_evaluation()))
  text = report.as_text(training, held_out, inputs, padding, shared, notes)
  print(text, flush=True)
  files.write_outputs(output, {
    'report.txt': text,
    'report.json': json.dumps(report.as_json(training, held_out, padding, shared, notes), indent=1),
    'statistics.png': plots.plot_statistics(training, held_out, inputs, padding),
    'training.png': plots.plot_training_images(inputs, images) if images else None,
    'suspicious.png': plots.plot_problems([training, held_out])})
  print(f'reports and images: {output}')
  return training, held_out
