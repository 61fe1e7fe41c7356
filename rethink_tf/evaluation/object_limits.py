"""Notes on images with more objects than a limit of the configuration, which training or AP then misses.

Limited are the objects that are trained on (TrainInput.max_instances), proposed (ProposalGenerator.post_nms_*),
detected (DetectionGenerator.max_detections) and scored (CocoEvaluator.max_detections);
gin_configs/models/many_objects.gin raises all limits together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rethink_tf import gin_files
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.evaluation.coco_evaluator import CocoEvaluator
from rethink_tf.models.rois import DetectionGenerator, ProposalGenerator
from rethink_tf.structures import Source

FILE = 'gin_configs/models/many_objects.gin'


class Limit(NamedTuple):
  """A limit of the configuration."""

  name: str  # in gin
  value: int
  of: str = 'image'  # what it applies to: all objects of an image, those of a 'category', or its 'keypoints'


def of_training() -> list[Limit]:
  """Return the limits on the objects of a training image, from gin's configuration."""
  return [_limit(TrainInput, 'max_instances'), _limit(ProposalGenerator, 'post_nms_train')]


def of_evaluation() -> list[Limit]:
  """Return the limits on the objects of a held-out image, from gin's configuration."""
  limits = [_limit(DetectionGenerator, 'max_detections')]
  if gin_files.bound('run.test_augmentation') is None:  # the proposals of all views are joined
    limits.insert(0, _limit(ProposalGenerator, 'post_nms_test'))
  evaluator = gin_files.bound('run.evaluator')
  if evaluator is None or evaluator.configurable.name == CocoEvaluator.__name__:
    limits += [_limit(CocoEvaluator, 'max_detections', 'category'),
               _limit(CocoEvaluator, 'max_keypoint_detections', 'keypoints')]
  return limits


def _limit(part: Callable[..., Any], name: str, of: str = 'image') -> Limit:
  return Limit(f'{part.__name__}.{name}', int(gin_files.argument(part, name)), of)


def describe(source: Source, limits: list[Limit], verb: str = 'found and scored') -> list[str]:
  """Return a line that names the limits that some images of a source exceed; [] if none do.

  verb: what happens to the objects within the limits, as 'trained on'.
  """
  exceeded, fitting = [], []
  for limit in limits:
    counts = _counts(source, limit)
    over = int((counts.max(axis=1, initial=0) > limit.value).sum())
    if over:
      more = '' if exceeded else f' of {len(counts)} images have more objects'
      kind = ' of a category' if limit.of == 'category' else ''
      exceeded.append(f'{over}{more}{kind} than {limit.name} = {limit.value}')
      fitting.append(np.minimum(counts, limit.value).sum() / counts.sum())
  if not exceeded:
    return []
  return [f'{source.name}: {", ".join(exceeded)}: at most {100 * min(fitting):.1f} % of the objects can be {verb}; '
          f'raise the limits together with --gin_file={FILE}']


def _counts(source: Source, limit: Limit) -> np.ndarray:
  """Return the number of objects of each image, int [N, 1], or of each category in it, int [N, categories].

  Annotations are read only where an image has more objects than the limit.
  """
  instances = np.asarray(source.num_instances)[:, None]
  if limit.of == 'image' or (instances <= limit.value).all() or limit.of == 'keypoints' and not source.num_keypoints:
    return instances if limit.of != 'keypoints' else np.minimum(instances, limit.value)
  found = Counter((a['image_id'], a['category_id']) for a in source.annotations()['annotations']
                  if not a.get('iscrowd') and (limit.of != 'keypoints' or any(a.get('keypoints', ())[2::3])))
  rows = {int(image_id): i for i, image_id in enumerate(source.image_ids)}
  columns = {category.id: k for k, category in enumerate(source.categories)}
  counts = np.zeros([len(rows), len(columns)], np.int64)
  for (image_id, category_id), count in found.items():
    counts[rows[image_id], columns[category_id]] = count
  return counts
