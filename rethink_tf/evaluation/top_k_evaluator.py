"""TopKEvaluator: top-1 and top-5 accuracy of a classifier on the standard centre crop of held-out images."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gin
import numpy as np
import tensorflow as tf

from rethink_tf.console import Progress
from rethink_tf.data.batching import errors_of
from rethink_tf.errors import UserError, check_at_least
from rethink_tf.evaluation.periodic import Coverage, PeriodicEvaluation
from rethink_tf.storage import files
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Input, LabelledImages, Source
from rethink_tf.visualization import drawing

KS = (1, 5)
_TRUE_COLOUR, _FALSE_COLOUR = (58, 154, 91), (209, 73, 91)  # of the frames
_COLUMNS, _FRAME, _WIDTH = 6, 6, 220


class Predictions(NamedTuple):
  """Predictions of a classifier, one row per image."""

  image_ids: np.ndarray  # int64 [N]
  labels: np.ndarray  # int32 [N, T], -1 = empty slot
  ranks: np.ndarray  # int64 [N] number of classes that score higher than the best of the labels
  entropies: np.ndarray  # float64 [N] cross-entropy of targets 1/k on k labels
  classes: np.ndarray  # int64 [N] with the highest score
  probabilities: np.ndarray  # float64 [N] of these classes
  readable: np.ndarray  # bool [N]


def rank_labels(logits: np.ndarray, labels: np.ndarray, image_ids: np.ndarray) -> Predictions:
  """Rank labels [N, T] among the classes by logits [N, L]; rows of image_id -1 are left out.

  Of equal scores the lower class ranks higher. A row that is not finite has the rank L of its labels.
  """
  real = np.asarray(image_ids) >= 0
  logits, labels = np.asarray(logits, np.float64)[real], np.asarray(labels)[real]
  finite = np.isfinite(logits).all(axis=1)
  logits = np.where(finite[:, None], logits, 0.0)
  order = np.argsort(-logits, axis=1, kind='stable')
  class_ranks = np.argsort(order, axis=1)  # [N, L]
  used = labels >= 0
  own = np.maximum(labels, 0)
  ranks = np.where(used, np.take_along_axis(class_ranks, own, 1), logits.shape[1]).min(axis=1)
  shifted = logits - logits.max(axis=1, keepdims=True)
  log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
  entropies = -(np.take_along_axis(log_probabilities, own, 1) * used).sum(1) / np.maximum(used.sum(1), 1)
  first = order[:, 0]
  probabilities = np.exp(np.take_along_axis(log_probabilities, first[:, None], 1))[:, 0]
  return Predictions(np.asarray(image_ids)[real], labels, np.where(finite, ranks, logits.shape[1]), entropies, first,
                     probabilities, np.ones(len(first), bool))


_NONE = rank_labels(np.zeros([0, 1]), np.zeros([0, 1], np.int32), np.zeros([0], np.int64))


@gin.register
class TopKEvaluator(PeriodicEvaluation):
  """Top-1 and top-5 accuracy on all images of a source, every n steps and at the end of training.

  An image counts for top-k if one of its labels is among the k highest scores; with fewer than five classes top-5 is
  100 %. Each evaluation writes a line to metrics.jsonl; to eval/step-00001234/ the accuracy by class (categories.csv)
  and images with the predicted class, framed green or red (predictions.png); and to TensorBoard the scalars eval/top-1,
  eval/top-5, eval/cross-entropy and the rendered images. A file that cannot be written is logged and skipped.
  Unreadable images are not scored; the report and metrics.jsonl count them.

  Args:
    eval_input: batches of every image of the source, once.
    predict: LabelledImages -> logits [B, L].
    source: the images and their classes.
    run_folder, every, at_end: as in PeriodicEvaluation.
    num_pictures: number of images that are rendered, the same ones every time.
  """

  main_metric = 'top-1'

  def __init__(
    self,
    eval_input: Input,
    predict: Callable[[LabelledImages], tf.Tensor],
    source: Source,
    run_folder: RunFolder,
    every: int = 5000,
    at_end: bool = True,
    num_pictures: int = 24,
  ):
    check_at_least('TopKEvaluator', 0, num_pictures=num_pictures)
    super().__init__(run_folder, every, at_end)
    self._input, self._predict, self._source = eval_input, predict, source
    ids = np.asarray(source.image_ids)
    chosen = np.unique(np.linspace(0, len(ids) - 1, min(num_pictures, len(ids))).astype(int))
    self._shown_ids = ids[chosen]

  def evaluate(self, step: int, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Predict, score and report.

    Args:
      step: iteration of the weights.
      extra: further fields of the line in metrics.jsonl.

    Returns:
      'top-1' and 'top-5' in percent, 'cross-entropy' in nats.

    Raises:
      UserError: the batches do not hold every image of the source exactly once, or none can be read.
      WorkerLost: another worker has not sent its results.
    """
    start = time.monotonic()
    found, shown = self._predict_all(step)
    self._evaluated_step = step
    if not self.workers.chief:
      self.workers.send(self._run_folder, f'predictions-{step}', _to_bytes(found, shown))
      return self.last
    for data in self.workers.receive(self._run_folder, f'predictions-{step}'):
      others, crops = _from_bytes(data)
      found = Predictions(*(np.concatenate(columns) for columns in zip(found, others, strict=True)))
      shown |= crops
    self._check_complete(found)
    coverage = Coverage.of(self._source, int((~found.readable).sum()))
    shown = {image_id: crop for image_id, crop in shown.items() if image_id not in found.image_ids[~found.readable]}
    found = Predictions(*(column[found.readable] for column in found))
    metrics = {f'top-{k}': 100 * float((found.ranks < k).mean()) for k in KS}
    metrics['cross-entropy'] = float(found.entropies.mean())
    seconds = time.monotonic() - start
    self._keep(step, metrics)
    timing = {'eval_seconds': round(seconds, 3), 'time': round(time.time(), 3)}
    self._run_folder.append_metrics({'kind': 'eval', 'step': step, **(extra or {}), **timing,
                                     **coverage.fields(), **metrics})
    print(f'{self._title(step)}: {coverage}, {seconds:.1f} s\n  '
          + '  '.join(f'{name} {value:.4g}' for name, value in metrics.items()), flush=True)
    self._save(step, metrics, found, shown)
    return metrics

  def _predict_all(self, step: int) -> tuple[Predictions, dict[int, np.ndarray]]:
    """Return the predictions for this worker's images, and by image id the crops that are rendered."""
    progress = Progress(f'{self._title(step)}, images', -(-len(self._source.image_ids) // self.workers.count))
    batches, shown = [_NONE], {}
    with errors_of(self._input):
      for batch in self._input.dataset((self.workers.index, self.workers.count)):
        ids = np.asarray(batch.image_ids)
        batches.append(rank_labels(np.asarray(self._predict(batch)), np.asarray(batch.classes), ids))
        for row in np.flatnonzero(np.isin(ids, self._shown_ids)):
          shown[int(ids[row])] = batch.images[row].numpy()
        for _ in range(len(batches[-1].ranks)):
          progress.count()
    progress.close()
    used = [one for one in batches if len(one.ranks)] or batches[:1]
    found = Predictions(*(np.concatenate(column) for column in zip(*used, strict=True)))
    unreadable = np.asarray(self._source.image_ids)[sorted(getattr(self._input, 'unreadable', ()))]
    return found._replace(readable=~np.isin(found.image_ids, unreadable)), shown

  def _check_complete(self, found: Predictions) -> None:
    if sorted(found.image_ids.tolist()) != sorted(np.asarray(self._source.image_ids).tolist()):
      raise UserError(f'{self._source.name}: evaluation saw {len(found.image_ids)} of {len(self._source.image_ids)} '
                      'images: build eval_input from the source that is scored')
    if not found.readable.any():
      raise UserError(f'{self._source.name}: none of the {len(found.image_ids)} images can be read: there is nothing '
                      'to score')

  def _save(self, step: int, metrics: Mapping[str, float], found: Predictions, shown: Mapping[int, np.ndarray]) -> None:
    """Write everything but the line in metrics.jsonl. Errors of storage are logged and do not end training."""
    folder, grid = self._run_folder.join('eval', f'step-{step:08d}'), None
    with files.logged_failures(f'{folder}: results of the evaluation'):
      tf.io.gfile.makedirs(folder)
      self._write(step, 'categories.csv', self._categories_csv(found))
      if shown:
        grid = self._image_grid(found, shown)
        self._write(step, 'predictions.png', drawing.png(grid))
    with files.logged_failures(f'{folder}: its TensorBoard events'), self._run_folder.writer().as_default(step=step):
      for name, value in metrics.items():
        tf.summary.scalar(f'eval/{name}', value)
      if grid is not None:
        tf.summary.image('eval/images', grid[None])
      self._run_folder.writer().flush()

  def _categories_csv(self, found: Predictions) -> bytes:
    """Return a table of the number of images and the accuracies in percent, one class per line."""
    rows = [['id', 'category', 'images', *(f'top-{k}' for k in KS)]]
    for number, category in enumerate(self._source.categories):
      ranks = found.ranks[(found.labels == number).any(axis=1)]
      accuracies = (f'{100 * (ranks < k).mean():.3f}' if len(ranks) else '' for k in KS)
      rows.append([category.id, category.name, len(ranks), *accuracies])
    return files.as_csv(rows)

  def _image_grid(self, found: Predictions, shown: Mapping[int, np.ndarray]) -> np.ndarray:
    rows = {int(image_id): row for row, image_id in enumerate(found.image_ids)}
    names = [category.name for category in self._source.categories]
    images, titles = [], []
    for image_id in sorted(shown):
      row = rows[image_id]
      true = found.ranks[row] < 1
      framed = np.empty([side + 2 * _FRAME for side in shown[image_id].shape[:2]] + [3], np.uint8)
      framed[:] = _TRUE_COLOUR if true else _FALSE_COLOUR
      framed[_FRAME:-_FRAME, _FRAME:-_FRAME] = shown[image_id]
      images.append(framed)
      truth = ', '.join(names[k] for k in found.labels[row] if k >= 0)
      titles.append(f'{names[found.classes[row]]} {found.probabilities[row]:.2f}' + ('' if true else f', is {truth}'))
    return drawing.image_grid(images, min(_COLUMNS, len(images)), titles, _WIDTH)


def _to_bytes(found: Predictions, shown: Mapping[int, np.ndarray]) -> bytes:
  """Serialize a worker's results for the chief."""
  buffer = io.BytesIO()
  np.savez(buffer, **found._asdict(), **{f'image {image_id}': image for image_id, image in shown.items()})
  return buffer.getvalue()


def _from_bytes(data: bytes) -> tuple[Predictions, dict[int, np.ndarray]]:
  with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
    shown = {int(name[6:]): arrays[name] for name in arrays.files if name.startswith('image ')}
    return Predictions(*(arrays[name] for name in Predictions._fields)), shown
