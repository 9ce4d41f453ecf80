"""A Google Cloud Storage in memory: what gcsfs, its own client and TensorStore ask of its JSON API.

References:
  https://cloud.google.com/storage/docs/json_api/v1
"""

import email.parser
import email.policy
import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse


class FakeGcs:
  """A server on this machine, in a thread; use it in `with`.

  Attributes:
    objects: content and generation by (bucket, name).
    environ: what makes clients in other processes ask it.
  """

  def __init__(self):
    self.objects = {}
    self.lock = threading.Lock()
    self.generations = itertools.count(1)
    self.sessions = {}
    handler = type('Handler', (_Handler,), {'store': self})
    self._server = _Server(('localhost', 0), handler)
    self.url = f'http://localhost:{self._server.server_port}'
    self.environ = {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
      'GOOGLE_CLOUD_PROJECT': 'none',
    }

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *_):
    self._server.shutdown()
    self._server.server_close()

  def put(self, bucket, name, content):
    self.objects[bucket, name] = content, next(self.generations)
    return self.about(bucket, name)

  def about(self, bucket, name):
    content, generation = self.objects[bucket, name]
    return {
      'kind': 'storage#object',
      'bucket': bucket,
      'name': name,
      'size': str(len(content)),
      'id': f'{bucket}/{name}/{generation}',
      'generation': str(generation),
      'metageneration': '1',
      'updated': '2020-01-01T00:00:00.000Z',
      'timeCreated': '2020-01-01T00:00:00.000Z',
      'storageClass': 'STANDARD',
      'metadata': {},
    }

  def list(self, bucket, prefix, delimiter):
    items, prefixes = [], set()
    for where, name in sorted(self.objects):
      if where == bucket and name.startswith(prefix):
        head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ('', '', '')
        if found:
          prefixes.add(prefix + head + delimiter)
        else:
          items.append(self.about(bucket, name))
    return {'kind': 'storage#objects', 'items': items, 'prefixes': sorted(prefixes)}


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True

  def handle_error(self, request, client_address):
    """A client that is gone is no error."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_):
    pass

  def do(self):
    length = int(self.headers.get('Content-Length') or 0)
    body = self.rfile.read(length)
    if self.headers.get('Transfer-Encoding') == 'chunked':
      body = b''.join(iter(self._chunk, b''))
    with self.store.lock:
      code, headers, content = self.answer(self.command, self.path, self.headers, body)
    self.send_response(code)
    for name, value in {'Content-Length': len(content), **headers}.items():
      self.send_header(name, str(value))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content)

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do

  def _chunk(self):
    size = int(self.rfile.readline(), 16)
    chunk = self.rfile.read(size)
    self.rfile.readline()
    return chunk

  def answer(self, method, target, headers, body):
    parts = urllib.parse.urlsplit(target)
    query = {
      name: values[0]
      for name, values in urllib.parse.parse_qs(parts.query, keep_blank_values=True).items()
    }
    if parts.path.startswith('/batch/'):
      return self._batch(headers, body)
    path = parts.path.removeprefix('/download').removeprefix('/upload')
    if found := re.fullmatch(
      r'/storage/v1/b/([^/]+)/o/([^/]+)/(rewriteTo|moveTo)'
      r'(?:/b/([^/]+))?/o/([^/]+)',
      path,
    ):
      return self._copy(*(part and urllib.parse.unquote(part) for part in found.groups()))
    if found := re.fullmatch(r'/storage/v1/b/([^/]+)/o/([^/]+)', path):
      return self._object(method, *map(urllib.parse.unquote, found.groups()), query, headers)
    if found := re.fullmatch(r'/storage/v1/b/([^/]+)/o', path):
      bucket = urllib.parse.unquote(found[1])
      if method == 'GET':
        return _json(self.store.list(bucket, query.get('prefix', ''), query.get('delimiter', '')))
      return self._upload(method, bucket, query, headers, body)
    if found := re.fullmatch(r'/storage/v1/b/([^/]+)', path):
      return _json(
        {
          'kind': 'storage#bucket',
          'name': found[1],
          'location': 'US',
          'storageClass': 'STANDARD',
          'locationType': 'multi-region',
        }
      )
    return _error(404)

  def _copy(self, bucket, name, how, other, copy):
    if (bucket, name) not in self.store.objects:
      return _error(404)
    about = self.store.put(other or bucket, copy, self.store.objects[bucket, name][0])
    if how == 'moveTo':
      del self.store.objects[bucket, name]
      return _json(about)
    return _json({'kind': 'storage#rewriteResponse', 'done': True, 'resource': about})

  def _object(self, method, bucket, name, query, headers):
    if (bucket, name) not in self.store.objects:
      return _error(404)
    content, generation = self.store.objects[bucket, name]
    if query.get('ifGenerationMatch', str(generation)) != str(generation):
      return _error(412)
    if query.get('ifGenerationNotMatch') == str(generation):
      return _error(304)
    if method == 'DELETE':
      del self.store.objects[bucket, name]
      return 204, {}, b''
    if query.get('alt') != 'media':
      return _json(self.store.about(bucket, name))
    more = {'X-Goog-Generation': generation, 'Content-Type': 'application/octet-stream'}
    if found := re.fullmatch(r'bytes=(\d*)-(\d*)', headers.get('Range') or ''):
      first, last = found.groups()
      start = int(first) if first else max(0, len(content) - int(last))
      stop = int(last) + 1 if first and last else len(content)
      if start >= len(content):
        return _error(416)
      part = content[start:stop]
      more['Content-Range'] = f'bytes {start}-{start + len(part) - 1}/{len(content)}'
      return 206, more, part
    return 200, more, content

  def _upload(self, method, bucket, query, headers, body):
    if method == 'PUT' or 'upload_id' in query:
      return self._session(query['upload_id'], headers, body)
    kind, name = query.get('uploadType'), query.get('name')
    if kind == 'multipart':
      about, content = _parts(headers, body)
      name = name or json.loads(about)['name']
    elif kind == 'resumable':
      name = name or json.loads(body)['name']
      number = str(len(self.store.sessions))
      self.store.sessions[number] = bucket, name, query, bytearray()
      return (
        200,
        {
          'Location': f'{self.store.url}/upload/storage/v1/b/{bucket}/o'
          f'?uploadType=resumable&upload_id={number}'
        },
        b'',
      )
    else:
      content = body
    return self._put(bucket, name, query, content)

  def _session(self, number, headers, body):
    bucket, name, query, content = self.store.sessions[number]
    content += body
    total = headers.get('Content-Range', '*/*').rpartition('/')[2]
    if total == '*' or int(total) > len(content):
      more = {'Range': f'bytes=0-{len(content) - 1}'} if content else {}
      return 308, more, b''
    return self._put(bucket, name, query, bytes(content))

  def _put(self, bucket, name, query, content):
    there = self.store.objects.get((bucket, name), (b'', 0))[1]
    if query.get('ifGenerationMatch', str(there)) != str(there):
      return _error(412)
    return _json(self.store.put(bucket, name, content))

  def _batch(self, headers, body):
    """Each part is a request of its own."""
    answers = []
    for part in _messages(headers, body):
      lines = part.get_payload(decode=True).decode().splitlines()
      method, target, *_ = lines[0].split()
      code, _, content = self.answer(
        method, urllib.parse.urlsplit(target)._replace(scheme='', netloc='').geturl(), {}, b''
      )
      answers.append(
        f'Content-Type: application/http\r\nContent-ID: <response-{part["Content-ID"]}>'
        f'\r\n\r\nHTTP/1.1 {code} .\r\nContent-Type: application/json\r\n'
        f'Content-Length: {len(content)}\r\n\r\n{content.decode()}'
      )
    text = ''.join(f'--batch\r\n{answer}\r\n' for answer in answers) + '--batch--\r\n'
    return 200, {'Content-Type': 'multipart/mixed; boundary=batch'}, text.encode()


def _messages(headers, body):
  head = f'Content-Type: {headers["Content-Type"]}\r\n\r\n'.encode()
  parser = email.parser.BytesParser(policy=email.policy.HTTP)
  return parser.parsebytes(head + body).get_payload()


def _parts(headers, body):
  """The two parts of a multipart upload, byte for byte."""
  boundary = re.search(r'boundary="?([^";]+)', headers['Content-Type'])[1].strip("'").encode()
  _, about, content, _ = re.split(rb'\r?\n?--' + re.escape(boundary) + rb'(?:--)?\r?\n?', body)
  return [re.split(rb'\r?\n\r?\n', part, maxsplit=1)[1] for part in (about, content)]


def _json(value):
  return 200, {'Content-Type': 'application/json; charset=UTF-8'}, json.dumps(value).encode()


def _error(code):
  if code == 304:
    return code, {}, b''
  value = {'error': {'code': code, 'message': f'error {code}', 'errors': []}}
  return code, {'Content-Type': 'application/json'}, json.dumps(value).encode()
