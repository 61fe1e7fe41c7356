"""Conversion of Vertex AI's CLUSTER_SPEC to the TF_CONFIG that TensorFlow reads."""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping
from typing import Any

from rethink_tf.errors import UserError

_TRAINING_POOLS = ('workerpool0', 'workerpool1')  # the primary replica, then the workers


def is_address(text: Any) -> bool:
  """Whether a value is 'host:port' with a port number."""
  if not isinstance(text, str):
    return False
  host, _, port = text.rpartition(':')
  return bool(host) and not any(character.isspace() for character in host) and port.isascii() and \
    port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
  """Set TF_CONFIG from CLUSTER_SPEC when a job has several hosts; call it before creating a TensorFlow strategy.

  The TF_CONFIG that the service itself gives large jobs, with a chief beside the workers, is replaced, so that there is
  one form only, that of launch/multi_worker.sh: workers, of which the first writes the run folder.

  Raises:
    UserError: CLUSTER_SPEC is not as Vertex AI documents it, or this process is a parameter server or an evaluator.
  """
  if environment.get('CLUSTER_SPEC'):
    config = tf_config(environment['CLUSTER_SPEC'])
    if config is not None:
      environment['TF_CONFIG'] = json.dumps(config)


def tf_config(cluster_spec: str) -> dict[str, Any] | None:
  """Return the TF_CONFIG of a replica from its CLUSTER_SPEC; None for a single replica.

  cluster_spec: JSON, {'cluster': {'workerpool0': ['host:port'], 'workerpool1': […]}, 'task': {'type': 'workerpool1',
  'index': 0}, …}. Further pools (reduction servers) do not train and are left out.
  """
  try:
    spec = json.loads(cluster_spec)
    pools = [spec['cluster'].get(pool, []) for pool in _TRAINING_POOLS]
    pool, index = spec['task']['type'], int(spec['task']['index'])
    if not all(isinstance(pool, list) and all(map(is_address, pool)) for pool in pools):
      raise ValueError('a pool is not a list of addresses host:port')
  except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
    raise UserError('the environment variable CLUSTER_SPEC is not that of a Vertex AI job '
                    f'({type(error).__name__}: {error}): unset it outside of such a job') from error
  if pool not in _TRAINING_POOLS:
    raise UserError(f'CLUSTER_SPEC puts this process into {pool}, which does not train: start the job with '
                    'launch/vertex.py, which creates one primary replica and workers')
  pool_index = _TRAINING_POOLS.index(pool)
  if len(pools[0]) != 1 or not 0 <= index < len(pools[pool_index]):
    raise UserError(f'CLUSTER_SPEC has {len(pools[0])} primary replica(s) and {len(pools[1])} worker(s), and this is '
                    f'replica {index} of {pool}: give worker pool 0 exactly one replica')
  workers = [*pools[0], *pools[1]]
  if len(workers) == 1:
    return None
  return {'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': index + len(pools[0]) * pool_index}}
