"""Where this process stands among others: Vertex AI's CLUSTER_SPEC as the TF_CONFIG that TensorFlow reads."""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping
from typing import Any

from rethink_tf.errors import UserError

_TRAINING_POOLS = ('workerpool0', 'workerpool1')  # the primary replica, then the workers


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
  """Sets TF_CONFIG from CLUSTER_SPEC when a job has several hosts; to be called before TensorFlow's strategies.

  The service gives large jobs a TF_CONFIG of its own, with a chief beside the workers. It is replaced, so that a run
  knows one form only, that of launch/multi_worker.sh: workers, of which the first writes the run folder.

  Raises:
    UserError: CLUSTER_SPEC is not what Vertex AI documents, or this process is a parameter server or an evaluator.
  """
  if environment.get('CLUSTER_SPEC'):
    config = tf_config(environment['CLUSTER_SPEC'])
    if config is not None:
      environment['TF_CONFIG'] = json.dumps(config)


def tf_config(cluster_spec: str) -> dict[str, Any] | None:
  """The TF_CONFIG of a replica from its CLUSTER_SPEC, None when it trains alone.

  cluster_spec: JSON, {'cluster': {'workerpool0': ['host:port'], 'workerpool1': […]}, 'task': {'type': 'workerpool1',
  'index': 0}, …}. Pools beyond these two (reduction servers) take no part in training.
  """
  try:
    spec = json.loads(cluster_spec)
    pools = [list(spec['cluster'].get(pool, [])) for pool in _TRAINING_POOLS]
    pool, index = spec['task']['type'], int(spec['task']['index'])
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError('the environment variable CLUSTER_SPEC is not that of a Vertex AI job '
                    f'({type(error).__name__}: {error}): unset it outside of one') from error
  if pool not in _TRAINING_POOLS:
    raise UserError(f'CLUSTER_SPEC makes this process part of {pool}, which does not train: start the job with '
                    'launch/vertex.py, which has one primary replica and workers')
  place = _TRAINING_POOLS.index(pool)
  if len(pools[0]) != 1 or not 0 <= index < len(pools[place]):
    raise UserError(f'CLUSTER_SPEC has {len(pools[0])} primary replica(s) and {len(pools[1])} worker(s), and this is '
                    f'number {index} of {pool}: give worker pool 0 exactly one replica')
  workers = [*pools[0], *pools[1]]
  if len(workers) == 1:
    return None
  return {'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': index + len(pools[0]) * place}}
