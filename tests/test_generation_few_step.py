"""Models of few steps, and VDM, draw in every way that theory gives them, and refuse the one that it does not."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.generation import edit, inpaint, invert, stop
from jaxgen.objectives.base import Objective, sampled
from jaxgen.objectives.diffusion.vdm import vdm
from jaxgen.objectives.few_step.consistency import consistency
from jaxgen.objectives.few_step.mean_flow import mean_flow
from jaxgen.objectives.few_step.scm import scm
from jaxgen.objectives.few_step.shortcut import shortcut
from jaxgen.processes import times
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.sampler import Sampler
from tests import test_consistency, test_mean_flow, test_scm, test_vdm
from tests.analytic import compiled, flow, gaussian

SHAPE = (2, 2, 1)
KEYS = jax.random.split(jax.random.key(0), 512)


class Exact(NamedTuple):
  """An objective whose network is the best for pixels of N(mean, variance)."""

  objective: Objective
  mean: float
  variance: float
  params: Any
  ends: bool = False  # whether it knows the ends of paths


def _of(tests, objective, params: Any = None, ends=False):
  return Exact(objective, tests.MEAN, tests.VARIANCE, params or {'net': {}}, ends)


def _vdm():
  objective = vdm(
    test_vdm.Exact(),
    shape=SHAPE,
    sampler=Sampler(ddim, grids.uniform(24)),
    ends=test_vdm.ENDS,
    width=8,
  )
  params = jax.jit(lambda key: objective.init(key, {}, {}))(jax.random.key(0))['params']
  params['schedule'] = jax.tree.map(lambda leaf: leaf + 0.3, params['schedule'])  # as if it had learned
  return _of(test_vdm, objective, params)


STEPS: Any = {'shape': SHAPE, 'limit': None}
JUMPS = {'jumps': grids.uniform(1), **STEPS}
EXACT = {
  'vdm': _vdm(),
  'mean_flow': _of(test_mean_flow, mean_flow(test_mean_flow.Exact(), times=times.uniform(), **JUMPS)),
  'shortcut': _of(test_mean_flow, shortcut(test_mean_flow.Exact(), time_scale=1.0, **JUMPS)),
  'consistency': _of(
    test_consistency, consistency(test_consistency.Exact(), steps=1, times=(1.0,), **STEPS), ends=True
  ),
  'scm': _of(
    test_scm,
    scm(
      test_scm.Exact(),
      process=test_scm.PROCESS,
      sample_times=(1.0, 0.6, 0.3),
      **STEPS,
    ),
    ends=True,
  ),
}


def _parts(exact):
  assert exact.objective.denoising is not None
  return exact.objective.denoising


def _images(exact):
  draw = np.random.default_rng(0).standard_normal((len(KEYS), *SHAPE))
  return (exact.mean + exact.variance**0.5 * draw).astype(np.float32)


@pytest.mark.parametrize('exact', EXACT.values(), ids=EXACT)
def test_the_denoiser_is_the_mean_of_the_data_or_the_end_of_the_path(exact):
  d = _parts(exact)
  t, x = jnp.linspace(0.1, 0.95, 4), jnp.linspace(-1, 1, 16).reshape(4, *SHAPE)

  def both(params):
    process = d.process(params)
    x_t = x * process.sigma(jnp.float32(1))
    got = d.denoiser(params, {})(x_t, t, {})
    if exact.ends:
      path = [flow(process, exact.mean, exact.variance, x_t[i], t[i], 0.0) for i in range(4)]
      return got.x0, jnp.stack(path)
    return got[:2], gaussian(process, exact.mean, exact.variance)(x_t, t, {})[:2]

  got, want = compiled(both, exact.params)
  jax.tree.map(partial(np.testing.assert_allclose, atol=1e-3), got, want)


@pytest.mark.parametrize(
  'name',
  ['vdm', 'mean_flow', 'consistency', *(pytest.param(name, marks=pytest.mark.slow) for name in ('shortcut', 'scm'))],
)
def test_each_way_of_drawing_keeps_the_distribution_and_what_it_is_given(name):
  exact = EXACT[name]
  d, images = _parts(exact), jnp.asarray(_images(exact))
  known = jnp.tile(jnp.array([1.0, 0.0])[:, None, None], (len(KEYS), 1, 2, 1))
  ways = {
    'sampled': exact.objective.sample,
    'edited': partial(edit.edited(d, strength=0.5), image=images),
    'inpainted': partial(inpaint.inpainted(d, repeats=2), image=images, mask=known),
  }
  if not exact.ends:
    ways['found'] = partial(invert.reconstructed(d, repeats=10), image=images)
  made = compiled(lambda: {name: way(exact.params, {}, {}, KEYS) for name, way in ways.items()})
  moments = lambda a: [a.mean(), a.std()]  # noqa: E731
  # Of one step are samples and edits alone: the other ways take as many as they need.
  true = [exact.mean, exact.variance**0.5]
  for drawn in (made['sampled'], made['edited'], made['inpainted'][:, 1]):
    np.testing.assert_allclose(moments(drawn), true, atol=0.2 * true[1])
  np.testing.assert_allclose(made['inpainted'][:, 0], images[:, 0], atol=0.08)
  likeness = lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1]  # noqa: E731
  assert abs(likeness(made['inpainted'][:, 1], images[:, 1])) < 0.1
  assert 0.1 < likeness(made['edited'], images) < 0.95
  if not exact.ends:
    np.testing.assert_allclose(made['found'], images, atol=0.02)


@pytest.mark.parametrize('name', ['mean_flow', 'consistency'])
def test_it_is_watched_and_stopped_where_it_is_told(name):
  shown: list[Any] = []
  d = stop.stopped(_parts(EXACT[name]), 0.45)._replace(show=lambda t, x0: shown.append((t[0], x0)))
  got = compiled(lambda keys: sampled(d)(EXACT[name].params, {}, {}, keys), KEYS[:8])
  jax.effects_barrier()
  seen = np.array([t for t, _ in shown])
  assert (np.diff(seen) < 0).all()
  np.testing.assert_allclose(seen[[0, -1]], [1, 0.45])
  np.testing.assert_allclose(shown[-1][1], got, atol=1e-5)


@pytest.mark.parametrize('name', ['consistency', 'scm'])
def test_an_end_does_not_tell_where_a_path_comes_from(name):
  with pytest.raises(ValueError, match=r'noise of an image cannot be found; its images can be edited, inpainted'):
    invert.reconstructed(_parts(EXACT[name]))
