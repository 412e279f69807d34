"""State dicts: tensors by name, as PyTorch's modules save them, and what a network wants of them."""

from collections.abc import Mapping
from typing import Any

Shape = tuple[int, ...]


def check(tensors: Mapping[str, Any], wanted: Mapping[str, Shape], *, network: str) -> None:
  """Compares the tensors of a file with those of a network.

  Args:
    tensors: arrays, or anything with a shape, by name.
    wanted: the shape of every tensor the network has.
    network: what the file should be of, for the message.

  Raises:
    ValueError: a list of all tensors that are missing, unexpected or of another shape.
  """
  problems = [f'missing: {name} {wanted[name]}' for name in wanted if name not in tensors]
  problems += [f'unexpected: {name} {tuple(tensors[name].shape)}' for name in tensors if name not in wanted]
  problems += [
    f'misshapen: {name} is {tuple(tensors[name].shape)}, wanted {shape}'
    for name, shape in wanted.items()
    if name in tensors and tuple(tensors[name].shape) != shape
  ]
  if problems:
    raise ValueError(f'the state dict is not of this {network}:\n  ' + '\n  '.join(problems))
