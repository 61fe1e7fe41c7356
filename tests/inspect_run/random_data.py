"""Random ground truth with crowds, and detections near and far from it, with equal scores."""

import numpy as np
from pycocotools import mask as coco_mask

from rethink_tf.evaluation import coco_metrics

CATEGORIES = [{'id': 3, 'name': 'cat'}, {'id': 7, 'name': 'dog'}, {'id': 9, 'name': 'cow'}]


def rle(box):
  return coco_mask.frPyObjects(np.array([box], float), 100, 100)[0]


def truth(rng, images=12, categories=CATEGORIES, crowds=0.2):
  annotations = []
  for image_id in range(1, images + 1):
    for _ in range(rng.integers(0, 6)):
      x, y = rng.integers(0, 60, 2).tolist()
      w, h = rng.integers(10, 40, 2).tolist()
      annotations.append({
        'id': len(annotations), 'image_id': image_id, 'bbox': [x, y, w, h], 'area': w * h,
        'category_id': categories[rng.integers(len(categories))]['id'], 'iscrowd': int(rng.random() < crowds),
        'segmentation': rle([x, y, w, h])})
  return {'images': [{'id': i, 'height': 100, 'width': 100, 'file_name': f'{i}.jpg'} for i in range(1, images + 1)],
          'annotations': annotations, 'categories': categories}


def detections(rng, gt, iou_type='bbox', around=3, nothing=20):
  """`around` detections of each object, moved and of any class, and `nothing` elsewhere; scores of two decimals."""
  ids, results = [category['id'] for category in gt['categories']], []

  def add(image_id, category_id, box):
    place = {'bbox': box} if iou_type == 'bbox' else {'segmentation': rle(box)}
    results.append({'image_id': image_id, 'category_id': category_id, 'score': round(float(rng.random()), 2), **place})

  for one in gt['annotations']:
    for _ in range(around):
      box = (np.array(one['bbox']) + rng.integers(-6, 7, 4)).clip(1).tolist()
      add(one['image_id'], one['category_id'] if rng.random() < 0.7 else ids[rng.integers(len(ids))], box)
  for _ in range(nothing):
    image = gt['images'][rng.integers(len(gt['images']))]['id']
    add(image, ids[rng.integers(len(ids))], [*rng.integers(0, 60, 2).tolist(), *rng.integers(5, 30, 2).tolist()])
  return results


def accumulated(gt, results, iou_type):
  """pycocotools' own evaluation, with its tables of precision and recall."""
  scorer = coco_metrics._scorer(gt, results, iou_type, 'pycocotools', None, None)
  with coco_metrics._without_printing():
    scorer.evaluate()
    scorer.accumulate()
  return scorer
