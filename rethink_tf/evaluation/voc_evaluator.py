"""VocEvaluator: mean average precision by PASCAL VOC's rules (section 5.2), with the development kit's result files."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import gin
import numpy as np
import tensorflow as tf

from rethink_tf.errors import UserError, check_at_least
from rethink_tf.evaluation import voc_metrics
from rethink_tf.evaluation.coco_evaluator import DetectionEvaluator
from rethink_tf.evaluation.postprocessing import ImageDetections
from rethink_tf.evaluation.scoring import Scorer, Scores, boxes_of
from rethink_tf.storage.files import open_regular
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Batch, Detections, Input, Source, Views
from rethink_tf.visualization import drawing

COMPETITIONS = ('comp3', 'comp4')
COMPETITION = 'voc_competition'  # field of ground_truth.json: files of another one are of an earlier evaluation


class CategoryScores(NamedTuple):
  """Average precisions of one category, in [0, 1]; -1 without objects, difficult ones apart."""

  id: int
  name: str
  AP: float  # mean over IoU thresholds .5, .55, ..., .95
  AP50: float
  AP75: float


class VocScores(NamedTuple):
  """Metrics over all categories and by category."""

  metrics: dict[str, float]  # 'mAP' (at IoU .5), 'AP75', 'AP' (mean over .5 ... .95), in [0, 1]; -1 without objects
  categories: tuple[CategoryScores, ...]


class VocScorer(Scorer):
  """Scores the detections of all images of a source by VOC's rules.

  source: any; objects that its annotations mark as difficult, or else as crowds, are ignored.
  rule, competition, save_results: as for VocEvaluator.
  """

  COLUMNS = ('AP50', 'AP75', 'AP')
  LISTED = 'AP50'

  def __init__(self, source: Source, run_folder: RunFolder, write: Callable[[int, str, bytes], str], num_images: int,
               rule: str, competition: str, save_results: bool):
    super().__init__(source, run_folder, write, num_images, 'auto', save_results)
    self._rule, self._competition = rule, competition

  def score(self, detections: list[ImageDetections], gt: dict) -> Scores:
    """Return the average precision of the detections of all images; masks are ignored."""
    table = self._table(detections, gt)
    metrics = {f'voc/{name}': 100 * value if value >= 0 else -1.0 for name, value in table.metrics.items()}
    return Scores(metrics, {'voc': table}, self._results(detections, gt))

  def _table(self, found: list[ImageDetections], gt: dict) -> VocScores:
    class_of = {category_id: k for k, category_id in enumerate(self._category_ids, start=1)}
    objects = objects_of(gt['annotations'], class_of)
    detections = voc_metrics.Detections(
      np.repeat(np.array([one.image_id for one in found], np.int64), [len(one.scores) for one in found]),
      np.concatenate([np.zeros(0, np.int64), *(one.classes for one in found)]),
      np.concatenate([np.zeros([0, 4]), *(one.boxes for one in found)]),
      np.concatenate([np.zeros(0), *(one.scores for one in found)]))
    aps = voc_metrics.average_precisions(objects, detections, len(self._names), self._rule)
    at_50, at_75 = (voc_metrics.THRESHOLDS.index(threshold) for threshold in (0.5, 0.75))
    columns = np.stack([aps.mean(axis=0), aps[at_50], aps[at_75]])  # all -1 for a class without objects
    scored = aps[0] >= 0
    ap, ap50, ap75 = columns[:, scored].mean(axis=1).tolist() if scored.any() else (-1.0,) * 3
    rows = zip(self._category_ids, self._names, *columns.tolist(), strict=True)
    return VocScores({'mAP': ap50, 'AP75': ap75, 'AP': ap}, tuple(CategoryScores(*row) for row in rows))

  def _results(self, detections: list[ImageDetections], gt: dict) -> dict[str, list[str]]:
    """Return the development kit's lines by class: name of the image, score, xmin ymin xmax ymax counted from 1."""
    names = _image_names(gt)
    by_id = sorted(zip(self._category_ids, self._names, strict=True))  # the classes of a run may have another order
    lines: dict[str, list[str]] = {name: [] for _, name in by_id}
    for one in detections:
      for (y0, x0, y1, x1), score, k in zip(one.boxes.tolist(), one.scores.tolist(), one.classes.tolist(), strict=True):
        corners = f'{x0 + 1:.3f} {y0 + 1:.3f} {x1:.3f} {y1:.3f}'
        lines[self._names[k - 1]].append(f'{names[one.image_id]} {score:.9g} {corners}\n')
    return lines

  def _result_files(self, results: Mapping[str, list], gt: dict) -> Iterator[tuple[str, bytes]]:
    for k, (name, lines) in enumerate(results.items(), start=1):
      yield result_file(self._competition, name, k), ''.join(lines).encode()
    own = {'voc_rule': self._rule, COMPETITION: self._competition}
    yield 'ground_truth.json', json.dumps({**gt, **own}, separators=(',', ':')).encode()

  def _draw_truth(self, image: np.ndarray, annotations: list[dict], classes: Mapping[int, int]) -> np.ndarray:
    return drawing.draw(image, boxes_of(annotations), [classes[a['category_id']] for a in annotations], self._names)


def objects_of(annotations: Sequence[Mapping], class_of: Mapping[int, int]) -> voc_metrics.Objects:
  """Return annotations in COCO's format as ground truth; class_of: number of each category, from its id."""
  return voc_metrics.Objects(
    np.array([a['image_id'] for a in annotations], np.int64),
    np.array([class_of[a['category_id']] for a in annotations], np.int64),
    boxes_of(annotations),
    np.array([a.get('difficult', a.get('iscrowd', 0)) for a in annotations], bool))


def detections_of(results: Sequence[Mapping], class_of: Mapping[int, int]) -> voc_metrics.Detections:
  """Return detections in COCO's submission format; class_of as above."""
  return voc_metrics.Detections(
    np.array([r['image_id'] for r in results], np.int64),
    np.array([class_of[r['category_id']] for r in results], np.int64),
    boxes_of(results), np.array([r['score'] for r in results], np.float64))


def result_file(competition: str, category: str, k: int) -> str:
  """Return the name of the development kit's file of detections of class k, counted from 1."""
  safe = re.sub(r'[^\w.-]', '_', category)
  return f'{competition}_det_test_{safe if safe == category else f"{safe}-{k}"}.txt'


def read_results(folder: str, gt: dict) -> list[dict] | None:
  """Read detections from the development kit's files of an evaluation, into COCO's submission format.

  gt: the ground truth they were scored against, images and categories as in COCO's json.

  Returns:
    None if the folder has no such files.

  Raises:
    UserError: a line is not in the kit's format, or its image is not in the ground truth.
  """
  ids = {name: image_id for image_id, name in _image_names(gt).items()}
  categories = sorted(gt['categories'], key=lambda category: category['id'])
  competitions = sorted(COMPETITIONS, key=lambda one: one != gt.get(COMPETITION))  # that of the evaluation first
  names = ({category['id']: os.path.join(folder, result_file(competition, category['name'], k))
            for k, category in enumerate(categories, start=1)} for competition in competitions)
  paths = next((each for each in names if any(map(tf.io.gfile.exists, each.values()))), None)
  if paths is None:
    return None
  results = []
  for category_id, path in paths.items():
    if not tf.io.gfile.exists(path):
      continue
    with open_regular(path, 'r') as file:
      lines = file.read().splitlines()
    for number, line in enumerate(lines, start=1):
      try:
        name, *values = line.rsplit(maxsplit=5)
        score, x0, y0, x1, y1 = map(float, values)
      except ValueError as error:
        raise UserError(f"{path}:{number}: not the development kit's format, 'image score xmin ymin xmax ymax'"
                        ) from error
      if name not in ids:
        raise UserError(f'{path}:{number}: image {name} is not in the data, or several have this name: use the '
                        '--data_dir that was evaluated, or evaluate again')
      # The kit counts pixels from 1, and its corners are inclusive.
      results.append({'image_id': ids[name], 'category_id': category_id, 'score': score,
                      'bbox': [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]})
  return results


def _image_names(gt: dict) -> dict[int, str]:
  """Return the names of the images in the development kit, by id: those of the files, without folder and extension.

  Files that share one, in several folders or formats, are named by their paths with '/' as '_'; with the id where that
  is still shared.
  """
  paths = {image['id']: os.path.splitext(image['file_name'])[0] for image in gt['images']}
  names = {image_id: os.path.basename(path) for image_id, path in paths.items()}
  for image_id in _sharing(names):
    names[image_id] = paths[image_id].replace('/', '_')
  while sharing := _sharing(names):  # ends: a name with its own id can only be shared with one that has none yet
    for image_id in sharing:
      names[image_id] += f'-{image_id}'
  return names


def _sharing(names: Mapping[int, str]) -> list[int]:
  """Return the ids whose names are not unique."""
  counts = Counter(names.values())
  return [image_id for image_id, name in names.items() if counts[name] > 1]


@gin.register
class VocEvaluator(DetectionEvaluator):
  """VOC's average precision on all images of a source, every n steps and at the end of training.

  Each evaluation writes a line to metrics.jsonl; to eval/step-00001234/ the metrics by category (categories.csv) and
  predictions beside the ground truth, without difficult objects (predictions.png); and to TensorBoard the scalars
  eval/voc/mAP (IoU .5), eval/voc/AP75, eval/voc/AP (mean over .5, .55, ..., .95) and the rendered images. The newest
  one also keeps the detections in the development kit's format (comp4_det_test_<class>.txt) and the ground truth in
  COCO's (ground_truth.json). A file that cannot be written is logged and skipped.

  Args:
    eval_input, predict, source, run_folder, every, at_end, num_pictures: as for CocoEvaluator.
    rule: 'area' under the envelope of precision (2010 and later, thus val2012) or '11-point' (2007).
    competition: prefix of the files, 'comp3' for a detector trained on VOC only, 'comp4' for others.
    save_results: whether to write these files; those of this object's previous evaluation are removed.

  Raises:
    UserError: an unknown rule or competition.
  """

  main_metric = 'voc/mAP'

  def __init__(
    self,
    eval_input: Input,
    predict: Callable[[Batch | Views], Detections],
    source: Source,
    run_folder: RunFolder,
    every: int = 5000,
    at_end: bool = True,
    num_pictures: int = 6,
    rule: str = 'area',
    competition: str = 'comp4',
    save_results: bool = True,
  ):
    if rule not in voc_metrics.RULES:
      raise UserError(f"VocEvaluator.rule = '{rule}': choose one of {', '.join(voc_metrics.RULES)}")
    if competition not in COMPETITIONS:
      raise UserError(f"VocEvaluator.competition = '{competition}': choose one of {', '.join(COMPETITIONS)}")
    check_at_least('VocEvaluator', 0, num_pictures=num_pictures)
    super().__init__(
      eval_input, predict, source, run_folder, every, at_end,
      lambda write: VocScorer(source, run_folder, write, num_pictures, rule, competition, save_results),
    )
