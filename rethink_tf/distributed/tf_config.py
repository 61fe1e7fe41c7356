"""The machines of a job, as the environment variable TF_CONFIG lists them."""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

from rethink_tf.distributed.cluster import is_address
from rethink_tf.errors import UserError, excerpt

FORM = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
_JOBS = ('chief', 'worker', 'evaluator')


class Cluster(NamedTuple):
  """The machines of a job, as listed in the environment variable TF_CONFIG."""

  addresses: tuple[str, ...]  # host:port of every worker, the chief first if there is one
  index: int  # of this process
  jobs: tuple[tuple[str, int], ...]  # name and number of tasks: ('chief', 1), ('worker', 3)


def cluster() -> Cluster | None:
  """Return the machines of TF_CONFIG; None if unset, for a single worker, and for a task of type 'evaluator'.

  Raises:
    UserError: TF_CONFIG is malformed or does not list this task.
  """
  config = _tf_config()
  if config is None:
    return None
  jobs, task = config
  kind = task.get('type')
  if kind == 'evaluator':
    return None
  chiefs, workers = jobs.get('chief', []), jobs.get('worker', [])
  if kind not in ('chief', 'worker') or kind not in jobs:
    raise UserError(f"TF_CONFIG says task.type = {excerpt(kind)}, but its cluster has {', '.join(jobs) or 'no job'}: "
                    "use one of them, 'chief' or 'worker'")
  # A task of several that is not told which one it is would be the first: so would the others.
  index = task.get('index', 0 if len(jobs[kind]) == 1 else None)
  if not jobs[kind]:
    raise UserError(f"TF_CONFIG says task.type = '{kind}', but its cluster lists no {kind}: list host:port of each")
  if type(index) not in (int, str) or not re.fullmatch('[0-9]{1,6}', str(index)) or int(index) >= len(jobs[kind]):
    raise UserError(f'TF_CONFIG says task.index = {excerpt(index)}, but its cluster has {len(jobs[kind])} {kind}(s): '
                    f'give each task its own index, 0 to {len(jobs[kind]) - 1}')
  addresses = (*chiefs, *workers)
  if len(set(addresses)) < len(addresses):
    duplicate = next(address for address in addresses if addresses.count(address) > 1)
    raise UserError(f'TF_CONFIG lists {duplicate} twice: each worker needs its own address')
  if len(addresses) == 1:
    return None
  counts = tuple((name, len(jobs[name])) for name in ('chief', 'worker') if jobs.get(name))
  return Cluster(addresses, int(index) + (len(chiefs) if kind == 'worker' else 0), counts)


def is_evaluator() -> bool:
  """Whether TF_CONFIG gives this process the task of type 'evaluator', as `cluster` raises UserError if malformed."""
  config = _tf_config()
  return config is not None and config[1].get('type') == 'evaluator'


def _tf_config() -> tuple[dict[str, list[str]], dict[str, Any]] | None:
  """Return the jobs (name -> addresses) and the task of TF_CONFIG; None if it is unset or lists no job.

  Raises:
    UserError: it is malformed, or lists other tasks than workers, one of them the chief, and evaluators.
  """
  text = os.environ.get('TF_CONFIG', '').strip()
  try:
    config = json.loads(text) if text else {}
  except (ValueError, RecursionError) as error:
    raise UserError(f'the environment variable TF_CONFIG is not valid JSON ({error}): write {FORM}') from error
  jobs, task = (config.get(name) if isinstance(config, dict) else None for name in ('cluster', 'task'))
  if config == {} or jobs == {}:
    return None
  listed = isinstance(jobs, dict) and all(
    isinstance(hosts, list) and all(isinstance(host, str) and ':' in host for host in hosts) for hosts in jobs.values())
  if not listed or not isinstance(task, dict):
    raise UserError(f'the environment variable TF_CONFIG is not of the form {FORM}')
  bad = next((host for name in ('chief', 'worker') for host in jobs.get(name, []) if not is_address(host)), None)
  if bad is not None:
    raise UserError(f'TF_CONFIG lists {excerpt(bad)}: write host:port, with a port between 1 and 65535')
  if jobs.get('ps'):
    raise UserError('TF_CONFIG lists parameter servers (ps), which synchronous training does not use: leave them out')
  other = next((name for name, hosts in jobs.items() if hosts and name not in _JOBS), None)
  if other is not None:
    raise UserError(f"TF_CONFIG lists a job {excerpt(other)}: call the first worker 'chief', or, like the others, "
                    "'worker'")
  if len(jobs.get('chief', [])) > 1:
    raise UserError(f"TF_CONFIG lists {len(jobs['chief'])} chiefs: there is one; list the others as 'worker'")
  return jobs, task
