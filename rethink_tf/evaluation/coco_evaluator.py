"""CocoEvaluator: box, mask and keypoint AP on held-out images, during training and on its own (section 4)."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import numpy as np
from absl import logging

from rethink_tf.console import Progress
from rethink_tf.data.batching import errors_of
from rethink_tf.errors import UserError, check_at_least
from rethink_tf.evaluation import coco_metrics
from rethink_tf.evaluation.periodic import Coverage, PeriodicEvaluation
from rethink_tf.evaluation.postprocessing import ImageDetections, from_bytes, restore, to_bytes
from rethink_tf.evaluation.scoring import EVALUATED, Scorer, restricted
from rethink_tf.ops.masks import PASTE_MODES
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Batch, Detections, Input, Source, Views

PASTE_THREADS = 2


class DetectionEvaluator(PeriodicEvaluation):
  """Predicts all images of a source and passes the detections to a scorer, which computes the metrics.

  Training waits for prediction only, which needs the devices. Scoring and its report run in a thread in parallel to the
  steps, one evaluation at a time; an error there is raised at the next step. A kill loses at most the evaluation that
  is being scored, which training repeats when it resumes; after a signal, training waits for it for some seconds
  (settle).

  Of several workers each predicts its share of the batches and sends the detections to the chief, in a thread too.

  Missing and unreadable images are not scored, and their objects neither; the report and metrics.jsonl count them.

  Args:
    eval_input, predict, source, run_folder, every, at_end: as for CocoEvaluator.
    make_scorer: called with the function (step, name, bytes) -> path that writes to the folder of a step.
    mask_paste: 'accurate' or 'detectron' (ops/masks.py).
  """

  main_metric = 'box/AP'

  def __init__(
    self,
    eval_input: Input,
    predict: Callable[[Batch | Views], Detections],
    source: Source,
    run_folder: RunFolder,
    every: int,
    at_end: bool,
    make_scorer: Callable[[Callable[[int, str, bytes], str]], Scorer],
    mask_paste: str = 'accurate',
  ):
    super().__init__(run_folder, every, at_end)
    self._input, self._predict, self._source, self._mask_paste = eval_input, predict, source, mask_paste
    self._scorer = make_scorer(self._write)
    self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='scoring')
    self._scoring: concurrent.futures.Future | None = None  # running, or done and not yet checked for errors

  def evaluate(self, step: int, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Predict, score and report.

    Args:
      step: iteration of the weights.
      extra: further fields of the line in metrics.jsonl.

    Returns:
      The scorer's metrics in percent, for COCO 'box/AP', 'box/AP50', ..., 'mask/AP', ...; -1 where the data has no such
      object.

    Raises:
      UserError: the batches do not hold every image of the source exactly once.
    """
    self.start(step, extra)
    self.finish()
    return self.last

  def start(self, step: int, extra: Mapping[str, Any] | None = None) -> None:
    """Predict, then score in a thread. Waits until the scoring of the previous evaluation is complete."""
    if self._scoring is not None and not self._scoring.done():
      logging.info('the evaluation at step %d waits for the scoring of step %d', step, self._evaluated_step)
    self.finish()
    begin = time.monotonic()
    jobs, unreadable = self._predict_all(step)
    self._evaluated_step = step
    self._scoring = self._executor.submit(self._score, step, jobs, unreadable, begin, time.monotonic() - begin,
                                          extra or {})

  def finish(self) -> None:
    """Wait for the scoring thread and set `last`. Raises the error of scoring, if any."""
    scoring = self._scoring
    if scoring is not None:
      concurrent.futures.wait([scoring])  # a signal may end this; `settle` knows of the thread then
      self._scoring = None
      scoring.result()

  def settle(self, seconds: float) -> None:
    """Wait at most `seconds` for the scoring thread, which the end of the process would cut off."""
    if self._scoring is not None and concurrent.futures.wait([self._scoring], seconds).not_done:
      logging.warning('the evaluation at step %d was not complete after %g s: what it has not written is lost; '
                      'training repeats it when it resumes', self._evaluated_step, seconds)

  def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
    if self._scoring is not None and self._scoring.done():
      self.finish()
    super().on_train_batch_end(batch, logs)

  def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
    super().on_train_end(logs)
    self.finish()

  def _predict_all(self, step: int) -> tuple[list[concurrent.futures.Future], list[int]]:
    """Predict this worker's images; return futures of the detections of each batch, and the unreadable images.

    Masks are pasted in threads.
    """
    progress = Progress(f'{self._title(step)}, images', -(-len(self._source.image_ids) // self.workers.count))
    pool = concurrent.futures.ThreadPoolExecutor(PASTE_THREADS, thread_name_prefix='paste')
    jobs = []
    try:
      with errors_of(self._input):
        for batch in self._input.dataset((self.workers.index, self.workers.count)):
          detections = self._predict(batch)
          labels = [np.asarray(field) for field in (batch.image_ids, batch.scales, batch.original_sizes)]
          detections = [None if field is None else np.asarray(field) for field in detections]
          jobs.append(pool.submit(restore, self._mask_paste, *labels, *detections))
          for _ in range(int((labels[0] >= 0).sum())):
            progress.count()
    finally:
      pool.shutdown(wait=False)
      progress.close()
    return jobs, [int(self._source.image_ids[i]) for i in sorted(getattr(self._input, 'unreadable', ()))]

  def _score(self, step: int, jobs: list[concurrent.futures.Future], unreadable: list[int], begin: float,
             predict_seconds: float, extra: Mapping[str, Any]) -> None:
    """Do everything that follows prediction; runs in the scoring thread."""
    detections = [one for job in jobs for one in job.result()]
    jobs.clear()  # frees a second reference to the masks
    if not self.workers.chief:
      return self.workers.send(self._run_folder, f'detections-{step}', to_bytes(detections, unreadable))
    for data in self.workers.receive(self._run_folder, f'detections-{step}'):
      for own, received in zip((detections, unreadable), from_bytes(data), strict=True):
        own += received
    detections = self._in_order(detections, set(unreadable))
    gt = restricted(self._source.annotations(), unreadable)
    coverage = Coverage.of(self._source, len(unreadable))
    scores = self._scorer.score(detections, gt)
    seconds = time.monotonic() - begin
    timing = {'eval_seconds': round(seconds, 3), 'predict_seconds': round(predict_seconds, 3),
              'time': round(time.time(), 3)}
    notes = {'notes': list(self.notes)} if self.notes else {}
    self._run_folder.append_metrics({'kind': 'eval', 'step': step, **extra, **timing, **coverage.fields(), **notes,
                                     **scores.metrics})
    self._scorer.print_tables(f'{self._title(step)}: {coverage}, {seconds:.1f} s', scores.tables, self.notes)
    self._scorer.save(step, scores, detections, {**gt, EVALUATED: timing['time']})
    self._keep(step, scores.metrics)

  def _in_order(self, detections: list[ImageDetections], unreadable: set[int]) -> list[ImageDetections]:
    """Return the detections of all workers in the order of the source, without the unreadable images.

    Raises:
      UserError: an image is missing or repeated, or none can be read.
    """
    expected = np.asarray(self._source.image_ids).tolist()
    by_id = {one.image_id: one for one in detections}
    if len(detections) != len(expected) or by_id.keys() != set(expected):
      raise UserError(
        f'{self._source.name}: evaluation saw {len(detections)} images ({len(by_id)} different ones) and missed '
        f'{len(set(expected) - by_id.keys())} of {len(expected)}: build eval_input from the source that is scored'
      )
    if unreadable >= by_id.keys():
      raise UserError(f'{self._source.name}: none of the {len(expected)} images can be read: there is nothing to score')
    return [by_id[image_id] for image_id in expected if image_id not in unreadable]


@gin.register
class CocoEvaluator(DetectionEvaluator):
  """Box, mask and keypoint AP of COCO on all images of a source, every n steps and at the end of training.

  Each evaluation writes a line to metrics.jsonl; to eval/step-00001234/ the metrics by category (categories.csv) and
  predictions beside the ground truth (predictions.png); to TensorBoard the scalars eval/box/AP, eval/mask/AP, ... and
  the rendered images. The newest one also keeps the detections in COCO's submission format (bbox.json, segm.json,
  keypoints.json) with the ground truth, for comparing runs. A file that cannot be written is logged and skipped.

  Args:
    eval_input: batches of every image of the source, once.
    predict: Batch or Views -> Detections.
    source: the images and their ground truth.
    run_folder: for the results.
    every: iterations between evaluations during training; 0 = only at the end.
    at_end: also evaluate when training ends.
    num_pictures: number of images that are rendered, the same ones every time.
    mask_paste: 'accurate' or 'detectron' (ops/masks.py); tables of mask AP should name it.
    backend: 'auto', 'hotcoco' or 'pycocotools' (coco_metrics.py), with equal results.
    keypoint_sigmas: of keypoint similarity, one per keypoint; None: COCO's for 17 keypoints, 1/P each for another P.
    max_detections, max_keypoint_detections: best detections that are scored per image and category, COCO's maxDets. For
      images with more objects; gin_configs/models/many_objects.gin raises all limits together.
    save_results: whether to write bbox.json and segm.json (about 150 MB for COCO's val2017; those of this object's
      previous evaluation are removed).

  Attributes:
    last: metrics of the latest evaluation in percent, {} before the first.

  Raises:
    UserError: an unknown mask_paste or backend, or a limit below 1.
  """

  def __init__(
    self,
    eval_input: Input,
    predict: Callable[[Batch | Views], Detections],
    source: Source,
    run_folder: RunFolder,
    every: int = 5000,
    at_end: bool = True,
    num_pictures: int = 6,
    mask_paste: str = 'accurate',
    backend: str = 'auto',
    save_results: bool = True,
    keypoint_sigmas: Sequence[float] | None = None,
    max_detections: int = coco_metrics.MAX_DETECTIONS['bbox'],
    max_keypoint_detections: int = coco_metrics.MAX_DETECTIONS['keypoints'],
  ):
    if mask_paste not in PASTE_MODES:
      raise UserError(f"CocoEvaluator.mask_paste = '{mask_paste}': choose one of {', '.join(PASTE_MODES)}")
    if backend not in coco_metrics.BACKENDS:
      raise UserError(f"CocoEvaluator.backend = '{backend}': choose one of {', '.join(coco_metrics.BACKENDS)}")
    check_at_least('CocoEvaluator', 0, num_pictures=num_pictures)
    if not all(isinstance(limit, int) and limit >= 1 for limit in (max_detections, max_keypoint_detections)):
      raise UserError(f'CocoEvaluator.max_detections = {max_detections} and max_keypoint_detections = '
                      f'{max_keypoint_detections}: use integers of 1 or more')
    limits = {'bbox': max_detections, 'segm': max_detections, 'keypoints': max_keypoint_detections}
    super().__init__(
      eval_input, predict, source, run_folder, every, at_end,
      lambda write: Scorer(source, run_folder, write, num_pictures, backend, save_results, keypoint_sigmas, limits),
      mask_paste,
    )
