"""Floating-point operations of a function, counted from its jaxpr: matrix products and convolutions, nothing else.

XLA's own count takes the body of a scan once; here it is taken as often as it runs, and so are the programs of a Pallas
kernel's grid and of the devices of a mesh. A multiply-add is two operations.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr


def count(function: Callable, *args: Any) -> int:
  """Operations of `function(*args)`, over all devices; the arguments may be ShapeDtypeStructs.

  Operations that no result depends on are not compiled, and not counted.

  Raises:
    ValueError: there is a product in a while loop, whose number of turns is not known.
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return _of_jaxpr(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def count_gradient(function: Callable, *args: Any) -> int:
  """Operations of a scalar function and its gradient by the first argument, with nothing computed twice.

  That is what its tangent costs: each product in it is transposed into one product of the same size, and forward mode
  rematerialises nothing.
  """

  def tangent(first, *rest):
    return jax.jvp(lambda first: function(first, *rest), (first,), (first,))

  with jax.default_device(jax.devices('cpu')[0]):  # without fused kernels, which have no tangent to look into
    return count(tangent, *args)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
  name, params = equation.primitive.name, equation.params
  arrays: list[Any] = [variable.aval for variable in equation.invars]
  out: Any = equation.outvars[0].aval if equation.outvars else None
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    terms = math.prod(arrays[0].shape[axis] for axis in contracted)
    return 2 * out.size * terms if terms > 1 else 0  # a sum of one term compiles to an elementwise product
  if name == 'conv_general_dilated':
    kernel = arrays[1]
    per_output = kernel.size // kernel.shape[params['dimension_numbers'].rhs_spec[0]]
    return 2 * out.size * per_output // math.prod(params['lhs_dilation'])  # zeros are free
  if name == 'custom_lin':
    return _of_custom_tangent(equation)
  inner = [_of_jaxpr(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
  if name == 'scan':
    return params['length'] * sum(inner)
  if name == 'shard_map':
    return params['mesh'].size * sum(inner)
  if name == 'pallas_call':
    return math.prod(params['grid_mapping'].grid) * sum(inner)
  if name == 'cond':
    return max(inner)
  if name == 'while' and any(inner):
    raise ValueError('a while loop has products in it and no known number of turns; use lax.scan, or a fixed fori_loop')
  return sum(inner)


def _of_custom_tangent(equation: core.JaxprEqn) -> int:
  """Products of a `custom_vjp`'s tangent: of its backward pass, towards the inputs that have tangents."""
  params = equation.params
  residuals = [variable.aval for variable in equation.invars[: params['num_res']]]
  jaxpr = jax.make_jaxpr(params['bwd'].call_wrapped)(*residuals, *params['out_avals']).jaxpr
  return _of_jaxpr(dce_jaxpr(jaxpr, [not zero for zero in params['in_zeros']])[0])
