"""The component that each operation of a step belongs to."""

import pytest

from rethink_tf.bench import detectors


@pytest.mark.parametrize('operation, component', [
  ('mask_rcnn/backbone/res2_0/conv1/conv/Conv2D:_MklNativeConv2D', 'backbone'),
  ('gradient_tape/mask_rcnn/backbone/stem/conv/Conv2D/Conv2DBackpropFilter:_MklNativeConv2D', 'backbone'),
  ('mask_rcnn/backbone/res2_0/conv1/norm/ReadVariableOp:ReadVariableOp', 'norms'),
  (detectors.COMPILED, 'norms'),
  ('gradient_tape/mask_rcnn/fpn/lateral5/conv/Conv2D/Conv2DBackpropFilter:X', 'FPN'),
  ('mask_rcnn/proposals/TopKV2:TopKV2', 'RPN'),
  ('mask_rcnn/roi_align/SparseMatrixMatMul:SparseMatrixMatMul', 'RoIAlign'),
  ('gradient_tape/mask_rcnn/mask_head/deconv/X:Y', 'mask head'),
  ('SGD/ResourceApplyMomentum_32:ResourceApplyMomentum', 'optimizer'),
  ('add_7:AddV2', 'the rest'),
])
def test_component_of_an_operation(operation, component):
  assert detectors.component_of(operation) == component
