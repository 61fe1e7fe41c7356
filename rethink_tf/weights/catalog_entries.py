"""The table of published weights.

Sources: files of the publishers' repositories, as of November 2026. torchvision's and WSL's file names end with the
first 8 digits of the SHA-256; Detectron2's end with the first 6 of the MD5 (its MODEL_ZOO.md says so); MoCo's
README.md gives 8 of the MD5; Keras' source the whole MD5; torchvision's metadata the size in MiB. Detectron has the MD5
at <address>.md5sum (its MODEL_ZOO.md says so). SwAV and DINO publish none.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rethink_tf.downloads.remote_file import RemoteFile
from rethink_tf.weights.catalog import Cost, Entry
from rethink_tf.weights.contents import DETECTRON2_MEAN, DETECTRON_MEAN, KERAS_MEAN, SWAV_STD, TORCH_STD, UNIT_STD

_IMAGENET = 1_281_167
_COCO_IMAGE = 800.0 * 1333  # pixels and instances as the paper counts them for Fig. 2
_COCO_INSTANCES = 7

_TORCH = ('rgb', False, DETECTRON2_MEAN, TORCH_STD)
_BSD, _BY_SA, _BY_NC = 'BSD-3-Clause', 'CC BY-SA 3.0', 'CC BY-NC 4.0'


def _imagenet(epochs: float, source: str, crops: tuple[int, ...] = (224,), assumed: bool = False) -> Cost:
  """The cost of epochs of ImageNet; crops: sides of the views of an image in a step."""
  images = epochs * _IMAGENET
  return Cost(images, images, images * float(sum(side * side for side in crops)), source, assumed)


def _coco(iterations: int, batch: int, source: str, before: Cost | None = None) -> Cost:
  images = float(iterations * batch)
  cost = Cost(images, images * _COCO_INSTANCES, images * _COCO_IMAGE, f'{source}; {batch} COCO images of 800 x 1333')
  if before is None:
    return cost
  return Cost(*(a + b for a, b in zip(cost[:3], before[:3], strict=True)), f'{cost.source}; before it {before.source}',
              before.assumed)


_MSRA = _imagenet(600_000 * 256 / _IMAGENET, '600,000 steps of 256 images (He et al. 2016, 1512.03385, section 3.4)')
_GN = _imagenet(100, '100 epochs (Wu and He 2018, 1803.08494, section 4.1)')
_UNPUBLISHED = _imagenet(100, 'about 100 epochs of ImageNet (section 3 of the paper); the schedule is not published',
                         assumed=True)
_TV_90 = _imagenet(90, '90 epochs (pytorch/vision references/classification: the default of train.py)')


def _torchvision(name: str, file: str, mib: float, network: str, cost: Cost, where: str = 'resnet') -> Entry:
  digits = file.rpartition('-')[2].partition('.')[0]
  remote = RemoteFile(f'https://download.pytorch.org/models/{file}', mib=mib, sha256=digits)
  return Entry(f'torchvision_{name}', remote, f'pytorch/vision torchvision/models/{where}.py', _BSD, 'backbone',
               network, 'bn' if where == 'resnet' else 'none', *_TORCH, 'imagenet_torchvision', cost)


def _keras(name: str, network: str, md5: str) -> Entry:
  remote = RemoteFile('https://storage.googleapis.com/tensorflow/keras-applications/resnet/'
                      f'{name}_weights_tf_dim_ordering_tf_kernels_notop.h5', md5=md5)
  return Entry(f'keras_{name}', remote, 'tf_keras/src/applications/resnet.py of the package tf_keras',
               'MIT (MSRA)', 'backbone', network, 'bn', 'bgr', True, KERAS_MEAN, UNIT_STD,
               'imagenet_keras', _MSRA)


def _detectron(name: str, file: str, network: str, norm: str, cost: Cost, source: str = 'MODEL_ZOO.md') -> Entry:
  msra = file.startswith('MSRA/')
  remote = RemoteFile(f'https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/{file}', md5_suffix='.md5sum')
  return Entry(f'detectron_{name}', remote, f'facebookresearch/Detectron {source}', _BY_SA, 'backbone', network, norm,
               'bgr', msra, DETECTRON_MEAN, UNIT_STD, 'imagenet_msra' if msra else 'imagenet', cost)


def _detectron2(name: str, file: str, norm: str, stride_in_1x1: bool, std: tuple[float, float, float],
                cost: Cost) -> Entry:
  digits = file.rpartition('_')[2].partition('.')[0]
  return Entry(f'detectron2_{name}', RemoteFile(f'https://dl.fbaipublicfiles.com/detectron2/{file}', md5=digits),
               'facebookresearch/detectron2 MODEL_ZOO.md', _BY_SA, 'detector', 'ResNet-50', norm, 'bgr', stride_in_1x1,
               DETECTRON2_MEAN, std, 'detector_detectron2', cost)


def _wsl(width: int, digits: str) -> Entry:
  # The number of images is the estimate of gin_configs/pretraining/wsl_base.gin; fine-tuning on ImageNet is not in it.
  cost = Cost(3.6e9, 3.6e9, 3.6e9 * 224 * 224, 'about 3.8 epochs of 940M images (WSL-Images README.md; the schedule is '
              'not published)', True)
  return Entry(f'wsl_x101_32x{width}d', RemoteFile(
    f'https://download.pytorch.org/models/ig_resnext101_32x{width}-{digits}.pth', sha256=digits),
    'facebookresearch/WSL-Images hubconf.py', _BY_NC, 'backbone', f'ResNeXt-101 32x{width}d', 'bn', *_TORCH, 'wsl',
    cost)


def _self_supervised(name: str, address: str, md5: str, source: str, licence: str, std: tuple[float, float, float],
                     init: str, cost: Cost) -> Entry:
  return Entry(name, RemoteFile(f'https://dl.fbaipublicfiles.com/{address}', md5=md5), source, licence, 'backbone',
               'ResNet-50', 'bn', 'rgb', False, DETECTRON2_MEAN, std, init, cost)


def _moco(name: str, epochs: int, md5: str) -> Entry:
  return _self_supervised(
    name, f'moco/moco_checkpoints/moco_v2_{epochs}ep/moco_v2_{epochs}ep_pretrain.pth.tar', md5,
    'facebookresearch/moco README.md', _BY_NC, TORCH_STD, 'moco_v2',
    _imagenet(epochs, f'{epochs} epochs (README.md), 2 views of 224 (main_moco.py)', (224, 224)))


_NEW = '600 epochs (pytorch/vision issue 3995, new recipe), crops of '
_D2 = 'configs/Misc of detectron2'
_ALL = (
  _torchvision('resnet50_v1', 'resnet50-0676ba61.pth', 97.781, 'ResNet-50', _TV_90),
  _torchvision('resnet50_v2', 'resnet50-11ad3fa6.pth', 97.79, 'ResNet-50', _imagenet(600, f'{_NEW}176', (176,))),
  _torchvision('resnet101_v1', 'resnet101-63fe2227.pth', 170.511, 'ResNet-101', _TV_90),
  _torchvision('resnet101_v2', 'resnet101-cd907fc2.pth', 170.53, 'ResNet-101', _imagenet(600, f'{_NEW}224')),
  _torchvision('x101_32x8d_v1', 'resnext101_32x8d-8ba56ff5.pth', 339.586, 'ResNeXt-101 32x8d', _imagenet(
    100, '100 epochs (pytorch/vision references/classification README.md)')),
  _torchvision('x101_32x8d_v2', 'resnext101_32x8d-110c445d.pth', 339.673, 'ResNeXt-101 32x8d',
               _imagenet(600, f'{_NEW}176', (176,))),
  _torchvision('vgg16', 'vgg16-397923af.pth', 527.796, 'VGG-16', _TV_90, 'vgg'),
  _keras('resnet50', 'ResNet-50', '4d473c1dd8becc155b73f8504c6f6626'),
  _keras('resnet101', 'ResNet-101', '88cf7a10940856eca736dc7b7e228a21'),
  _detectron('r50_gn', '47261647/R-50-GN.pkl', 'ResNet-50', 'gn', _GN, 'projects/GN/README.md'),
  _detectron('r101_gn', '47592356/R-101-GN.pkl', 'ResNet-101', 'gn', _GN, 'projects/GN/README.md'),
  _detectron('r50', 'MSRA/R-50.pkl', 'ResNet-50', 'folded', _MSRA),
  _detectron('r101', 'MSRA/R-101.pkl', 'ResNet-101', 'folded', _MSRA),
  _detectron('x101_32x8d', '20171220/X-101-32x8d.pkl', 'ResNeXt-101 32x8d', 'folded', _UNPUBLISHED),
  _detectron('x152_32x8d_in5k', '25093814/X-152-32x8d-IN5k.pkl', 'ResNeXt-152 32x8d', 'folded', _UNPUBLISHED),
  _detectron2('r50_3x', 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl', 'bn',
              True, UNIT_STD, _coco(270_000, 16, '270,000 steps (its 3x)', _MSRA)),
  _detectron2('r50_gn_3x', 'Misc/mask_rcnn_R_50_FPN_3x_gn/138602888/model_final_dc5d9e.pkl', 'gn', False, UNIT_STD,
              _coco(270_000, 16, f'270,000 steps ({_D2})', _GN)),
  _detectron2('r50_syncbn_3x', 'Misc/mask_rcnn_R_50_FPN_3x_syncbn/169527823/model_final_3b3c51.pkl', 'bn', True,
              UNIT_STD, _coco(270_000, 16, f'270,000 steps ({_D2})', _MSRA)),
  _detectron2('scratch_r50_gn_3x', 'Misc/scratch_mask_rcnn_R_50_FPN_3x_gn/138602908/model_final_01ca85.pkl', 'gn',
              False, UNIT_STD, _coco(270_000, 16, f'270,000 steps ({_D2})')),
  _detectron2('scratch_r50_gn_9x', 'Misc/scratch_mask_rcnn_R_50_FPN_9x_gn/183808979/model_final_da7b4c.pkl', 'gn',
              False, TORCH_STD, _coco(202_500, 64, f'202,500 steps ({_D2})')),
  _detectron2('scratch_r50_syncbn_9x', 'Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn/184226666/model_final_5ce33e.pkl',
              'bn', False, TORCH_STD, _coco(202_500, 64, f'202,500 steps ({_D2})')),
  *(_wsl(width, digits) for width, digits in ((8, 'c38310e5'), (16, 'c6f796b0'), (32, 'e4b90b00'), (48, '3e41cc8a'))),
  _moco('moco_v2', 800, 'a04e12f8'),
  _moco('moco_v2_200ep', 200, '59fd9945'),
  _self_supervised(
    'swav', 'deepcluster/swav_800ep_pretrain.pth.tar', '', 'facebookresearch/swav hubconf.py', _BY_NC, SWAV_STD,
    'swav', _imagenet(800, '800 epochs, 2 views of 224 and 6 of 96 (README.md)', (224,) * 2 + (96,) * 6)),
  _self_supervised(
    'dino_resnet50', 'dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth', '', 'facebookresearch/dino hubconf.py',
    'Apache-2.0', TORCH_STD, 'dino', _imagenet(
      800, '800 epochs (facebookresearch/dino issue 145), 2 views of 224 and, the default of main_dino.py, 8 of 96',
      (224,) * 2 + (96,) * 8, assumed=True)),
)
ENTRIES: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ALL})
