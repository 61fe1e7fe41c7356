"""CLUSTER_SPEC becomes TF_CONFIG: every process knows the same workers and its own place."""

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


@pytest.mark.parametrize('pool, index, place', [('workerpool0', 0, 0), ('workerpool1', 0, 1), ('workerpool1', 1, 2)])
def test_replicas_are_workers_in_order(pool, index, place, monkeypatch):
  environment = {'CLUSTER_SPEC': spec(pool, index), 'TF_CONFIG': '{"cluster": {"chief": ["x:1"]}}'}
  cluster.adopt(environment)
  assert json.loads(environment['TF_CONFIG']) == {'cluster': {'worker': PRIMARY + WORKERS},
                                                  'task': {'type': 'worker', 'index': place}}
  monkeypatch.setenv('TF_CONFIG', environment['TF_CONFIG'])
  resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()  # as the strategies read it
  assert (resolver.task_type, resolver.task_id) == ('worker', place)
  assert resolver.cluster_spec().as_dict() == {'worker': PRIMARY + WORKERS}


def test_a_pool_that_does_not_train_is_left_out():
  config = cluster.tf_config(spec('workerpool1', 1, workerpool0=PRIMARY, workerpool1=WORKERS, workerpool2=['r:1']))
  assert config['cluster'] == {'worker': PRIMARY + WORKERS} and config['task']['index'] == 2


@pytest.mark.parametrize('environment', [
  {}, {'CLUSTER_SPEC': ''}, {'TF_CONFIG': 'as it is'}, {'CLUSTER_SPEC': spec(workerpool0=['127.0.0.1:2222'])},
])
def test_who_trains_alone_is_left_alone(environment):
  before = dict(environment)
  cluster.adopt(environment)
  assert environment == before


@pytest.mark.parametrize('text, words', [
  ('{"cluster"', 'CLUSTER_SPEC is not that of a Vertex AI job'), ('[]', 'CLUSTER_SPEC is not'),
  ('{}', "KeyError: 'cluster'"), ('{"cluster": {}, "task": null}', 'TypeError'), ('"text"', 'TypeError'),
  (spec(workerpool0=None), 'TypeError'), (spec(index='first'), 'ValueError'),
  (spec('workerpool3', 0), 'part of workerpool3, which does not train'),
  (spec('workerpool1', 2), 'number 2 of workerpool1'), (spec('workerpool0', -1), 'number -1'),
  (spec(workerpool0=PRIMARY * 2, workerpool1=WORKERS), '2 primary replica'),
])
def test_what_is_not_a_cluster(text, words):
  with pytest.raises(UserError) as error:
    cluster.adopt({'CLUSTER_SPEC': text})
  assert words in error.value.line() and '\n' not in str(error.value)
