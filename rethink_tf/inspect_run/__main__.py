"""Break down the errors of a run by kind: python -m rethink_tf.inspect_run --model_dir=runs/scratch_6x.

Reads the detections that the newest evaluation has saved in the run folder (bbox.json, segm.json, keypoints.json, or
VOC's files of each class) and the ground truth. Prints how much AP each kind of error costs (detection_errors.py,
keypoint_errors.py), the score threshold with the best F1 and the classes that are confused, and writes in the same
folder errors.txt, errors.json, errors_box.png (bars by kind and by class), worst_box.png (the most confident errors of
each kind), precision_recall_box.png, confusion_box.png and confusion_box.csv; likewise for masks, and the first of
these for keypoints.

From Python: rethink_tf.inspect_run.inspection.inspect.
"""

from __future__ import annotations

import os
import sys

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError
from rethink_tf.process import entry

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  command_line.define_flags()
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('results', None, 'folder with bbox.json; default: the newest one of the run', **here)
  flags.DEFINE_string('output', None, 'folder for tables and plots; default: that of the results', **here)
  flags.DEFINE_float('iou', 0.5, 'IoU of the confusion matrix and of the precision-recall curves', lower_bound=0.0,
                     upper_bound=1.0, **here)
  flags.DEFINE_float('score', None, 'lowest score in the confusion matrix; default: the threshold with the best F1',
                     lower_bound=0.0, upper_bound=1.0, **here)
  flags.DEFINE_integer('examples', 6, 'number of example images to draw for each kind of error', lower_bound=1, **here)


def main() -> None:
  """Break down the errors of the run on the command line."""
  from rethink_tf import gin_files

  command_line.refuse_weights()
  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not model_dir:
    raise UserError('no run to inspect: name its folder with --model_dir')
  gin_files.find(FLAGS.gin_file)
  entry.check_path(model_dir, 'no such run folder: check --model_dir')
  from rethink_tf import experiment
  from rethink_tf.inspect_run import inspection, results

  results_folder = os.path.expanduser(FLAGS.results or results.newest_results(model_dir))
  saved = f'{model_dir.rstrip("/")}/config.gin'
  command_line.configure([gin_files.saved_config(model_dir), *(f for f in FLAGS.gin_file if f != saved)]
                         if FLAGS.model_dir else FLAGS.gin_file)
  source = gin_files.argument(experiment.run, 'eval_source')(training=False)
  inspection.inspect(results_folder, source, os.path.expanduser(FLAGS.output or results_folder), FLAGS.examples,
                     gin_files.bound('CocoEvaluator.keypoint_sigmas'), FLAGS.iou, FLAGS.score)


if __name__ == '__main__':
  define_flags()
  entry.start(main)
