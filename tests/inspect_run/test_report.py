"""Text of error breakdowns."""

from rethink_tf.inspect_run import detection_errors, report
from tests.small_coco import annotation, image


def test_a_table_of_many_classes_is_truncated():
  categories = [{'id': k, 'name': f'a rather long name of class {k}'} for k in range(1, 40)]
  annotations = [annotation(k, category_id=k, bbox=(k, k, 30, 30)) for k in range(1, 40)]
  gt = {'images': [image(1, 99, 99)], 'categories': categories, 'annotations': annotations}
  text = report.detection_table(detection_errors.analyse(gt, []), 'box', 'title')
  rows = [line for line in text.splitlines() if 'a rather long' in line]
  assert len(rows) == report.LISTED and len({len(row) for row in rows}) == 1
  assert rows[0].split()[-6:] == ['0.0', '0.0', '0.0', '0.0', '0.0', '100.0']
