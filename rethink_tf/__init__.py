"""rethink_tf: do I need pre-training for my detector, or just a longer schedule?

The TensorFlow/Keras system of *Rethinking ImageNet Pre-training* (He, Girshick, Dollár, ICCV 2019).
"""

import os

# All are read when TensorFlow is first imported, hence here, before any module of the package can do it.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # a machine without a GPU is not an error; the user's setting wins
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')  # TensorFlow's own default is off on CPUs without AVX512
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')  # tf-models-official and tensorflow-addons build on tf_keras

__version__ = '0.2.0'
