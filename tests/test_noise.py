"""What the libraries say of themselves."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TRACED_AGAIN = 'f = tf.function(lambda x: x); [f(tf.zeros([n])) for n in range(8)]'


@pytest.mark.parametrize('hidden', [False, True])
def test_a_trace_for_each_padded_shape_is_no_mistake(hidden):
  hide = 'noise.hide_library_info(); ' if hidden else ''
  code = f'from rethink_tf import noise; import tensorflow as tf; {hide}{TRACED_AGAIN}'
  ran = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True,
                       capture_output=True)
  assert ran.returncode == 0, ran.stderr
  assert ('triggered tf.function retracing' in ran.stderr) != hidden
