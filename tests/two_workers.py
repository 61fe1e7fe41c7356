"""The workers of a multi-worker job as processes of this machine."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def free_ports(number: int) -> list[int]:
  """Return ports that are free at this moment."""
  sockets = [socket.socket() for _ in range(number)]
  try:
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in sockets]
  finally:
    for one in sockets:
      one.close()


def config(task: Mapping[str, Any], **cluster: Sequence[str]) -> str:
  """Return the value of TF_CONFIG for a task of a cluster, the addresses of each job."""
  return json.dumps({'cluster': cluster, 'task': task})


def environment(index: int, ports: Sequence[int], **variables: str) -> dict[str, str]:
  """Return the environment of worker `index` of the workers on these ports of this machine."""
  listed = config({'type': 'worker', 'index': index}, worker=[f'127.0.0.1:{port}' for port in ports])
  threads = {'TF_NUM_INTRAOP_THREADS': '1', 'TF_NUM_INTEROP_THREADS': '2', 'TF_ENABLE_ONEDNN_OPTS': '0'}
  return {**os.environ, **threads, 'TF_CONFIG': listed, **variables}


def start(arguments: Sequence[str], workers: int = 2, others: Sequence[str] = (), ports: Sequence[int] | None = None,
          folders: Sequence[os.PathLike | None] | None = None) -> list[subprocess.Popen]:
  """Start python <arguments> on every worker; `others` are added on all but the chief. Outputs include stderr.

  folders: the working directory of each.
  """
  ports, folders = ports or free_ports(workers), folders or [None] * workers
  here = os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *os.environ.get('PYTHONPATH', '').split(os.pathsep)])
  return [subprocess.Popen([sys.executable, *arguments, *(others if index else ())], cwd=folders[index],
                           env=environment(index, ports, PYTHONPATH=here), stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
          for index in range(workers)]


def finish(processes: Sequence[subprocess.Popen], seconds: float = 900) -> list[tuple[int, str]]:
  """Return the exit code and output of each process; those that run after `seconds` are killed."""
  try:
    outputs = [process.communicate(timeout=seconds)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
