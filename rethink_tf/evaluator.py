"""CocoEvaluator: scores a detector on held-out photographs, during training and on its own (section 4)."""

import concurrent.futures
import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gin
import numpy as np
import tensorflow as tf
import tf_keras
from absl import logging
from pycocotools import mask as coco_mask

from rethink_tf import coco_metrics, pictures
from rethink_tf.data.images import ImageError
from rethink_tf.data.segmentation import to_rle
from rethink_tf.errors import UserError
from rethink_tf.ops.masks import PASTE_MODES, paste
from rethink_tf.run_folder import RunFolder
from rethink_tf.structures import Batch, Detections

SHOWN_SCORE = 0.5  # detections below it are scored but not drawn
SHOWN_TITLE = f'predictions, score >= {SHOWN_SCORE}'
PROGRESS_SECONDS = 10.0
PASTE_THREADS = 2
IOU_TYPES = {'box': 'bbox', 'mask': 'segm'}


class Found(NamedTuple):
  """The detections of one photograph, in its own pixels, best first."""

  image_id: int
  boxes: np.ndarray  # float64 [n, 4] y0 x0 y1 x1
  scores: np.ndarray  # float64 [n]
  classes: np.ndarray  # int64 [n] 1..K
  masks: list[dict] | None  # n compressed RLE, or None from a detector without masks


@gin.register
class CocoEvaluator(tf_keras.callbacks.Callback):
  """Box and mask AP of COCO on all images of a source, every so many steps and at the end of training.

  Each evaluation leaves under eval/step-00001234/ the figures by category (categories.csv) and predictions beside
  the ground truth (pictures.png), and the newest one the detections in COCO's submission format (bbox.json,
  segm.json); a line in metrics.jsonl; and in TensorBoard the scalars eval/box/AP, eval/mask/AP, ... and the pictures.
  A file that cannot be written is logged and costs nothing else.

  Args:
    eval_input: batches of every image of the source, once.
    predict: Batch -> Detections.
    source: the photographs and their ground truth.
    run_folder: where results go.
    every: iterations between evaluations during training; 0 = only at the end.
    at_end: also evaluate when training ends.
    num_pictures: photographs drawn, the same ones every time.
    mask_paste: 'accurate' or 'detectron' (ops/masks.py); tables of mask AP should say which.
    backend: 'auto', 'hotcoco' or 'pycocotools' (coco_metrics.py); the figures are the same.
    save_results: whether to write bbox.json and segm.json (about 150 MB for COCO's val2017, which is why those of
      this object's previous evaluation are then removed).

  Attributes:
    last: the figures of the latest evaluation in percent, {} before the first.

  Raises:
    UserError: an unknown mask_paste or backend.
  """

  def __init__(
    self,
    eval_input: Any,
    predict: Callable[[Batch], Detections],
    source: Any,
    run_folder: RunFolder,
    every: int = 5000,
    at_end: bool = True,
    num_pictures: int = 6,
    mask_paste: str = 'accurate',
    backend: str = 'auto',
    save_results: bool = True,
  ):
    super().__init__()
    if mask_paste not in PASTE_MODES:
      raise UserError(f"CocoEvaluator.mask_paste = '{mask_paste}': choose one of {', '.join(PASTE_MODES)}")
    if backend not in coco_metrics.BACKENDS:
      raise UserError(f"CocoEvaluator.backend = '{backend}': choose one of {', '.join(coco_metrics.BACKENDS)}")
    self._input, self._predict, self._source, self._run_folder = eval_input, predict, source, run_folder
    self._every, self._at_end, self._num_pictures = every, at_end, num_pictures
    self._mask_paste, self._backend, self._save_results = mask_paste, backend, save_results
    self._names = [category.name for category in source.categories]
    self._category_ids = [category.id for category in source.categories]
    self._evaluated_step = -1
    self._saved_results: list[str] = []
    self.last: dict[str, float] = {}

  def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
    """Makes up for an evaluation that a kill cut short after its checkpoint had been written."""
    step = self._step()
    lines = self._run_folder.read_metrics()
    if step and self._due(step) and not any(line['kind'] == 'eval' and line['step'] == step for line in lines):
      self.evaluate(step)

  def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
    step = self._step()
    if self._due(step) and step != self._evaluated_step:
      self.evaluate(step)

  def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
    step = self._step()
    if self._at_end and step != self._evaluated_step:
      self.evaluate(step)

  def _step(self) -> int:
    return int(self.model.optimizer.iterations.numpy())  # .numpy(): a mirrored variable has no int()

  def _due(self, step: int) -> bool:
    return bool(self._every) and step % self._every == 0

  def evaluate(self, step: int, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Predicts, scores and reports.

    Args:
      step: iteration of the weights.
      extra: further fields of the line in metrics.jsonl.

    Returns:
      COCO's figures in percent: 'box/AP', 'box/AP50', ..., 'mask/AP', ...; -1 where the data has no such object.

    Raises:
      UserError: the batches do not hold every image of the source exactly once.
    """
    start = time.monotonic()
    found = self._detect(step)
    gt = self._source.annotations()
    results = {'box': self._box_results(found)}
    if all(one.masks is not None for one in found):
      results['mask'] = self._mask_results(found)
    scores = {
      kind: coco_metrics.evaluate(gt, entries, IOU_TYPES[kind], self._backend) for kind, entries in results.items()
    }
    metrics = {
      f'{kind}/{name}': _percent(value) for kind, one in scores.items() for name, value in one.figures.items()
    }
    seconds = time.monotonic() - start
    self._evaluated_step, self.last = step, metrics
    timing = {'eval_seconds': round(seconds, 3), 'time': round(time.time(), 3)}
    self._run_folder.append_metrics({'kind': 'eval', 'step': step, **(extra or {}), **timing, **metrics})
    self._print(step, scores, seconds)
    self._save(step, metrics, results, scores, found, gt)
    return metrics

  def _detect(self, step: int) -> list[Found]:
    """Detections of all images; masks are pasted in threads while the next batch is predicted."""
    total, done = len(self._source.image_ids), 0
    start = shown = time.monotonic()
    jobs = []
    with concurrent.futures.ThreadPoolExecutor(PASTE_THREADS) as pool:
      for batch in self._input.dataset():
        detections = self._predict(batch)
        labels = [np.asarray(field) for field in (batch.image_ids, batch.scales, batch.original_sizes)]
        detections = [None if field is None else np.asarray(field) for field in detections]
        jobs.append(pool.submit(self._restore, *labels, *detections))
        done += int((labels[0] >= 0).sum())
        if time.monotonic() - shown > PROGRESS_SECONDS:
          shown = time.monotonic()
          speed = done / (shown - start)
          print(
            f'evaluation at step {step}: {done}/{total} images, {speed:.3g} images/s, '
            f'{_duration((total - done) / speed)} left',
            flush=True,
          )
      found = [one for job in jobs for one in job.result()]
    ids = [one.image_id for one in found]
    if sorted(ids) != sorted(np.asarray(self._source.image_ids).tolist()):
      missing = set(np.asarray(self._source.image_ids).tolist()) - set(ids)
      raise UserError(
        f'{self._source.name}: evaluation saw {len(ids)} images ({len(set(ids))} different ones) and missed '
        f'{len(missing)} of {total}: build eval_input from the source that is scored'
      )
    return found

  def _restore(self, image_ids, scales, sizes, boxes, scores, classes, masks) -> list[Found]:
    """One batch of detections (NumPy) in pixels of the photographs, without empty slots and filling images."""
    found = []
    for i in np.flatnonzero(image_ids >= 0):
      height, width = sizes[i].tolist()
      restored = boxes[i].astype(np.float64) / scales[i][[0, 1, 0, 1]]
      restored = np.clip(restored, 0, [height, width, height, width])
      slots = np.flatnonzero(
        (scores[i] > 0) & (classes[i] > 0) & (restored[:, 2] > restored[:, 0]) & (restored[:, 3] > restored[:, 1])
      )
      rles = None
      if masks is not None:
        rles = paste(masks[i][slots], restored[slots], height, width, self._mask_paste)
        rles = [{'size': rle['size'], 'counts': rle['counts'].decode('ascii')} for rle in rles]
      one = restored[slots], scores[i][slots].astype(np.float64), classes[i][slots].astype(np.int64), rles
      found.append(Found(int(image_ids[i]), *one))
    return found

  def _box_results(self, found: list[Found]) -> list[dict]:
    results = []
    for one in found:
      # Thousandths of a pixel halve the size of the file.
      xywh = np.round(np.concatenate([one.boxes[:, 1::-1], (one.boxes[:, 2:] - one.boxes[:, :2])[:, ::-1]], 1), 3)
      for box, score, number in zip(xywh.tolist(), one.scores.tolist(), one.classes.tolist(), strict=True):
        category = self._category_ids[number - 1]
        results.append({'image_id': one.image_id, 'category_id': category, 'bbox': box, 'score': score})
    return results

  def _mask_results(self, found: list[Found]) -> list[dict]:
    results = []
    for one in found:
      for rle, score, number in zip(one.masks, one.scores.tolist(), one.classes.tolist(), strict=True):
        category = self._category_ids[number - 1]
        results.append({'image_id': one.image_id, 'category_id': category, 'segmentation': rle, 'score': score})
    return results

  def _print(self, step: int, scores: Mapping[str, coco_metrics.CocoScores], seconds: float) -> None:
    print(f'evaluation at step {step}: {len(self._source.image_ids)} images of {self._source.name}, {seconds:.1f} s')
    for kind, one in scores.items():
      print(f'  {kind:4} ' + '  '.join(f'{name} {_percent(value):.1f}' for name, value in one.figures.items()))
    rows = [tables for tables in zip(*(one.categories for one in scores.values()), strict=True) if tables[0].AP >= 0]
    print(f'  {" / ".join(scores)} AP by category')
    cells = [(row[0].name, ' / '.join(f'{_percent(table.AP):.1f}' for table in row)) for row in rows]
    width = min(max((len(name) for name, _ in cells), default=0), 24)
    columns = max(1, 100 // (width + 15))
    for i in range(0, len(cells), columns):
      print('  ' + '  '.join(f'{name[:width]:{width}} {value:>11}' for name, value in cells[i : i + columns]))
    print(end='', flush=True)

  def _save(self, step, metrics, results, scores, found, gt) -> None:
    """Everything but the line in metrics.jsonl. What cannot be written is logged: it ends no training."""
    folder = self._run_folder.join('eval', f'step-{step:08d}')

    def write(name: str, data: bytes) -> str:
      """Beside and renamed, so that no half-written file is ever found under the name."""
      path = self._run_folder.join('eval', f'step-{step:08d}', name)
      with tf.io.gfile.GFile(path + '.tmp', 'wb') as file:
        file.write(data)
      tf.io.gfile.rename(path + '.tmp', path, overwrite=True)
      return path

    try:
      tf.io.gfile.makedirs(folder)
      with self._run_folder.writer().as_default(step=step):
        for name, value in metrics.items():
          if value >= 0:
            tf.summary.scalar(f'eval/{name}', value)
        write('categories.csv', self._categories_csv(scores))
        if self._save_results:
          outdated = self._saved_results
          self._saved_results = [
            write(f'{IOU_TYPES[kind]}.json', json.dumps(entries, separators=(',', ':')).encode())
            for kind, entries in results.items()
          ]
          for path in set(outdated) - set(self._saved_results):
            tf.io.gfile.remove(path)
        drawn, titles = [], []
        for image_id, truth, prediction in self._draw(found, gt):
          pair = pictures.sheet([truth, prediction], 2, ['ground truth', SHOWN_TITLE])
          tf.summary.image(f'eval/picture/{image_id}', pair[None])
          drawn += [truth, prediction]
          titles += [f'{image_id}: ground truth', f'{image_id}: {SHOWN_TITLE}']
        if drawn:
          write('pictures.png', pictures.png(pictures.sheet(drawn, 2 if len(drawn) == 2 else 4, titles)))
      self._run_folder.writer().flush()
    except (OSError, tf.errors.OpError) as error:
      reason = ' '.join(str(getattr(error, 'message', None) or error).split())
      logging.warning('%s: results of the evaluation could not be written: %s', folder, reason)

  def _categories_csv(self, scores: Mapping[str, coco_metrics.CocoScores]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    figures = ('AP', 'AP50', 'AP75', 'AR')
    writer.writerow(['id', 'category', *(f'{kind}/{name}' for kind in scores for name in figures)])
    for row in zip(*(one.categories for one in scores.values()), strict=True):
      values = [_percent(getattr(table, name)) for table in row for name in figures]
      writer.writerow([row[0].id, row[0].name, *(f'{value:.3f}' for value in values)])
    return text.getvalue().encode()

  def _draw(self, found: list[Found], gt: dict) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Image id, ground truth and predictions of a fixed choice of photographs, spread over those with objects."""
    ids = np.asarray(self._source.image_ids)
    candidates = np.flatnonzero(np.asarray(self._source.num_instances) > 0)
    chosen = np.unique(np.linspace(0, len(candidates) - 1, min(self._num_pictures, len(candidates))).astype(int))
    by_id = {one.image_id: one for one in found}
    classes = {category_id: k for k, category_id in enumerate(self._category_ids, start=1)}
    for i in candidates[chosen].tolist():
      try:
        image = self._source.load(i).image
      except ImageError as error:
        logging.warning('%s: not drawn: %s', self._source.name, error)
        continue
      truth = [a for a in gt['annotations'] if a['image_id'] == ids[i] and not a.get('iscrowd')]
      prediction = by_id[int(ids[i])]
      shown = np.flatnonzero(prediction.scores >= SHOWN_SCORE)
      masks = None if prediction.masks is None else [coco_mask.decode(prediction.masks[k]) for k in shown]
      yield (
        int(ids[i]),
        self._draw_truth(image, truth, classes),
        pictures.draw(image, prediction.boxes[shown], prediction.classes[shown], self._names,
                      prediction.scores[shown], masks),
      )

  def _draw_truth(self, image: np.ndarray, annotations: list[dict], classes: Mapping[int, int]) -> np.ndarray:
    xywh = np.array([a['bbox'] for a in annotations], np.float64).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, 1::-1], (xywh[:, :2] + xywh[:, 2:])[:, ::-1]], axis=1)
    masks = [coco_mask.decode(to_rle(a['segmentation'], *image.shape[:2])) for a in annotations]
    return pictures.draw(image, boxes, [classes[a['category_id']] for a in annotations], self._names, masks=masks)


def _percent(value: float) -> float:
  return 100.0 * value if value >= 0 else -1.0


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
