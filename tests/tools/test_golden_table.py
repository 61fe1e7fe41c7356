"""The table of errors against Detectron2, from the report that the golden tests print."""

from tools import golden_table

PRINTED = '''..........s
mask_rcnn_r50_fpn_gn
  stage                                            largest error   allowed
  backbone C2                                           6.98e-07    0.0001
  pyramid P6                                            1.00e-05    0.0001
  anchors P2                                            0.00e+00         0
  gradients, 1 - cosine: all                            1.61e-04    0.0003  backbone.bottom_up.res4.3.conv3.weight
  trajectory: any total                                 3.64e-02      0.15

11 passed, 1 skipped in 62.92s (0:01:02)
mask_rcnn_r50_fpn_bn
  stage                                            largest error   allowed
  backbone C2                                                nan    0.0001
  gradients, 1 - cosine: all                            5.27e-04     0.001
'''


def test_rows_hold_the_largest_error_of_their_stages():
  text = golden_table.table(golden_table.parse(PRINTED))
  assert '| | allowed | mask_rcnn_r50_fpn_bn | mask_rcnn_r50_fpn_gn |' in text
  assert '| maps C2–P6 | 0.0001 | nan | 1.0e-05 |' in text
  assert '| anchors | 0 | – | 0.0e+00 |' in text
  assert '| gradients, 1 - cosine: largest | 0.0003 or 0.001 | 5.3e-04 | 1.6e-04 |' in text
  assert '| trajectory: any total or loss | 0.15 | – | 3.6e-02 |' in text
  assert 'moving statistics' not in text
