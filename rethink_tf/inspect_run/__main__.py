"""Where a run loses average precision: python -m rethink_tf.inspect_run --model_dir=runs/scratch_6x.

Reads the detections that the newest evaluation has left in the run folder (bbox.json, segm.json, keypoints.json, or
VOC's files of each class) and the ground truth; prints how much AP each kind of error costs (error_breakdown.py,
keypoint_errors.py), and writes beside them errors.txt, errors.json, errors_box.png (bars by kind and by class) and
worst_box.png (the surest mistakes of each kind); the same for masks and keypoints.
"""

from __future__ import annotations

import json
import os
import sys

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError
from rethink_tf.inspect_run.figures import plot, plot_keypoints, worst_cases
from rethink_tf.inspect_run.report import as_json, keypoint_table, keypoints_as_json, table
from rethink_tf.inspect_run.results import FILES, VOC_FILES, newest_results, read_results

FLAGS = flags.FLAGS


def main() -> None:
  """Reads a run's results and breaks their errors down."""
  from rethink_tf import experiment, gin_files
  from rethink_tf.evaluation import scoring
  from rethink_tf.inspect_run import detection_errors, keypoint_errors
  from rethink_tf.storage import files

  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not model_dir:
    raise UserError('no run to inspect: name its folder with --model_dir')
  results_dir = os.path.expanduser(FLAGS.results or newest_results(model_dir))
  saved = f'{model_dir.rstrip("/")}/config.gin'
  command_line.configure([gin_files.saved_config(model_dir), *(f for f in FLAGS.gin_file if f != saved)]
                         if FLAGS.model_dir else FLAGS.gin_file)
  source = gin_files.argument(experiment.run, 'eval_source')(training=False)
  gt = source.annotations()
  output = os.path.expanduser(FLAGS.output or results_dir)
  text, record = [], {}
  for kind, name, results in read_results(results_dir, gt, source.name):
    title = f'{os.path.join(results_dir, name)}: {len(gt["images"])} images of {source.name}'
    title += ", matched and averaged COCO's way" if name == VOC_FILES else ''  # voc/mAP is within a point or so
    if kind == 'keypoint':
      truth = scoring.keypoint_truth(gt, source.num_keypoints)
      sigmas = gin_files.bound('CocoEvaluator.keypoint_sigmas') or scoring.default_sigmas(source.num_keypoints)
      breakdown = keypoint_errors.analyse(truth, results, sigmas, FLAGS.examples)
      text.append(keypoint_table(breakdown, title))
      record[kind] = as_json(breakdown) | keypoints_as_json(breakdown)
      picture = plot_keypoints(breakdown)
    else:
      truth, breakdown = gt, detection_errors.analyse(gt, results, 'segm' if kind == 'mask' else 'bbox', FLAGS.examples)
      text.append(table(breakdown, kind, title))
      record[kind] = as_json(breakdown)
      picture = plot(breakdown, kind)
    print(text[-1], flush=True)
    files.write_output(os.path.join(output, f'errors_{kind}.png'), picture)
    sheet = worst_cases(breakdown, source, truth, results, kind)
    if sheet is not None:
      files.write_output(os.path.join(output, f'worst_{kind}.png'), sheet)
  if not record:
    raise UserError(f'{results_dir}: holds neither {" nor ".join(FILES.values())} nor {VOC_FILES}')
  files.write_output(os.path.join(output, 'errors.txt'), '\n'.join(text).encode())
  files.write_output(os.path.join(output, 'errors.json'), json.dumps(record, indent=1).encode())
  print(f'pictures and tables: {output}')


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('results', None, 'folder with bbox.json; default: the newest of the run that has one', **_here)
  flags.DEFINE_string('output', None, 'where tables and pictures go; default: beside the results', **_here)
  flags.DEFINE_integer('examples', 6, 'pictures of each kind of error', lower_bound=1, **_here)
  command_line.start(main)
