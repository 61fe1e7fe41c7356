"""The configuration in checkpoints of OpenMMLab: style 'caffe' has other strides, channels and pixels."""

import pytest

from rethink_tf.weights import formats
from tests.weights import files
from tests.weights.test_state_dicts import names, write

CAFFE = ("model = dict(backbone=dict(type='ResNet', depth=50, style='caffe'))\nimg_norm_cfg = dict(\n"
         "    mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)\n")
TORCH = ("model = dict(data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], "
         "bgr_to_rgb=True), backbone=dict(style='pytorch'))")


@pytest.mark.parametrize('key, config, expected', [
  ('config', CAFFE, ('bgr', True, (123.675, 116.28, 103.53), (1.0, 1.0, 1.0))),
  ('cfg', CAFFE.replace("style='caffe'", '"style": "caffe"'), ('bgr', True, (123.675, 116.28, 103.53), (1.0,) * 3)),
  ('cfg', TORCH, ('rgb', False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))),
  ('cfg', "style='caffe'", ('bgr', True, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))),
  ('cfg', 3, ('rgb', False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))),
], ids=['caffe', 'caffe, json', 'pytorch', 'without pixels', 'none'])
def test_the_configuration_decides(tmp_path, key, config, expected):
  found = formats.read(write(tmp_path, {'meta': {key: config}, 'state_dict': names(prefix='backbone.')}))
  assert (found.channels, found.stride_in_1x1, found.pixel_mean, found.pixel_std) == expected
  assert any('configuration in the checkpoint' in note for note in found.notes) == (config != 3)


def test_a_detector_of_detectron2_with_such_a_key_is_left_alone(tmp_path):
  found = formats.read(write(tmp_path, {'meta': {'cfg': CAFFE}, 'model': files.converted_names(names())}))
  assert found.channels == 'bgr' and found.stride_in_1x1 is True  # a backbone without any other record
