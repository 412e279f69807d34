"""The model card of an exported run: its data, training, metrics with their protocols, and how to use it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxgen import report
from jaxgen.export import Exported

_LOAD_PROGRAM = """
```python
import jax
import numpy as np
from safetensors.numpy import load_file

program = jax.export.deserialize(bytearray(open('sampler.stablehlo', 'rb').read()))
arrays = load_file('sampler.safetensors')
images = program.call(arrays, {fields}, np.uint32(0))  # uint8 [{num}, height, width, channels]; the last is the seed
```
"""
_LOAD_PIPELINE = """
```python
import diffusers

pipeline = diffusers.{name}.from_pretrained('.')
images = pipeline({arguments}).images
```
"""
_CALLS = {
  'DDPMPipeline': 'batch_size=4',
  'DiTPipeline': 'class_labels=[0, 1], guidance_scale=1.0',  # it guides from class 1000, whatever the model
}
_LOAD_MODEL = """
```
jaxgen sample --weights . --out samples.png
```

```python
import jaxgen

images = jaxgen.load_run('.').sample(16)
```
"""


def model_card(
  *,
  record: Mapping[str, Any],
  provenance: Mapping[str, Any],
  metrics: Sequence[Mapping[str, Any]],
  protocols: Mapping[str, Any],
  exported: Exported,
  step: int,
  sizes: Mapping[str, int],
  fields: Mapping[str, Sequence[int]],
  num: int,
) -> str:
  """Markdown with the metadata that model hubs read.

  Args:
    record: config.json.
    provenance: provenance of the training data (data/licences.py).
    metrics: records of metrics.jsonl.
    protocols: protocols.json.
    exported: contents of the folder.
    step: train steps of the weights.
    sizes: number of parameters by network.
    fields: shapes of the conditions of `num` images.
    num: images that a call of the program makes.
  """
  name = str(record.get('name') or 'model')
  licences = provenance['licences']
  numbers = {key: value for at in metrics if at['step'] <= step for key, value in at.items() if report.is_quality(key)}
  head = ['---', 'library_name: jaxgen', 'tags: [image-generation, jax]', f'datasets: [{provenance["dataset"]}]', '---']
  lines = [
    *head,
    f'# {name}',
    '',
    '![samples](samples.png)',
    '',
    'Samples of one seed, not chosen.',
    '',
    '## Data',
    '',
    f'{provenance["records"]:,} records of {provenance["dataset"]} ({provenance["split"]}); licences of the records: '
    + ', '.join(f'{licence} ({count:,})' for licence, count in licences.items())
    + '.',
    *[f'- {line}' for line in provenance['attributions'][:100]],
    '',
    'The licence of the weights is for whoever publishes them to state.',
    '',
    '## Training',
    '',
    *_training(record, step, sizes),
    '',
    '## Numbers',
    '',
    *(_numbers(numbers, protocols) or ['Nothing was measured.']),
    '',
    '## Use',
    '',
    *[f'- `{folder}/`: {_layout(layout)}' for folder, layout in exported.networks.items()],
  ]
  text = '\n'.join(lines) + '\n'
  if exported.pipeline:
    text += _LOAD_PIPELINE.format(name=exported.pipeline, arguments=_CALLS[exported.pipeline])
  if exported.model:
    text += _LOAD_MODEL
  if exported.program:
    given = ', '.join(f"'{key}': np.zeros({list(shape)}, np.int32)" for key, shape in fields.items())
    text += _LOAD_PROGRAM.replace('{fields}', f'{{{given}}}').replace('{num}', str(num))
  return text


def _layout(layout: str) -> str:
  return (
    'the network as diffusers keeps it; `jaxgen.load` and diffusers read it'
    if layout == 'diffusers'
    else ('the network as jaxgen names its arrays, in model.safetensors')
  )


def _training(record: Mapping[str, Any], step: int, sizes: Mapping[str, int]) -> list[str]:
  """A table of the training."""
  environment = record.get('environment') or {}
  config = record.get('config') or {}
  rows = {
    'config': record.get('name'),
    'train steps': f'{step:,}',
    'batch size': config.get('batch_size'),
    'seed': config.get('seed'),
    'parameters': ', '.join(f'{name} {size:,}' for name, size in sizes.items()),
    'jaxgen, commit': f'{environment.get("jaxgen")}, {environment.get("commit")}',
    'devices': environment.get('devices'),
    'command': f'`{environment.get("command")}`',
  }
  table = [f'| {key} | {value} |' for key, value in rows.items() if value is not None]
  whole = ['', '<details><summary>All fields of the config</summary>', '', '```json']
  return ['| | |', '|---|---|', *table, *whole, json.dumps(config, indent=1, default=repr), '```', '', '</details>']


def _numbers(numbers: Mapping[str, Any], protocols: Mapping[str, Any]) -> list[str]:
  """The last value of each metric of quality, with how it was measured."""
  if not numbers:
    return []
  lines = ['| metric | value | protocol |', '|---|---|---|']
  for name, value in numbers.items():
    how = ', '.join(f'{key} {item}' for key, item in (protocols.get(name) or {}).items() if 'hash' not in key)
    lines.append(f'| {name} | {value:.4g} | {how} |')
  return lines
