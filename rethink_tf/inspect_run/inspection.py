"""Error breakdown of the detections that an evaluation has saved, with tables and plots."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from rethink_tf.errors import UserError
from rethink_tf.evaluation import ceilings, coco_metrics, scoring
from rethink_tf.inspect_run import detection_errors, keypoint_errors, plots, report
from rethink_tf.inspect_run.detection_errors import Breakdown
from rethink_tf.inspect_run.keypoint_errors import KeypointBreakdown
from rethink_tf.inspect_run.results import FILES, VOC_FILES, read_results, scored_truth
from rethink_tf.storage import files
from rethink_tf.structures import Source


def inspect(results_folder: str, source: Source, output: str | None = None, examples: int = 6,
            keypoint_sigmas: Sequence[float] | None = None) -> dict[str, Breakdown | KeypointBreakdown]:
  """Break down the errors of all results in a folder, print the tables and write the files.

  The limits on objects that it names are those of gin's configuration.

  Args:
    results_folder: folder with bbox.json, segm.json, keypoints.json or VOC's files of each class (newest_results).
    source: data set that was evaluated, as gin_files.argument(experiment.run, 'eval_source')(training=False).
    output: folder for errors.txt, errors.json, errors_<kind>.png and worst_<kind>.png; None: results_folder.
    examples: images of each kind of error in worst_<kind>.png.
    keypoint_sigmas: sigmas of keypoint similarity; None: COCO's.

  Returns:
    Breakdowns by kind: 'box', 'mask', 'keypoint'.

  Raises:
    UserError: there are no results, a file has another format or is of another data set, or the output cannot be
      written.
  """
  output = output or results_folder
  gt = scored_truth(results_folder, source)
  notes = ceilings.describe(source, ceilings.of_evaluation())
  limits = coco_metrics.MAX_DETECTIONS | gt.get('max_detections', {})
  breakdowns, text = {}, []
  for kind, name, results in read_results(results_folder, gt, source.name):
    title = f'{os.path.join(results_folder, name)}: {len(gt["images"])} images of {source.name}'
    title += ", matched and averaged COCO's way" if name == VOC_FILES else ''  # within a point or so of voc/mAP
    title += ''.join(f'\n  {note}' for note in notes)
    if kind == 'keypoint':
      truth = scoring.keypoint_truth(gt, source.num_keypoints)
      breakdown = keypoint_errors.analyse(truth, results, keypoint_sigmas or scoring.default_sigmas(
        source.num_keypoints), examples, max_detections=limits['keypoints'])
      text.append(report.keypoint_table(breakdown, title))
      plot = plots.plot_keypoints(breakdown)
    elif kind == 'mask' and scoring.without_masks(gt['annotations']):
      continue
    else:
      truth, iou_type = (coco_metrics.mask_truth(gt), 'segm') if kind == 'mask' else (gt, 'bbox')
      breakdown = detection_errors.analyse(truth, results, iou_type, examples, limits[iou_type])
      text.append(report.detection_table(breakdown, kind, title))
      plot = plots.plot_detections(breakdown, kind)
    breakdowns[kind] = breakdown
    print(text[-1], flush=True)
    files.write_output(os.path.join(output, f'errors_{kind}.png'), plot)
    grid = plots.plot_examples(breakdown, source, truth, results, kind, examples)
    if grid is not None:
      files.write_output(os.path.join(output, f'worst_{kind}.png'), grid)
  if not breakdowns:
    raise UserError(f'{results_folder}: holds neither {" nor ".join(FILES.values())} nor {VOC_FILES}')
  files.write_output(os.path.join(output, 'errors.txt'), '\n'.join(text))
  record = {kind: report.as_json(breakdown) for kind, breakdown in breakdowns.items()}
  files.write_output(os.path.join(output, 'errors.json'), json.dumps(record, indent=1))
  print(f'plots and tables: {output}')
  return breakdowns
