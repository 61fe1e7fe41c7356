"""Settings of a detector's file against those of a model: half a cell is refused, the rest is logged."""

import pytest

from rethink_tf.errors import UserError
from rethink_tf.models.rois import Anchors
from rethink_tf.weights import compared
from rethink_tf.weights.contents import Contents
from tests import tiny


def contents(**settings):
  names = {name.replace('.', '_'): name for name in compared.BINDINGS}
  return Contents('a.pth', 'x', 'detector', {}, None, None,
                  settings={names[name]: value for name, value in settings.items()})


def test_settings_are_compared(caplog):
  model = tiny.detector(anchors=Anchors((8, 16, 32, 64, 128)))
  compared.check(contents(), model)
  compared.check(contents(Anchors_offset=0.5, Anchors_sizes=(8.0, 16, 32, 64, 128), Cascade_box_weights=((1, 2, 3, 4),),
                          RoIPooler_sampling_ratio=2), model)
  assert not caplog.text
  compared.check(contents(RoIPooler_sampling_ratio=0, Anchors_sizes=(32, 64, 128, 256, 512), Anchors_ratios=((1,), 2)),
                 model)
  assert [record.getMessage().split(' = ')[0].split()[-1] for record in caplog.records] == [
    'RoIPooler.sampling_ratio', 'Anchors.sizes', 'Anchors.ratios']
  with pytest.raises(UserError, match='a.pth: was trained with Anchors.offset = 0.0, the model has 0.5: set Anchors'):
    compared.check(contents(Anchors_offset=0.0), model)
  with pytest.raises(UserError, match='set RoIPooler.aligned = True'):
    compared.check(contents(RoIPooler_aligned=True), model)
