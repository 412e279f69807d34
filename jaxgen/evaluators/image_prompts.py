"""Whether samples look like the picture that was their prompt, and still do what words ask for.

  shown  = share of the picture's attributes that samples show, of the picture alone                   (1)
  prompt = share of samples that show what the words name, which the picture does not                  (2)
  kept   = share of the picture's other attributes that those samples show                             (3)

All are seen by a classifier of attributes.
"""

from collections.abc import Mapping

import jax
import numpy as np

from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import Generate
from jaxgen.pretrained.attribute_classifier import Classify
from jaxgen.sharding import replicated
from jaxgen.train_state import sampling_params
from jaxgen.typing import Int


def image_prompts(
  generate: Generate,
  classify: Classify,
  *,
  mesh: jax.sharding.Mesh,
  alone: Mapping[str, np.ndarray],
  prompted: Mapping[str, np.ndarray],
  truth: Int[np.ndarray, 'n a'],
  named: Int[np.ndarray, 'n a'],
  every: int,
  seed: int = 0,
  name: str = 'image_prompt',
) -> Evaluator:
  """Measures Eqs. 1 to 3, as NAME_shown, NAME_follows_words and NAME_kept.

  Args:
    generate: from `make_generate`.
    classify: from `pretrained.attribute_classifier.load`.
    mesh: the mesh `generate` was made for.
    alone: conditions of the pictures with no words.
    prompted: conditions of the pictures with words that ask for something else.
    truth: attributes of the pictures, -1 for what cannot be seen.
    named: what the words ask for, -1 for what they leave open.
    every: interval in steps.
    seed: seed of the noise.
    name: name of the numbers.
  """

  def run(context: Context) -> dict[str, float]:
    gather = jax.jit(lambda images: images, out_shardings=replicated(mesh))

    def seen(cond: Mapping[str, np.ndarray]) -> np.ndarray:
      found, num = [], len(truth)
      for batch, count in generate(sampling_params(context.state), context.frozen, cond, seed=seed, num=num):
        found.append(classify(np.asarray(gather(batch))[:count]))
        context.progress(name, sum(map(len, found)), num)
      return np.concatenate(found)

    first, second = seen(alone), seen(prompted)
    others = (truth >= 0) & (named < 0)
    return {
      f'{name}_shown': float((first == truth)[truth >= 0].mean()),
      f'{name}_follows_words': float((second == named)[named >= 0].mean()),
      f'{name}_kept': float((second == truth)[others].mean()),
    }

  return Evaluator(name, every, run)
