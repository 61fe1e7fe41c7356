"""Plots with one class and many, without objects, and with hostile names."""

import cv2
import numpy as np
import pytest

from rethink_tf.inspect_run import precision_recall, threshold_plots
from rethink_tf.inspect_run.confusion import confusion
from rethink_tf.inspect_run.counted import count_coco
from tests.inspect_run.random_data import detections, truth


@pytest.mark.parametrize('classes, images, around', [(2, 6, 1), *(
  pytest.param(*numbers, marks=pytest.mark.slow) for numbers in ((1, 6, 2), (80, 40, 2), (1, 0, 0), (2, 6, 0)))])
def test_any_number_of_classes(classes, images, around):
  names = ['<b>$x_{$ \x1b[2J' + 'w' * 200, *(f'class {k}' for k in range(1, classes))]
  rng = np.random.default_rng(0)
  gt = truth(rng, images, [{'id': k, 'name': name} for k, name in enumerate(names, start=1)])
  results = detections(rng, gt, around=around, nothing=around)
  counted = count_coco(gt, results, 'bbox')
  for data in (threshold_plots.plot_curves(precision_recall.curves(counted), 'box', 0.5),
               threshold_plots.plot_confusion(confusion(counted, gt, results, 'bbox', 0.5), 'box')):
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image.std() > 5 and max(image.shape) < 2000
