"""Checks the operations of a SavedModel before TensorFlow loads it.

A SavedModel is a program: TensorFlow runs its initialisers while loading it, and operations can read and write any
file.
Since a folder may come from anyone, only the operations that a detector needs are allowed. The remaining risks are in
docs/export.md.
"""

from __future__ import annotations

import os

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from rethink_tf.errors import UserError, excerpt, in_one_line
from rethink_tf.storage import checkpoint_index
from rethink_tf.storage.files import open_regular

_FILE = 'saved_model.pb'
_MAX_BYTES = 256 << 20  # a detector's graph has 2 MB
_KINDS = {'variable', 'bare_concrete_function', 'function', 'user_object', 'constant'}  # no assets, no resources
_CLASSES = {'_generic_user_object', 'trackable_list_wrapper', 'trackable_tuple_wrapper', 'trackable_dict_wrapper',
            'signature_map'}
# Only of the functions that save and restore the variables, which a loaded detector does not call.
_CHECKPOINT = {'SaveV2', 'RestoreV2', 'MergeV2Checkpoints'}
_CONTROL = {'Case', 'If', 'PartitionedCall', 'StatefulPartitionedCall', 'StatelessCase', 'StatelessIf',
            'StatelessWhile', 'While'}
_STATE = {'AssignVariableOp', 'Const', 'DisableCopyOnRead', 'NoOp', 'Placeholder', 'PlaceholderWithDefault',
          'ReadVariableOp', 'ResourceGather', 'ResourceGatherNd', 'VarHandleOp', 'VarIsInitializedOp', 'VariableShape',
          'Assert', 'CheckNumerics', 'EnsureShape', 'PreventGradient', 'StopGradient'}
_STRINGS = {'ShardedFilename', 'StaticRegexFullMatch', 'StringJoin', 'Substr'}
_DATASETS = {'IgnoreErrorsDataset', 'MapDataset', 'ReduceDataset', 'TensorSliceDataset'}  # of a batch of files
_ARRAYS = {
  'BatchToSpaceND', 'Bitcast', 'BroadcastArgs', 'BroadcastTo', 'Cast', 'Concat', 'ConcatV2', 'DepthToSpace',
  'DynamicPartition', 'DynamicStitch', 'ExpandDims', 'Fill', 'Gather', 'GatherNd', 'GatherV2', 'Identity', 'IdentityN',
  'InvertPermutation', 'LinSpace', 'MatrixBandPart', 'MatrixDiagV3', 'MirrorPad', 'OneHot', 'OnesLike', 'Pack', 'Pad',
  'PadV2', 'ParallelConcat', 'RaggedRange', 'RaggedTensorToTensor', 'Range', 'Rank', 'Reshape', 'Reverse', 'ReverseV2',
  'Roll', 'ScatterNd', 'Shape', 'ShapeN', 'Size', 'Slice', 'SpaceToBatchND', 'SpaceToDepth',
  'SparseTensorToCSRSparseMatrix', 'Split', 'SplitV', 'Squeeze', 'StridedSlice', 'TensorListConcatV2',
  'TensorListElementShape', 'TensorListFromTensor', 'TensorListGather', 'TensorListGetItem', 'TensorListLength',
  'TensorListPopBack', 'TensorListPushBack', 'TensorListReserve', 'TensorListResize', 'TensorListSetItem',
  'TensorListStack', 'TensorScatterAdd', 'TensorScatterMax', 'TensorScatterMin', 'TensorScatterUpdate', 'Tile',
  'Transpose', 'Unique', 'UniqueV2', 'Unpack', 'UnravelIndex', 'Where', 'ZerosLike'}
_MATHS = {
  'Abs', 'Acos', 'Acosh', 'Add', 'AddN', 'AddV2', 'All', 'Angle', 'Any', 'ArgMax', 'ArgMin', 'Asin', 'Asinh', 'Atan',
  'Atan2', 'Atanh', 'Bincount', 'BitwiseAnd', 'BitwiseOr', 'BitwiseXor', 'Bucketize', 'Ceil', 'ClipByValue', 'Cos',
  'Cosh', 'Cumprod', 'Cumsum', 'CumulativeLogsumexp', 'DenseBincount', 'Div', 'DivNoNan', 'Equal', 'Erf', 'Erfc',
  'Erfinv', 'Exp', 'Expm1', 'Floor', 'FloorDiv', 'FloorMod', 'Greater', 'GreaterEqual', 'Inv', 'IsFinite', 'IsInf',
  'IsNan', 'LeftShift', 'Less', 'LessEqual', 'Log', 'Log1p', 'LogicalAnd', 'LogicalNot', 'LogicalOr', 'Max', 'Maximum',
  'Mean', 'Min', 'Minimum', 'Mod', 'Mul', 'MulNoNan', 'Neg', 'NextAfter', 'NotEqual', 'Pow', 'Prod', 'RealDiv',
  'Reciprocal', 'RightShift', 'Rint', 'Round', 'Rsqrt', 'SegmentMax', 'SegmentMean', 'SegmentMin', 'SegmentProd',
  'SegmentSum', 'Select', 'SelectV2', 'Sigmoid', 'Sign', 'Sin', 'Sinh', 'Sqrt', 'Square', 'SquaredDifference', 'Sub',
  'Sum', 'Tan', 'Tanh', 'TruncateDiv', 'TruncateMod', 'UnsortedSegmentMax', 'UnsortedSegmentMin',
  'UnsortedSegmentProd', 'UnsortedSegmentSum', 'Xdivy', 'Xlog1py', 'Xlogy'}
_NETWORKS = {
  'AvgPool', 'BatchMatMul', 'BatchMatMulV2', 'BatchMatMulV3', 'BiasAdd', 'CombinedNonMaxSuppression', 'Conv', 'Conv2D',
  'Conv2DBackpropInput', 'Conv3D', 'CropAndResize', 'DecodeImage', 'DecodeJpeg', 'DecodePng', 'DepthwiseConv2dNative',
  'Einsum', 'Elu', 'ExtractImagePatches', 'FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3', 'InTopKV2',
  'L2Loss', 'LRN', 'LeakyRelu', 'LogSoftmax', 'MatMul', 'MaxPool', 'MaxPoolV2', 'NonMaxSuppression',
  'NonMaxSuppressionV2', 'NonMaxSuppressionV3', 'NonMaxSuppressionV4', 'NonMaxSuppressionV5', 'Relu', 'Relu6',
  'ResizeArea', 'ResizeBicubic', 'ResizeBilinear', 'ResizeNearestNeighbor', 'ScaleAndTranslate', 'Selu', 'Softmax',
  'Softplus', 'Softsign', 'SparseMatrixMatMul', 'SparseTensorDenseMatMul', 'TopK', 'TopKV2'}
ALLOWED = _CONTROL | _STATE | _STRINGS | _DATASETS | _ARRAYS | _MATHS | _NETWORKS


def check(folder: str) -> None:
  """Check a SavedModel without loading it.

  Raises:
    UserError: its file is missing or damaged; it holds an operation that a detector does not need, such as one that
      reads or writes files, or an object that runs code when it is loaded; or its variables are damaged.
  """
  path = os.path.join(folder, _FILE)
  try:
    with open_regular(path) as file:
      if file.size() > _MAX_BYTES:
        raise UserError(f'{path}: {file.size():,} bytes are too many for a detector: export it again')
      model = saved_model_pb2.SavedModel.FromString(file.read())
  except tf.errors.NotFoundError as error:
    raise UserError(f'{folder}: no SavedModel there: name the folder that export has written') from error
  except (tf.errors.OpError, DecodeError) as error:
    raise UserError(f'{path}: cannot be read ({in_one_line(error, 200)}): copy it again') from error
  problem = _problem(model) or _problem_of_variables(folder)
  if problem:
    raise UserError(f'{folder}: {problem}: predict runs only what a detector computes with; export the run again')


def _problem(model: saved_model_pb2.SavedModel) -> str | None:
  if len(model.meta_graphs) != 1 or not model.meta_graphs[0].HasField('object_graph_def'):
    return 'is of another kind than this package writes'  # TensorFlow 1's, of which it runs the main graph
  meta, = model.meta_graphs
  if meta.asset_file_def:
    return 'has asset files'
  for node in meta.object_graph_def.nodes:
    kind = node.WhichOneof('kind')
    if kind not in _KINDS or node.saveable_objects or node.registered_saver or node.registered_name:
      return f'holds an object of the kind {kind}, which may run code when it is loaded'
    if kind == 'user_object' and node.user_object.identifier not in _CLASSES:
      return f'holds an object of the class {excerpt(node.user_object.identifier)}'
  saving, functions = _saving(meta, model.SerializeToString()), meta.graph_def.library.function
  for place, nodes in [('', meta.graph_def.node), *((one.signature.name, one.node_def) for one in functions)]:
    for node in nodes:
      if node.op not in ALLOWED and not (place in saving and node.op in _CHECKPOINT):
        return f'holds the operation {excerpt(node.op)}'
  return None


def _saving(meta: meta_graph_pb2.MetaGraphDef, content: bytes) -> set[str]:
  """Return the names of the functions that only the main graph calls, which save and restore the variables.

  A function is called by its name, which therefore occurs twice: in its definition and in the main graph.
  """
  called = {node.attr['f'].func.name for node in meta.graph_def.node if 'f' in node.attr}
  return {name for name in called if name and content.count(name.encode()) == 2}


def _problem_of_variables(folder: str) -> str | None:
  try:
    problem = checkpoint_index.problem(os.path.join(folder, 'variables', 'variables'))
  except (tf.errors.OpError, OSError) as error:
    return f'its variables cannot be read ({in_one_line(error, 200)})'
  return problem and f'of its variables, {problem}'
