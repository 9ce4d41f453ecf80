"""Trains one stage of a run: epochs, metrics, checkpoints, and stopping at a signal."""

from collections.abc import Callable, Iterator
import contextlib
import math
import time
from typing import Any

from absl import logging
import orbax.checkpoint as ocp

from slim_jax.display import progress
from slim_jax.runs import gated, recording, stages, tracking
from slim_jax.runs.run import Run
from slim_jax.runs.stages import Stage
from slim_jax.runtime import interrupt
from slim_jax.runtime.config import Config
from slim_jax.sparsity import observe, pull
from slim_jax.training import checkpoint, evaluation, loop
from slim_jax.training.train_state import TrainState, variables_of

PyTree = Any


def train(
  run: Run,
  stage: Stage,
  state: TrainState,
  task: loop.Task,
  manager: ocp.CheckpointManager,
  evaluate: Callable[..., evaluation.Result],
) -> tuple[TrainState, float]:
  """Trains a stage to its end, from its last checkpoint if there is one.

  Args:
    run: the run.
    stage: the stage.
    state: the state that the stage starts from.
    task: what to train.
    manager: checkpoints of the stage.
    evaluate: `(variables, split_data)` -> `evaluation.Result`.

  Returns:
    The trained state, and the seconds spent on the stage.

  Raises:
    DivergedError: a loss, a parameter or a statistic is NaN or infinite.
    Preempted: a signal arrived; a checkpoint has been saved.
    CheckpointError: a checkpoint cannot be read or written.
  """
  restored = checkpoint.restore(manager, state)
  seconds, totals = 0.0, None
  if restored is not None:
    state, seconds, totals = restored
    logging.info('%s: continues from step %d', stage, state.step)
  began = time.monotonic() - seconds
  messages = _Messages(run, stage, task.epochs)
  with (
    recording.recorder(run.workdir, stage, step=int(state.step)) as record,
    tracking.tracker(run.config.track, run.workdir, stage, run.config.to_dict()) as track,
    interrupt.watch() as watch,
    _diverging(manager),
    contextlib.closing(
      loop.fit(
        state,
        run.train_data,
        task,
        config=run.config,
        watch=watch,
        totals=totals,
        objective=run.objective,
        note=lambda: messages.note,
      )
    ) as epochs,
  ):
    patience, warned = _Patience(run, stage), False
    for epoch in () if patience.is_over else epochs:
      state, score = epoch.state, None
      due = epoch.is_complete and (
        _is_due(epoch, run.config.checkpoint_every_epochs) or epoch.number == task.epochs
      )
      if epoch.is_complete:
        # Recorded before the checkpoint: lines after the last checkpoint can be dropped, but a
        # line that is missing before it cannot be written again.
        scores = _scores(run, stage, epoch, evaluate, validated=due)
        line = _metrics(epoch, scores)
        record(**line)
        messages.epoch(epoch, scores)
        warned = warned or _warns_of_excess(run, stage, line)
        track({name: value for name, value in line.items() if name != 'scales'})
        score = _score(run, scores)
        patience.add(epoch.number, score)
      stop = not epoch.is_complete or watch.asked()
      if due or stop:
        checkpoint.save(
          manager,
          epoch.step,
          state,
          seconds=time.monotonic() - began,
          score=score,
          totals=epoch.totals,
        )
      if stop or patience.is_over:
        break
    checkpoint.wait(manager)
    # A signal may have come while the last checkpoint was written.
    if number := watch.noted or watch.asked():
      raise interrupt.Preempted(
        f'{stage}: stopped at step {int(state.step)}, as {interrupt.name_of(number)} asks, and saved; '
        'the same command continues',
        number,
      )
  return state, time.monotonic() - began


def excess(prune: Config, small: float) -> str:
  """Returns a warning if far more scales are small than channels are to be removed, else ''.

  Args:
    prune: `config.prune`. A budget does not say which share of the channels it takes.
    small: share of the scales below `observe.SMALL`.
  """
  return '' if prune.target else pull.excess(small, fraction=prune.fraction)


def _warns_of_excess(run: Run, stage: Stage, line: dict[str, Any]) -> bool:
  """Warns of an `excess` after an epoch; returns whether there is one."""
  if 'scales_below' not in line:
    return False
  text = excess(run.config.prune, line['scales_below'][f'{observe.SMALL:g}'])
  if text:
    logging.warning('%s, epoch %d: %s', stage, line['epoch'], text)
  return bool(text)


class _Messages:
  """What people are told of a stage while it trains.

  Attributes:
    note: what has been found after the last epoch, beside loss and metrics.
  """

  def __init__(self, run: Run, stage: Stage, epochs: int):
    """Starts the messages of a stage that trains for `epochs` epochs."""
    order = stages.of(run.config)
    later = order[order.index(stage) + 1 :]
    self.note = ''
    self._stage, self._epochs = stage, epochs
    self._epochs_after = sum(stages.epochs(run.config, other) for other in later)
    self._lines, self._last, self._is_first = progress.Lines(), time.monotonic(), True

  def epoch(self, epoch: loop.Epoch, scores: dict[str, Any]) -> None:
    """Logs the line of a complete epoch, and keeps the note."""
    now = time.monotonic()
    seconds, self._last = now - self._last, now
    small = [observe.say(scores)] if 'scales_below' in scores else []
    stage = self._epochs - epoch.number
    run = stage + self._epochs_after if self._epochs_after else 0
    left = {'stage': seconds * stage, 'run': seconds * run}  # thin networks need less
    if self._is_first and seconds < 60:  # most of it is compilation
      left = {}
    times = [f'{progress.clock(time)} in the {of}' for of, time in left.items() if time]
    self._is_first = False
    tested = {
      name: value
      for name, value in scores.items()
      if name.startswith(('test_', 'valid_')) and not name.endswith('_loss')
    }
    values = [
      f'loss {epoch.loss:.4f}',
      *progress.figures({**epoch.metrics, **tested}),
      f'{epoch.images_per_second:,.0f} images/s',
    ]
    values += small + ([f'left: {" and ".join(times)}'] if times else [])
    line = f'{self._stage}: epoch {epoch.number} of {self._epochs}, {", ".join(values)}'
    self._lines.add(line, is_last=not stage)
    # A terminal shows the time that is left for the stage by itself.
    self.note = ', '.join([*times[1:], *small])


class _Patience:
  """Ends a stage that has not become better on `valid_split` for `config.patience` epochs."""

  def __init__(self, run: Run, stage: Stage):
    """Begins with the epochs that are recorded of a stage."""
    self._patience = run.config.patience if is_chosen(run, stage) else 0
    self._best = self._last = (0, -math.inf)
    for line in run.workdir.metrics(stage) if self._patience else ():
      self.add(line['epoch'], _score(run, line))

  def add(self, epoch: int, score: float | None) -> None:
    """Adds an epoch; one without a score was not evaluated."""
    if score is not None:
      self._last = (epoch, score)
      if score > self._best[1]:
        self._best = self._last

  @property
  def is_over(self) -> bool:
    """Whether the stage ends after the last epoch that was added."""
    return bool(self._patience) and self._last[0] - self._best[0] >= self._patience


@contextlib.contextmanager
def _diverging(manager: ocp.CheckpointManager) -> Iterator[None]:
  """Adds the last checkpoint to the message of a `DivergedError`."""
  try:
    yield
  except loop.DivergedError as error:
    saved = manager.latest_step()
    if saved is None:
      raise
    raise loop.DivergedError(
      f'{error}; the checkpoint of step {saved} stays in {manager.directory}'
    ) from error


def _is_due(epoch: loop.Epoch, every: int) -> bool:
  """Returns whether something done every `every` epochs, 0 for never, is due after this one."""
  return every > 0 and epoch.number % every == 0


def _scores(
  run: Run,
  stage: Stage,
  epoch: loop.Epoch,
  evaluate: Callable[..., evaluation.Result],
  *,
  validated: bool,
) -> dict[str, Any]:
  """Evaluates the network after an epoch, as often as the config asks; describes its scales."""
  scores = _describe(variables_of(epoch.state)['params']) if stage.name == 'sparse' else {}
  splits = {}
  if _is_due(epoch, run.config.eval_every_epochs):
    splits['test'] = run.test_data
  if validated and is_chosen(run, stage):
    splits['valid'] = run.valid_data
  for name, split_data in splits.items():
    result = evaluate(variables_of(epoch.state), split_data)
    loop.check_finite(result.loss, f'{stage}: the {name} loss after epoch {epoch.number}')
    values = {**result.metrics, 'loss': result.loss}
    scores |= {f'{name}_{figure}': value for figure, value in values.items()}
  return scores


def _score(run: Run, scores: dict[str, Any]) -> float | None:
  """Returns the score of a checkpoint on `valid_split`; None if it was not evaluated there."""
  figure = run.objective.figure
  value = scores.get(f'valid_{figure.name}')
  return None if value is None else figure.score(value)


def _metrics(epoch: loop.Epoch, scores: dict[str, Any]) -> dict[str, Any]:
  """Returns the line of metrics of an epoch."""
  return {
    'epoch': epoch.number,
    'step': epoch.step,
    'loss': epoch.loss,
    **epoch.metrics,
    **scores,
    'learning_rate': epoch.learning_rate,
    'images_per_second': epoch.images_per_second,
  }


def _describe(params: PyTree) -> dict[str, Any]:
  """Measures how sparse the scales are, for the metrics."""
  return {
    **observe.shares(params, gated.scales_of),
    'scales': observe.by_layer(params, gated.scales_of),
  }


def is_chosen(run: Run, stage: Stage) -> bool:
  """Returns whether the result of a stage is its best checkpoint on `valid_split`.

  The result of a sparse stage is always its last checkpoint, because scales shrink until the end.
  """
  return run.valid_data is not None and stage.name not in ('sparse', *stages.AT_ONCE)
