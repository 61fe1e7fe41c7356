"""VocEvaluator: mean average precision by PASCAL VOC's rules (section 5.2), with its files of results."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gin
import numpy as np
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.evaluation import voc_metrics
from rethink_tf.evaluation.coco_evaluator import DetectionEvaluator
from rethink_tf.evaluation.postprocessing import ImageDetections
from rethink_tf.evaluation.scoring import Scorer, Scores
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Batch, Detections
from rethink_tf.visualization import pictures

COMPETITIONS = ('comp3', 'comp4')


class CategoryScores(NamedTuple):
  """Average precisions of one category, in [0, 1]; -1 where every object of it is difficult, or there is none."""

  id: int
  name: str
  AP: float  # mean over IoU thresholds .5, .55, ..., .95
  AP50: float
  AP75: float


class VocScores(NamedTuple):
  """Figures over all categories and the table by category."""

  figures: dict[str, float]  # 'mAP' (at IoU .5), 'AP75', 'AP' (mean over .5 ... .95), in [0, 1]; -1 without objects
  categories: tuple[CategoryScores, ...]


class VocScorer(Scorer):
  """Scores the detections of all images of a source by VOC's rules.

  source: any; objects that its annotations call "difficult" (or, where they do not say, crowds) count neither way.
  rule, competition, save_results: as for VocEvaluator.
  """

  FIGURES = ('AP50', 'AP75', 'AP')
  LISTED = 'AP50'

  def __init__(self, source: Any, run_folder: RunFolder, write: Callable[[int, str, bytes], str], num_pictures: int,
               rule: str, competition: str, save_results: bool):
    super().__init__(source, run_folder, write, num_pictures, 'auto', save_results)
    self._rule, self._competition = rule, competition

  def score(self, found: list[ImageDetections], gt: dict) -> Scores:
    """Average precision of the detections of all images; masks play no part."""
    table = self._table(found, gt)
    metrics = {f'voc/{name}': 100 * value if value >= 0 else -1.0 for name, value in table.figures.items()}
    return Scores(metrics, {'voc': table}, self._results(found, gt))

  def _table(self, found: list[ImageDetections], gt: dict) -> VocScores:
    number_of = {category_id: k for k, category_id in enumerate(self._category_ids, start=1)}
    annotations = gt['annotations']
    xywh = np.array([a['bbox'] for a in annotations], np.float64).reshape(-1, 4)
    objects = voc_metrics.Objects(
      np.array([a['image_id'] for a in annotations], np.int64),
      np.array([number_of[a['category_id']] for a in annotations], np.int64),
      np.concatenate([xywh[:, 1::-1], (xywh[:, :2] + xywh[:, 2:])[:, ::-1]], axis=1),
      np.array([a.get('difficult', a.get('iscrowd', 0)) for a in annotations], bool))
    finds = voc_metrics.Finds(
      np.repeat(np.array([one.image_id for one in found], np.int64), [len(one.scores) for one in found]),
      np.concatenate([np.zeros(0, np.int64), *(one.classes for one in found)]),
      np.concatenate([np.zeros([0, 4]), *(one.boxes for one in found)]),
      np.concatenate([np.zeros(0), *(one.scores for one in found)]))
    aps = voc_metrics.average_precisions(objects, finds, len(self._names), self._rule)
    at_50, at_75 = (voc_metrics.THRESHOLDS.index(threshold) for threshold in (0.5, 0.75))
    columns = np.stack([aps.mean(axis=0), aps[at_50], aps[at_75]])  # a class without objects is -1 in all
    scored = aps[0] >= 0
    ap, ap50, ap75 = columns[:, scored].mean(axis=1).tolist() if scored.any() else (-1.0,) * 3
    rows = zip(self._category_ids, self._names, *columns.tolist(), strict=True)
    return VocScores({'mAP': ap50, 'AP75': ap75, 'AP': ap}, tuple(CategoryScores(*row) for row in rows))

  def _results(self, found: list[ImageDetections], gt: dict) -> dict[str, list[str]]:
    """By class: the development kit's lines, name of the image, score, xmin ymin xmax ymax counted from 1."""
    names = _image_names(gt)
    lines: dict[str, list[str]] = {name: [] for name in self._names}
    for one in found:
      for (y0, x0, y1, x1), score, number in zip(one.boxes.tolist(), one.scores.tolist(), one.classes.tolist(),
                                                 strict=True):
        corners = f'{x0 + 1:.3f} {y0 + 1:.3f} {x1:.3f} {y1:.3f}'
        lines[self._names[number - 1]].append(f'{names[one.image_id]} {score:.9g} {corners}\n')
    return lines

  def _result_files(self, results: Mapping[str, list], gt: dict) -> Iterator[tuple[str, bytes]]:
    for k, (name, lines) in enumerate(results.items(), start=1):
      yield result_file(self._competition, name, k), ''.join(lines).encode()

  def _draw_truth(self, image: np.ndarray, annotations: list[dict], classes: Mapping[int, int]) -> np.ndarray:
    xywh = np.array([a['bbox'] for a in annotations], np.float64).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, 1::-1], (xywh[:, :2] + xywh[:, 2:])[:, ::-1]], axis=1)
    return pictures.draw(image, boxes, [classes[a['category_id']] for a in annotations], self._names)


def result_file(competition: str, category: str, number: int) -> str:
  """Name of the development kit's file of detections of a class, the number-th one from 1 on."""
  safe = re.sub(r'[^\w.-]', '_', category)
  return f'{competition}_det_test_{safe if safe == category else f"{safe}-{number}"}.txt'


def read_results(folder: str, gt: dict) -> list[dict] | None:
  """The detections that an evaluation has left in the development kit's files, in COCO's submission format.

  gt: what they were scored against, images and categories (by id) as in COCO's json.

  Returns:
    None where the folder has no such files.

  Raises:
    UserError: a line is none of the kit's, or its image is not in the ground truth.
  """
  ids = {name: image_id for image_id, name in _image_names(gt).items()}
  categories = sorted(gt['categories'], key=lambda category: category['id'])
  names = ({category['id']: os.path.join(folder, result_file(competition, category['name'], k))
            for k, category in enumerate(categories, start=1)} for competition in COMPETITIONS)
  paths = next((each for each in names if any(map(tf.io.gfile.exists, each.values()))), None)
  if paths is None:
    return None
  results = []
  for category_id, path in paths.items():
    if not tf.io.gfile.exists(path):
      continue
    with tf.io.gfile.GFile(path) as file:
      lines = file.read().splitlines()
    for number, line in enumerate(lines, start=1):
      try:
        name, *values = line.rsplit(maxsplit=5)
        score, x0, y0, x1, y1 = map(float, values)
      except ValueError as error:
        raise UserError(f"{path}:{number}: is not the development kit's 'image score xmin ymin xmax ymax'") from error
      if name not in ids:
        raise UserError(f'{path}:{number}: image {name} is not in the data: give the --data_dir that was evaluated')
      # The kit counts pixels from 1, and its corners are inclusive.
      results.append({'image_id': ids[name], 'category_id': category_id, 'score': score,
                      'bbox': [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]})
  return results


def _image_names(gt: dict) -> dict[int, str]:
  """What the development kit calls the images, by id."""
  return {image['id']: os.path.splitext(os.path.basename(image['file_name']))[0] for image in gt['images']}


@gin.register
class VocEvaluator(DetectionEvaluator):
  """VOC's average precision on all images of a source, every so many steps and at the end of training.

  Each evaluation leaves under eval/step-00001234/ the figures by category (categories.csv) and predictions beside
  the ground truth, without difficult objects (pictures.png), and the newest one the detections in the development
  kit's format (comp4_det_test_<class>.txt); a line in metrics.jsonl; and in TensorBoard the scalars eval/voc/mAP
  (IoU .5), eval/voc/AP75, eval/voc/AP (mean over .5, .55, ..., .95) and the pictures. A file that cannot be written is
  logged and costs nothing else.

  Args:
    eval_input, predict, source, run_folder, every, at_end, num_pictures: as for CocoEvaluator.
    rule: 'area' under the envelope of precision (2010 and later, and so val2012) or '11-point' (2007).
    competition: 'comp3' names the files of a detector that saw nothing but VOC, 'comp4' of any other.
    save_results: whether to write those files; the ones of this object's previous evaluation are then removed.

  Raises:
    UserError: an unknown rule or competition.
  """

  main_metric = 'voc/mAP'

  def __init__(
    self,
    eval_input: Any,
    predict: Callable[[Batch], Detections],
    source: Any,
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
    super().__init__(
      eval_input, predict, source, run_folder, every, at_end,
      lambda write: VocScorer(source, run_folder, write, num_pictures, rule, competition, save_results),
    )
