"""Files and bindings of the command line that a configuration does not use."""

import pytest

from rethink_tf import experiment, gin_files

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


def lines(*files, params=()):
  return gin_files.parse([f'gin_configs/{name}.gin' for name in files], params).remarks


@pytest.mark.parametrize('files, params, said', [
  (['vgg16_scratch_11x', 'models/r101'], (), 'r101.gin has no effect: no part of this configuration uses @ResNet'),
  (['vgg16_scratch_11x', 'runtime/recompute'], (), 'recompute.gin has no effect'),
  (['scratch_6x', 'data/coco_10k', 'data/coco_records'], (),
   'coco_10k.gin has no effect: gin_configs/data/coco_records.gin, given after it, sets DATA_DIR, run.train_source'),
  (['norms/syncbn', 'scratch_6x'], (), 'scratch_6x.gin, given after it, sets NORM, ResNet.norm'),
  (['runtime/laptop', 'scratch_6x'], (),
   'scratch_6x.gin is a complete configuration and replaces BATCH_SIZE of gin_configs/runtime/laptop.gin: give it '
   'first'),
  (['demo'], ['ExponentialMovingAverage.decay = 0.9998'],
   'ExponentialMovingAverage.decay has no effect: no part of this configuration uses @ExponentialMovingAverage; '
   'gin_configs/runtime/ema.gin does'),
  (['voc_scratch'], ['coco.num_images = 100'], 'coco.num_images has no effect'),
  (['demo'], ["DATA_DIR = 'my_images'"], 'DATA_DIR (--data_dir) has no effect'),
  (['pretraining/shapes'], ['image_folder.fraction = 0.5'], 'image_folder.fraction has no effect'),
  (['demo'], ['MaskRCNN.mask_head = None', 'MaskHead.channels = 64'], 'MaskHead.channels has no effect'),
], ids=lambda value: '+'.join(value) if isinstance(value, list) else None)
def test_what_has_no_effect_is_said(files, params, said):
  line, = lines(*files, params=params)
  assert said in line


@pytest.mark.parametrize('files, params', [
  (['scratch_6x', 'data/coco_10k', 'norms/syncbn'], ['SCHEDULE = 2', 'SCHEDULE = 3', 'BATCH_SIZE = 8']),
  (['scratch_1x', 'data/own', 'runtime/laptop', 'models/faster_rcnn', 'models/many_objects'], ["DATA_DIR = 'mine'"]),
  (['scratch_6x', 'models/cbnet_dual', 'models/x152', 'models/cascade', 'runtime/laptop', 'runtime/ema'],
   ['ExponentialMovingAverage.decay = 0.9998', 'CBNet.style = "dhlc"', 'Cascade.head = @few/BoxHead',
    'few/BoxHead.num_convs = 1']),
  (['pretraining/imagenette', 'norms/syncbn', 'models/r101'], ['CROP_SIZE = 64']),
  # What a file binds itself comes after its include.
  (['pretraining/shapes'], ['train/synthetic_classes.num_images = 320']),
], ids=lambda value: value[-1])
def test_what_is_used_or_chosen_again_is_not(files, params):
  assert not lines(*files, params=params)


def test_a_run_of_such_a_configuration_warns(caplog):
  experiment.configure(['gin_configs/demo.gin'], data_dir='my_images')
  assert 'DATA_DIR (--data_dir) has no effect' in caplog.text
