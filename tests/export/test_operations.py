"""A SavedModel is checked before it is loaded: nothing in it runs before that."""

import os
import pathlib

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from rethink_tf.errors import UserError
from rethink_tf.export import operations
from rethink_tf.predict import detectors


class Model(tf.Module):
  """Computes 2 x, with a variable."""

  def __init__(self, body=lambda x: 2 * x):
    super().__init__()
    self.two = tf.Variable(2.0)
    self.twice = tf.function(lambda x: body(x) + self.two, input_signature=[tf.TensorSpec([], tf.float32)])


def save(tmp_path, module):
  folder = str(tmp_path / 'saved')
  tf.saved_model.save(module, folder)
  return folder


def changed(folder, change):
  path = pathlib.Path(folder) / 'saved_model.pb'
  model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  change(model)
  path.write_bytes(model.SerializeToString())
  return folder


def refused(folder, message):
  with pytest.raises(UserError, match=message) as error:
    detectors.SavedModelDetector(folder)
  assert '\n' not in str(error.value) and folder in str(error.value) and len(str(error.value)) < 400


def test_what_computes_is_allowed(tmp_path):
  """Also the functions by which servers save and restore the variables."""
  operations.check(save(tmp_path, Model()))


def test_an_initialiser_that_writes_a_file_does_not_run(tmp_path):
  """TensorFlow runs it while it loads."""
  class Resource(tf.saved_model.experimental.TrackableResource):
    def _create_resource(self):
      return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])

    @tf.function
    def _initialize(self):
      tf.io.write_file(str(tmp_path / 'attacked'), 'x')
      return 1

  module = Model()
  module.resource = Resource()
  folder = save(tmp_path, module)
  tf.saved_model.load(folder)
  assert (tmp_path / 'attacked').exists(), 'the attack works'
  os.remove(tmp_path / 'attacked')
  refused(folder, 'of the kind resource')
  assert not (tmp_path / 'attacked').exists()


def _write(x):
  tf.io.write_file('attacked', 'x')
  return x


def _branch(x):
  return tf.cond(x > 0, lambda: _write(x), lambda: x)


def _save(x):
  tf.raw_ops.SaveV2(prefix='attacked', tensor_names=['x'], shape_and_slices=[''], tensors=[x])
  return x


@pytest.mark.parametrize('body, name', [
  (_write, 'WriteFile'), (_branch, 'WriteFile'), (_save, 'SaveV2'),
  (lambda x: tf.strings.to_number(tf.io.read_file('/etc/passwd')), 'ReadFile'),
  (lambda x: tf.numpy_function(lambda y: y, [x], tf.float32, stateful=False), 'PyFunc'),
  (lambda x: (tf.print(x, output_stream='file:///tmp/attacked'), x)[1], 'StringFormat|PrintV2'),
  (lambda x: tf.raw_ops.RestoreV2(prefix='x', tensor_names=['x'], shape_and_slices=[''], dtypes=[tf.float32])[0],
   'RestoreV2'),
], ids=['function', 'branch', 'checkpoint', 'read', 'python', 'print', 'restore'])
def test_operations_that_reach_outside_the_graph(tmp_path, body, name):
  refused(save(tmp_path, Model(body)), f"holds the operation '({name})")


def test_the_functions_of_checkpoints_serve_nothing_else(tmp_path):
  """An object of the model may not call them."""
  folder = save(tmp_path, Model())

  def call_it(model):
    functions = model.meta_graphs[0].graph_def.library.function
    name = next(one.signature.name for one in functions if any(node.op == 'SaveV2' for node in one.node_def))
    model.meta_graphs[0].object_graph_def.nodes[0].children[0].local_name = name
  refused(changed(folder, call_it), "holds the operation '(SaveV2|MergeV2)")


@pytest.mark.parametrize('change, message', [
  (lambda model: model.meta_graphs.add(), 'of another kind'),
  (lambda model: model.meta_graphs[0].ClearField('object_graph_def'), 'of another kind'),  # as TensorFlow 1 writes
  (lambda model: model.meta_graphs[0].asset_file_def.add(), 'has asset files'),
  (lambda model: model.meta_graphs[0].graph_def.node.add(op='DebugIdentity'), "the operation 'DebugIdentity'"),
  (lambda model: model.meta_graphs[0].graph_def.node.add(op='x' * 100_000), "the operation 'xxx.*…"),
  (lambda model: setattr(model.meta_graphs[0].object_graph_def.nodes[0].user_object, 'identifier', '_tf_keras_layer'),
   "of the class '_tf_keras_layer'"),
  (lambda model: setattr(model.meta_graphs[0].object_graph_def.nodes[0], 'registered_saver', 'x'), 'run code when'),
], ids=['two', 'TensorFlow 1', 'assets', 'operation', 'long name', 'class', 'saver'])
def test_other_contents(tmp_path, change, message):
  refused(changed(save(tmp_path, Model()), change), message)


def test_damaged_folders(tmp_path):
  folder = save(tmp_path, Model())
  refused(folder, 'is not a SavedModel of this package')
  index = pathlib.Path(folder) / 'variables/variables.index'
  data = index.read_bytes()
  index.write_bytes(data[:-10])
  refused(folder, 'of its variables, its index is damaged')
  index.unlink()
  refused(folder, 'its variables cannot be read')
  index.write_bytes(data)
  (pathlib.Path(folder) / 'saved_model.pb').write_bytes(b'\xff' * 100)
  refused(folder, 'cannot be read')
  os.remove(f'{folder}/saved_model.pb')
  refused(folder, 'no SavedModel there')
  os.mkfifo(f'{folder}/saved_model.pb')
  refused(folder, 'not a regular file')
