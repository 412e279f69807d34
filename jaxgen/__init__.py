"""jaxgen: training image generators in JAX, as pure functions of (config, seed, step)."""

__version__ = '0.1.0'
