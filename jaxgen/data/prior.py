"""Prior preservation: pictures of a subject mixed with pictures of its class, so that the model keeps the class.

  L = (sum over the subject's rows of L_i + w sum over the class's of L_i) / rows          (1)

Records take turns, the subject's pictures as often as the class's; the entry 'weight' of a record is 1 or w, which
multiplies its loss. Ruiz et al. 2022, "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven
Generation". Differs from their code, whose batches have a half of each, and whose two means are added: twice Eq. 1.
"""

import numpy as np

from jaxgen.data.captions import Describe
from jaxgen.data.dataset import Dataset, Record

Described = tuple[Dataset, Describe]


def with_prior(subject: Described, prior: Described, *, weight: float = 1.0) -> Described:
  """The records of two datasets in turn, as often of one as of the other, and what describes them.

  Args:
    subject: few pictures, and what describes them.
    prior: pictures of the class, such as samples of the base, and what describes them.
    weight: w.

  Raises:
    ValueError: one has no pictures, theirs differ in shape, or the weight is negative.
  """
  (one, of_one), (two, of_two) = subject, prior
  if not one.num_examples or not two.num_examples:
    raise ValueError(f'{one.name} has {one.num_examples} pictures and {two.name} {two.num_examples}; both need some')
  shapes = [dataset.read(0)['image'].shape for dataset in (one, two)]
  if shapes[0] != shapes[1]:
    raise ValueError(f'{one.name} has images of {shapes[0]} and {two.name} of {shapes[1]}; give both one resolution')
  if weight < 0:
    raise ValueError(f'the weight of the class is {weight}; it must be 0 or more')
  count = max(one.num_examples, two.num_examples)

  def decode(number: int) -> Record:
    dataset, factor = (two, weight) if number % 2 else (one, 1.0)
    record = dataset.read(number // 2 % dataset.num_examples)
    return record | {'weight': np.float32(factor), 'of_class': number % 2}

  def describe(record: Record, rng: np.random.Generator) -> str:
    return (of_two if record['of_class'] else of_one)(record, rng)

  made = Dataset(
    f'{one.name} among {two.name}',
    one.split,
    range(2 * count),
    decode,
    f'{one.fingerprint} among {two.fingerprint} {weight}',
  )
  return made, describe
