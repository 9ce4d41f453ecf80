"""Python imports this at its start: ends the process at a chosen change of the files of a run.

ATTACK_ROOT     directory whose changes count
ATTACK_AT       number of the change before which the process ends
ATTACK_SIGNAL   the signal, by name; SIGKILL
ATTACK_COUNT    a file for the number of changes, instead
"""

import atexit
import os
import signal
import sys
import threading

_CHANGES = ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.link', 'os.truncate')
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _attack():
  root = os.environ['ATTACK_ROOT']
  at = int(os.environ.get('ATTACK_AT', 0))
  number = signal.Signals[os.environ.get('ATTACK_SIGNAL', 'SIGKILL')]
  main = os.getpid()
  lock, count = threading.Lock(), 0

  def hook(event, arguments):
    nonlocal count
    if event == 'open':
      changes = isinstance(arguments[2], int) and arguments[2] & _WRITES
    else:
      changes = event in _CHANGES
    if changes and str(arguments[0]).startswith(root) and os.getpid() == main:
      with lock:
        count += 1
        now = count
      if now == at:
        os.kill(main, number)

  sys.addaudithook(hook)
  if path := os.environ.get('ATTACK_COUNT'):
    atexit.register(lambda: open(path, 'w').write(str(count)))


if os.environ.get('ATTACK_ROOT') and os.environ.get('JAX_PROCESS_ID', '0') == os.environ.get(
  'ATTACK_PROCESS', '0'
):
  _attack()
