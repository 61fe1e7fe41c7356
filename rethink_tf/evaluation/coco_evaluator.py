"""CocoEvaluator: scores a detector on held-out photographs, during training and on its own (section 4)."""

import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import numpy as np
from absl import logging

from rethink_tf.console import duration
from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics
from rethink_tf.evaluation.periodic import PeriodicEvaluation
from rethink_tf.evaluation.postprocessing import ImageDetections, from_bytes, restore, to_bytes
from rethink_tf.evaluation.scoring import Scorer
from rethink_tf.ops.masks import PASTE_MODES
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Batch, Detections

PROGRESS_SECONDS = 10.0
PASTE_THREADS = 2


class DetectionEvaluator(PeriodicEvaluation):
  """Predicts all images of a source and hands the detections to a scorer, which is what metrics differ in.

  During training only prediction holds up the steps, since it needs the devices. Scoring and its report run in a thread
  beside them, one evaluation at a time; what fails there ends training at the next step. A kill loses no more than the
  scoring under way.

  Of several workers each predicts its share of the batches; the others then leave theirs to the chief, in a thread too.

  Args:
    eval_input, predict, source, run_folder, every, at_end: as for CocoEvaluator.
    make_scorer: called with the function (step, name, bytes) -> path that writes into the folder of a step.
    mask_paste: 'accurate' or 'detectron' (ops/masks.py).
  """

  main_metric = 'box/AP'

  def __init__(
    self,
    eval_input: Any,
    predict: Callable[[Batch], Detections],
    source: Any,
    run_folder: RunFolder,
    every: int,
    at_end: bool,
    make_scorer: Callable[[Callable[[int, str, bytes], str]], Scorer],
    mask_paste: str = 'accurate',
  ):
    super().__init__(run_folder, every, at_end)
    self._input, self._predict, self._source, self._mask_paste = eval_input, predict, source, mask_paste
    self._scorer = make_scorer(self._write)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='scoring')
    self._scoring: concurrent.futures.Future | None = None  # under way, or done and not yet looked at

  def evaluate(self, step: int, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Predicts, scores and reports.

    Args:
      step: iteration of the weights.
      extra: further fields of the line in metrics.jsonl.

    Returns:
      The scorer's figures in percent, of COCO 'box/AP', 'box/AP50', ..., 'mask/AP', ...; -1 where the data has no such
      object.

    Raises:
      UserError: the batches do not hold every image of the source exactly once.
    """
    self.start(step, extra)
    self.finish()
    return self.last

  def start(self, step: int, extra: Mapping[str, Any] | None = None) -> None:
    """Predicts, and leaves the rest to the scoring thread. Waits for the evaluation before it, if there is one."""
    if self._scoring is not None and not self._scoring.done():
      logging.info('the evaluation at step %d waits for the scoring of step %d', step, self._evaluated_step)
    self.finish()
    begin = time.monotonic()
    jobs = self._detect(step)
    self._evaluated_step = step
    self._scoring = self._thread.submit(self._score, step, jobs, begin, time.monotonic() - begin, extra or {})

  def finish(self) -> None:
    """Waits for the scoring under way; `last` is then set. Raises what failed in it."""
    scoring, self._scoring = self._scoring, None
    if scoring is not None:
      scoring.result()

  def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
    if self._scoring is not None and self._scoring.done():
      self.finish()
    super().on_train_batch_end(batch, logs)

  def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
    super().on_train_end(logs)
    self.finish()

  def _score(self, step: int, jobs: list[concurrent.futures.Future], begin: float, predict_seconds: float,
             extra: Mapping[str, Any]) -> None:
    """Everything after prediction; runs in the scoring thread."""
    found = [one for job in jobs for one in job.result()]
    jobs.clear()  # the masks are held once
    if not self.workers.chief:
      return self.workers.send(self._run_folder, f'detections-{step}', to_bytes(found))
    for data in self.workers.receive(self._run_folder, f'detections-{step}'):
      found += from_bytes(data)
    found = self._in_order(found)
    gt = self._source.annotations()
    scores = self._scorer.score(found, gt)
    seconds = time.monotonic() - begin
    timing = {'eval_seconds': round(seconds, 3), 'predict_seconds': round(predict_seconds, 3),
              'time': round(time.time(), 3)}
    self._run_folder.append_metrics({'kind': 'eval', 'step': step, **extra, **timing, **scores.metrics})
    self._scorer.print(step, scores.tables, seconds)
    self._scorer.save(step, scores, found, gt)
    self._keep(step, scores.metrics)

  def _detect(self, step: int) -> list[concurrent.futures.Future]:
    """Predicts all images -> a list[Found] for each batch, in time: masks are pasted in threads of their own."""
    total, done, jobs = -(-len(self._source.image_ids) // self.workers.count), 0, []
    start = shown = time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(PASTE_THREADS, thread_name_prefix='paste')
    try:
      for batch in self._input.dataset((self.workers.index, self.workers.count)):
        detections = self._predict(batch)
        labels = [np.asarray(field) for field in (batch.image_ids, batch.scales, batch.original_sizes)]
        detections = [None if field is None else np.asarray(field) for field in detections]
        jobs.append(pool.submit(restore, self._mask_paste, *labels, *detections))
        done += int((labels[0] >= 0).sum())
        if time.monotonic() - shown > PROGRESS_SECONDS:
          shown = time.monotonic()
          speed = done / (shown - start)
          print(
            f'evaluation at step {step}: {done}/{total} images, {speed:.3g} images/s, '
            f'ETA {duration(max(total - done, 0) / speed)}\n',
            end='', flush=True,
          )
    finally:
      pool.shutdown(wait=False)
    return jobs

  def _in_order(self, found: list[ImageDetections]) -> list[ImageDetections]:
    """The detections in the order of the source, whoever predicted them.

    Raises:
      UserError: an image is missing, or there twice.
    """
    expected = np.asarray(self._source.image_ids).tolist()
    by_id = {one.image_id: one for one in found}
    if len(found) != len(expected) or by_id.keys() != set(expected):
      raise UserError(
        f'{self._source.name}: evaluation saw {len(found)} images ({len(by_id)} different ones) and missed '
        f'{len(set(expected) - by_id.keys())} of {len(expected)}: build eval_input from the source that is scored'
      )
    return [by_id[image_id] for image_id in expected]


@gin.register
class CocoEvaluator(DetectionEvaluator):
  """Box, mask and keypoint AP of COCO on all images of a source, every so many steps and at the end of training.

  Each evaluation leaves under eval/step-00001234/ the figures by category (categories.csv) and predictions beside
  the ground truth (pictures.png), and the newest one the detections in COCO's submission format (bbox.json,
  segm.json, keypoints.json) with the ground truth, for comparing runs; a line in metrics.jsonl; and in TensorBoard the
  scalars eval/box/AP, eval/mask/AP, ... and the pictures.
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
    keypoint_sigmas: of keypoint similarity, one a keypoint; None: COCO's for 17 keypoints, 1/P each for another P.
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
    keypoint_sigmas: Sequence[float] | None = None,
  ):
    if mask_paste not in PASTE_MODES:
      raise UserError(f"CocoEvaluator.mask_paste = '{mask_paste}': choose one of {', '.join(PASTE_MODES)}")
    if backend not in coco_metrics.BACKENDS:
      raise UserError(f"CocoEvaluator.backend = '{backend}': choose one of {', '.join(coco_metrics.BACKENDS)}")
    super().__init__(
      eval_input, predict, source, run_folder, every, at_end,
      lambda write: Scorer(source, run_folder, write, num_pictures, backend, save_results, keypoint_sigmas), mask_paste,
    )
