"""Serves a finished run over HTTP: an image file in, its class out.

python launch/examples/serve.py runs/digits 8000
curl --data-binary @image.png http://localhost:8000
"""

import http.server
import io
import json
import sys

import jax
import numpy as np
from PIL import Image

import slim_jax
from slim_jax.runs import finished


def server(workdir, port):
  apply, variables = slim_jax.load(workdir)
  about = finished.about(workdir)
  height, width, channels = about['image']
  predict = jax.jit(lambda image: jax.nn.softmax(apply(variables, image)))

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      content = self.rfile.read(int(self.headers['Content-Length']))
      image = Image.open(io.BytesIO(content)).convert('L' if channels == 1 else 'RGB')
      pixels = np.asarray(image.resize((width, height))).reshape(1, height, width, channels)
      (probabilities,) = np.asarray(predict(pixels))
      best = int(probabilities.argmax())
      answer = {'class': about['class_names'][best], 'probability': float(probabilities[best])}
      self.send_response(200)
      self.end_headers()
      self.wfile.write(json.dumps(answer).encode())

  return http.server.HTTPServer(('localhost', port), Handler)


if __name__ == '__main__':
  server(sys.argv[1], int(sys.argv[2])).serve_forever()
