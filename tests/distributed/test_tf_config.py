"""The machines of a job in TF_CONFIG: the order of the workers, errors in what it lists."""

import json

import pytest

from rethink_tf.distributed import tf_config
from rethink_tf.errors import UserError
from tests.two_workers import config

HOSTS = ['a:1', 'b:1', 'c:1']


@pytest.mark.parametrize('text, expected', [
  ('', None),
  ('{}', None),
  (config({'type': 'worker', 'index': 0}, worker=['a:1']), None),
  (config({'type': 'evaluator', 'index': 0}, worker=HOSTS, evaluator=['d:1']), None),
  (config({'type': 'worker', 'index': 2}, worker=HOSTS), (tuple(HOSTS), 2, (('worker', 3),))),
  (config({'type': 'worker', 'index': '1'}, worker=HOSTS), (tuple(HOSTS), 1, (('worker', 3),))),
  (config({'type': 'chief', 'index': 0}, worker=HOSTS[1:], chief=['a:1']),
   (tuple(HOSTS), 0, (('chief', 1), ('worker', 2)))),
  (config({'type': 'worker', 'index': 1}, worker=HOSTS[1:], chief=['a:1']),
   (tuple(HOSTS), 2, (('chief', 1), ('worker', 2)))),
  (config({'type': 'chief'}, worker=HOSTS[1:], chief=['a:1']), (tuple(HOSTS), 0, (('chief', 1), ('worker', 2)))),
], ids=['unset', 'empty', 'single', 'evaluator', 'worker', 'text', 'chief', 'worker-with-chief', 'the-only-chief'])
def test_the_cluster_of_tf_config(monkeypatch, text, expected):
  monkeypatch.setenv('TF_CONFIG', text)
  assert tf_config.cluster() == expected


@pytest.mark.parametrize('text, message', [
  ('{"cluster": ', 'TF_CONFIG is not valid JSON'),
  ('["a:1"]', 'TF_CONFIG is not of the form {"cluster"'),
  (config({'type': 'worker', 'index': 0}, worker='a:1,b:1'), 'TF_CONFIG is not of the form'),
  (config({'type': 'worker', 'index': 0}, worker=['a', 'b']), 'TF_CONFIG is not of the form'),
  (json.dumps({'cluster': {'worker': HOSTS}}), 'TF_CONFIG is not of the form'),
  (config({'type': 'worker', 'index': 3}, worker=HOSTS), r'task.index = 3, but its cluster has 3 worker\(s\)'),
  (config({'type': 'worker', 'index': -1}, worker=HOSTS), 'task.index = -1'),
  (config({'type': 'worker', 'index': float('inf')}, worker=HOSTS), 'task.index = inf'),
  (config({'type': 'worker', 'index': True}, worker=HOSTS), 'task.index = True'),
  (config({'type': ['x'] * 9, 'index': 0}, worker=HOSTS), 'task.type = an object of type list'),
  (config({'type': 'worker', 'index': 0}, worker=['a:x', 'b:1']), "lists 'a:x': write host:port"),
  (config({'type': 'worker', 'index': 0}, worker=['a:1', 'b:99999']), "lists 'b:99999'"),
  ('[' * 100_000, 'is not valid JSON'),
  (config({'type': 'master', 'index': 0}, worker=HOSTS), "task.type = 'master', but its cluster has worker"),
  (config({'type': 'worker', 'index': 0}, worker=['a:1', 'a:1']), 'lists a:1 twice'),
  (config({'type': 'worker', 'index': 0}, worker=HOSTS, ps=['d:1']), 'parameter servers'),
  (config({'type': 'worker'}, worker=HOSTS), r'task.index = None, .* give each task its own index, 0 to 2'),
  (config({'type': 'worker', 'index': 0}, worker=[]), "task.type = 'worker', but its cluster lists no worker"),
  (config({'type': 'worker', 'index': 0}, worker=['b:1'], master=['a:1']), "lists a job 'master': call the first"),
  (config({'type': 'chief', 'index': 0}, chief=HOSTS[:2], worker=HOSTS[2:]), "2 chiefs: there is one; list the others"),
])
def test_a_malformed_cluster_is_a_user_error(monkeypatch, text, message):
  monkeypatch.setenv('TF_CONFIG', text)
  with pytest.raises(UserError, match=message) as caught:
    tf_config.cluster()
  assert '\n' not in str(caught.value)
