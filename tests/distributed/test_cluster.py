"""Conversion of CLUSTER_SPEC to TF_CONFIG: the same workers and the right index for every process."""

import json

import pytest
import tensorflow as tf

from rethink_tf.distributed import cluster
from rethink_tf.errors import UserError

PRIMARY, WORKERS = ['job-workerpool0-0:2222'], ['job-workerpool1-0:2222', 'job-workerpool1-1:2222']


def spec(pool='workerpool0', index=0, **pools):
  pools = pools or {'workerpool0': PRIMARY, 'workerpool1': WORKERS}
  return json.dumps({'cluster': pools, 'environment': 'cloud', 'task': {'type': pool, 'index': index, 'trial': ''},
                     'job': {}, 'open_ports': [3333]})


@pytest.mark.parametrize('pool, index, worker', [('workerpool0', 0, 0), ('workerpool1', 0, 1), ('workerpool1', 1, 2)])
def test_replicas_are_workers_in_order(pool, index, worker, monkeypatch):
  environment = {'CLUSTER_SPEC': spec(pool, index), 'TF_CONFIG': '{"cluster": {"chief": ["x:1"]}}'}
  cluster.adopt(environment)
  assert json.loads(environment['TF_CONFIG']) == {'cluster': {'worker': PRIMARY + WORKERS},
                                                  'task': {'type': 'worker', 'index': worker}}
  monkeypatch.setenv('TF_CONFIG', environment['TF_CONFIG'])
  resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()  # as the strategies read it
  assert (resolver.task_type, resolver.task_id) == ('worker', worker)
  assert resolver.cluster_spec().as_dict() == {'worker': PRIMARY + WORKERS}


def test_pools_that_do_not_train_are_left_out():
  config = cluster.tf_config(spec('workerpool1', 1, workerpool0=PRIMARY, workerpool1=WORKERS, workerpool2=['r:1']))
  assert config['cluster'] == {'worker': PRIMARY + WORKERS} and config['task']['index'] == 2


@pytest.mark.parametrize('environment', [
  {}, {'CLUSTER_SPEC': ''}, {'TF_CONFIG': 'unchanged'}, {'CLUSTER_SPEC': spec(workerpool0=['127.0.0.1:2222'])},
])
def test_a_single_replica_needs_no_tf_config(environment):
  before = dict(environment)
  cluster.adopt(environment)
  assert environment == before


@pytest.mark.parametrize('text, message', [
  ('{"cluster"', 'CLUSTER_SPEC is not that of a Vertex AI job'), ('[]', 'CLUSTER_SPEC is not'),
  ('{}', "KeyError: 'cluster'"), ('{"cluster": {}, "task": null}', 'TypeError'), ('"text"', 'TypeError'),
  (spec(workerpool0=None), 'ValueError'), (spec(workerpool0='a:1'), 'ValueError'),
  (spec(workerpool0=[7]), 'ValueError'), (spec(workerpool0=['a:x']), 'ValueError'),
  (spec(index=float('inf')), 'OverflowError'),
  ('[' * 100_000, 'RecursionError'), (spec(index='first'), 'ValueError'),
  (spec('workerpool3', 0), 'into workerpool3, which does not train'),
  (spec('workerpool1', 2), 'replica 2 of workerpool1'), (spec('workerpool0', -1), 'replica -1'),
  (spec(workerpool0=PRIMARY * 2, workerpool1=WORKERS), '2 primary replica'),
])
def test_malformed_cluster_specs_are_user_errors(text, message):
  with pytest.raises(UserError) as error:
    cluster.adopt({'CLUSTER_SPEC': text})
  assert message in error.value.line() and '\n' not in str(error.value)
