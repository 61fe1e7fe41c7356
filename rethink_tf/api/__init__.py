"""Python API: inspect data, train, evaluate and compare runs, and detect objects in images.

Importing this module does not import TensorFlow; the first call does. Functions that read gin files clear gin's global
configuration, and set Keras' precision policy and the random seeds of the process to those of the configuration.
Errors that the caller can fix are raised as errors.UserError.
"""

from rethink_tf.api.commands import compare, evaluate, inspect_data, inspect_run, train
from rethink_tf.api.detector import Detections, Detector

__all__ = ['Detections', 'Detector', 'compare', 'evaluate', 'inspect_data', 'inspect_run', 'train']
