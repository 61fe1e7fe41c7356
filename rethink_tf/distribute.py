"""Where the computation runs: one device, or synchronous replicas on all devices of one machine (section 4: 8 GPUs)."""

import gin
import tensorflow as tf

from rethink_tf.errors import UserError


@gin.register
def strategy(
  kind: str = 'default', num_devices: int | None = None, logical_cpus: int | None = None
) -> tf.distribute.Strategy:
  """The distribution strategy of a run.

  kind 'one_device' takes the first GPU, or the CPU without any; 'mirrored' copies the model to all GPUs, or to the
  logical CPUs; 'default' is mirrored when there are several of either, else one device. `num_devices` takes only
  the first so many. `logical_cpus` splits the CPU, to run replicas without GPUs; it must come before any TensorFlow op.

  Raises:
    UserError: unknown kind, fewer devices than asked for, or TensorFlow has started before `logical_cpus`.
  """
  if kind not in ('default', 'one_device', 'mirrored'):
    raise UserError(f"strategy.kind = '{kind}' must be 'default', 'one_device' or 'mirrored'")
  for name, count in (('num_devices', num_devices), ('logical_cpus', logical_cpus)):
    if count is not None and count < 1:
      raise UserError(f'strategy.{name} = {count} must be at least 1')
  if logical_cpus is not None:
    _split_cpu(logical_cpus)
  gpus, cpus = ([device.name.removeprefix('/device:') for device in tf.config.list_logical_devices(type_)]
                for type_ in ('GPU', 'CPU'))
  devices = cpus[:logical_cpus] if logical_cpus is not None or not gpus else gpus
  if num_devices is not None and num_devices > len(devices):
    raise UserError(f'strategy.num_devices = {num_devices}, but TensorFlow finds {len(gpus)} GPU(s) and {len(cpus)} '
                    'CPU device(s): lower it, install the CUDA libraries (pip install "tensorflow[and-cuda]"), or '
                    'split the CPU with strategy.logical_cpus')
  if kind == 'one_device' and (num_devices or 1) > 1:
    raise UserError(f"strategy.num_devices = {num_devices} needs strategy.kind = 'mirrored'")
  devices = devices[:1] if kind == 'one_device' else devices[:num_devices]
  if kind == 'mirrored' or len(devices) > 1:
    return tf.distribute.MirroredStrategy(devices)
  return tf.distribute.OneDeviceStrategy(devices[0])


def _split_cpu(count: int):
  cpu = tf.config.list_physical_devices('CPU')[0]
  try:
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
  except RuntimeError as error:
    found = len(tf.config.list_logical_devices('CPU'))
    if found < count:
      raise UserError(f'strategy.logical_cpus = {count}: TensorFlow has started with {found} CPU device(s) already; '
                      'call strategy() before any TensorFlow op, in a fresh process') from error
