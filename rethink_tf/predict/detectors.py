"""Detections of images by the detector of a run or of a SavedModel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def by_run(parts: Any, source: Any, mask_paste: str) -> Iterator[tuple[int, Callable[[], Any]]]:
  """Detections of a run's detector, as its evaluation makes them. Pictures come canvas by canvas."""
  import numpy as np
  import tensorflow as tf

  from rethink_tf.evaluation.postprocessing import restore

  scoring = parts.scoring
  inputs = type(scoring)(source, scoring.batch_size, scoring.resize, max_instances=1, max_unreadable=1.0)
  predict = parts.trainer.predict_batch
  if parts.test_augmentation is not None:
    predict = parts.test_augmentation.predictor(parts.trainer, source)
    inputs = parts.test_augmentation.views_of(inputs)
  index_of = {int(id_): i for i, id_ in enumerate(source.image_ids)}
  try:
    for batch in inputs.dataset():
      detections = predict(batch)
      labels = [np.asarray(field) for field in (batch.image_ids, batch.scales, batch.original_sizes)]
      detections = [None if field is None else np.asarray(field) for field in detections]
      for row, image_id in enumerate(labels[0].tolist()):
        if image_id in index_of:  # rows that fill the last batch are not
          one = [None if field is None else field[row:row + 1] for field in [*labels, *detections]]
          yield index_of[image_id], lambda one=one: restore(mask_paste, *one)[0]
  except tf.errors.OpError as error:
    if inputs.failure is not None:
      raise inputs.failure from error
    raise


def by_saved_model(model: Any, source: Any, threshold: float, batch: int) -> Iterator[tuple[int, Callable[[], Any]]]:
  """The same from an exported detector; with a batch of several, as files for its signature of many pictures."""
  import numpy as np
  import tensorflow as tf
  from pycocotools import mask as coco_mask

  from rethink_tf.evaluation.postprocessing import ImageDetections
  from rethink_tf.visualization import pictures

  def found(image_id, fields):
    masks = None
    if 'masks' in fields:
      rles = (coco_mask.encode(np.asfortranarray(mask)) for mask in fields['masks'])
      masks = [{'size': rle['size'], 'counts': rle['counts'].decode('ascii')} for rle in rles]
    points = fields['keypoints'].astype(np.float64) if 'keypoints' in fields else None
    return ImageDetections(image_id, fields['boxes'].astype(np.float64), fields['scores'].astype(np.float64),
                 fields['classes'].astype(np.int64), masks, points)

  def detect(images):
    if batch == 1:
      yield {name: value.numpy() for name, value in model.detect(images[0], np.float32(threshold)).items()}
      return
    files = tf.constant([pictures.png(image) for image in images])  # of pixels: turned ones, frames, other formats
    rows = {name: value.numpy() for name, value in model.detect_files(files, np.float32(threshold)).items()}
    for row, (number, (height, width)) in enumerate(zip(rows['num_detections'], rows['image_sizes'], strict=True)):
      fields = {name: rows[name][row, :number] for name in ('boxes', 'scores', 'classes', 'masks', 'keypoints')
                if name in rows}
      yield fields | ({'masks': fields['masks'][:, :height, :width]} if 'masks' in fields else {})

  ids = source.image_ids.tolist()
  for start in range(0, len(ids), batch):
    indices = range(start, min(start + batch, len(ids)))
    for i, fields in zip(indices, detect([source.load(i).image for i in indices]), strict=True):
      yield i, lambda i=i, fields=fields: found(ids[i], fields)
