"""A local HTTP server whose answers a test scripts: ranges, validators, errors, interruptions."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time

import numpy as np

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server:
  """Serves one content at every path, as its attributes say.

  faults: one is taken for each request: a status, ('cut', bytes) to close the connection after so many of its
  bytes, ('stall', bytes) to send no more after them, ('redirect', address), ('change', content) to replace the
  content, or None.
  requests: (path, Range, If-Range) of each request.
  """

  def __init__(self, content: bytes = b''):
    self.content, self.ranges, self.etag, self.modified = content, True, True, ''
    self.faults: list = []
    self.requests: list[tuple[str, str | None, str | None]] = []
    self.chunk, self.pause, self.length, self.kind = 1 << 16, 0.0, True, 'application/octet-stream'
    self.honest = True  # it honours If-Range
    self.contents: dict[str, bytes] = {}  # by path
    self.released = threading.Event()
    self.address = ''

  def url(self, name: str = 'file.bin') -> str:
    return f'{self.address}/some/folder/{name}'


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
  class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
      pass

    def do_GET(self) -> None:
      wanted, condition = self.headers.get('Range'), self.headers.get('If-Range')
      server.requests.append((self.path, wanted, condition))
      fault = server.faults.pop(0) if server.faults else None
      if isinstance(fault, int):
        self.send_error(fault)
        return
      if fault and fault[0] == 'redirect':
        self.send_response(302)
        self.send_header('Location', fault[1])
        self.end_headers()
        return
      if fault and fault[0] == 'change':
        server.content, fault = fault[1], None
      self.answer(server.contents.get(self.path, server.content), wanted, condition, fault)

    def answer(self, content: bytes, wanted: str | None, condition: str | None, fault) -> None:
      tag = f'"{hash(content)}"'
      first = 0
      if wanted and server.ranges and (condition in (None, tag, server.modified) or not server.honest):
        first = int(wanted.removeprefix('bytes=').rstrip('-'))
        if first >= len(content):
          self.send_error(416)
          return
        self.send_response(206)
        self.send_header('Content-Range', f'bytes {first}-{len(content) - 1}/{len(content)}')
      else:
        self.send_response(200)
      self.send_header('Content-Type', server.kind)
      if server.etag:
        self.send_header('ETag', tag)
      if server.modified:
        self.send_header('Last-Modified', server.modified)
      if server.length:
        self.send_header('Content-Length', str(len(content) - first))
      self.end_headers()
      body = content[first:]
      if fault:
        body = body[:fault[1]]
      with contextlib.suppress(OSError):
        for start in range(0, len(body), server.chunk):
          self.wfile.write(body[start:start + server.chunk])
          time.sleep(server.pause)
        if fault and fault[0] == 'stall':
          self.wfile.flush()
          server.released.wait(20)

  return Handler


@contextlib.contextmanager
def serving(content: bytes = b''):
  """Yield a running Server."""
  server = Server(content)
  running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _handler(server))
  running.daemon_threads = True
  server.address = f'http://127.0.0.1:{running.server_address[1]}'
  thread = threading.Thread(target=running.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.released.set()
    running.shutdown()
    running.server_close()
