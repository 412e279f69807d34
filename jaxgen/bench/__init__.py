"""Benchmarks on this machine: the train step of an experiment, alone or in turn with another program's; a sampler."""
