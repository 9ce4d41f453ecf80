"""Curves of a run, as TensorBoard shows them."""

from tensorboard.backend.event_processing import event_accumulator


def read(directory):
  """(step, value) of each curve, steps of each histogram and texts, as TensorBoard reads them."""
  events = event_accumulator.EventAccumulator(
    str(directory),
    size_guidance={
      event_accumulator.SCALARS: 0,
      event_accumulator.HISTOGRAMS: 0,
      event_accumulator.TENSORS: 0,
    },
  )
  events.Reload()
  tags = events.Tags()
  return (
    {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags['scalars']},
    {
      tag: [(e.step, e.histogram_value.num) for e in events.Histograms(tag)]
      for tag in tags['histograms']
    },
    [e.tensor_proto.string_val[0].decode() for tag in tags['tensors'] for e in events.Tensors(tag)],
  )
