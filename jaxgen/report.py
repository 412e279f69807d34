"""A run's folder as one page, report.html: it loads nothing from elsewhere and opens from disk.

The page is report_template.html with its placeholders filled: tables are written here, the series and the sample
grids travel as JSON and are drawn by the page's own script.
"""

import base64
import html
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from jaxgen import goodput, sweep
from jaxgen.files import read_json_object, write_whole
from jaxgen.metrics_file import read_metrics
from jaxgen.terminal import duration
from jaxgen.vote import figure
from jaxgen.writer import flat

_TEMPLATE = pathlib.Path(__file__).with_name('report_template.html')
_MOST_POINTS = 600  # points of a series; longer ones are thinned to the mean of each bucket
_MOST_FRAMES = 24  # sample grids under one name
_MOST_BYTES = 16 << 20  # bytes of all sample grids, before base64
_QUALITY = re.compile(
  r'(?:.*/)?(?:[rs]?fid|kid|inception_score|precision|recall|density|coverage|memoris|clip_score|cmmd|fd_)\w*'
  r'|(?:psnr|ssim|lpips|attributes|retrieval)\w*'
)
_SAMPLE = re.compile(r'(.+)_(\d{8})\.png')
_JSON_FILES = ('config.json', 'status.json', 'protocols.json')
_FIRST = (
  'loss',
  'grad_norm',
  'learning_rate',
  'images_per_second',
  'input_wait',
  'step_seconds',
)  # order of the curves
_COUNTS = ('skipped', 'bad_steps')  # shown only when something happened

Series = dict[str, list[tuple[int, float | None]]]


def write(workdir: str | os.PathLike) -> epath.Path:
  """Writes report.html from what the run's folder holds; returns its path.

  Raises:
    FileNotFoundError: `workdir` is not the folder of a run.
  """
  workdir = epath.Path(workdir)
  if not (workdir / 'metrics.jsonl').exists():
    raise FileNotFoundError(f'{workdir} is not the folder of a run: it has no metrics.jsonl')
  record, status, protocols = ((read_json_object(workdir / name) or {}) for name in _JSON_FILES)
  series = _series(read_metrics(workdir / 'metrics.jsonl'))
  judged = {name: points for name, points in series.items() if is_quality(name)}
  quality = {name: points for name, points in judged.items() if _whole(name) not in judged}
  step = max((points[-1][0] for points in series.values()), default=0)
  total = _whole_number(status.get('total')) or step
  rest = {name: points for name, points in series.items() if name not in quality and _is_curve(name, points)}
  details = {name: points for name, points in rest.items() if _whole(name) in quality}
  curves = {name: points for name, points in rest.items() if name not in details}
  data = {
    'quality': {name: thinned(points) for name, points in quality.items()},
    'details': {name: thinned(points) for name, points in details.items()},
    'curves': {name: thinned(curves[name]) for name in sorted(curves, key=_order)},
    'samples': _samples(workdir / 'samples'),
  }
  fields = {
    'TITLE': html.escape(str(record.get('name') or workdir.resolve().name)),
    'WORKDIR': html.escape(str(workdir)),
    'STATUS': _status(step, total, status),
    'PERCENT': f'{100 * min(step, total) / max(total, 1):.1f}',
    'TILES': ''.join(_tile(*tile) for tile in _tiles(series, quality, record, goodput.read(workdir))),
    'REAL': _real(workdir / 'data.png'),
    'VOTES': _by_part(series, quality)
    + _evaluations(workdir / 'evaluation')
    + _sweep(workdir / 'evaluation' / 'sweep.json')
    + _votes(workdir / 'votes'),
    'PROTOCOLS': _protocols(protocols),
    'CONFIG': _table(flat(_object(record.get('config')))),
    'ENVIRONMENT': _table(_object(record.get('environment'))),
    'PARAMETERS': _parameters(workdir / 'parameters.txt'),
    # `<` would end the script element where a text holds `</script>`.
    'DATA': json.dumps(data, allow_nan=False).replace('<', '\\u003c'),
  }
  template = _TEMPLATE.read_text(encoding='utf-8')
  page = re.sub(r'\{\{(\w+)\}\}', lambda match: fields[match[1]], template)
  write_whole(workdir / 'report.html', page)
  return workdir / 'report.html'


def _object(value: Any) -> Mapping[str, Any]:
  """The value if it is an object; a damaged file may hold something else."""
  return value if isinstance(value, Mapping) else {}


def _whole_number(value: Any) -> int:
  return value if type(value) is int and 0 <= value < 2**40 else 0


def _series(records: Sequence[Mapping[str, Any]]) -> Series:
  """Every metric's (step, value), in order of steps; None where it was not finite."""
  series: Series = {}
  for record in sorted(records, key=lambda record: record['step']):
    for name, value in record.items():
      if name != 'step':
        series.setdefault(name, []).append((record['step'], value))
  return series


def _is_curve(name: str, points: Sequence[tuple[int, float | None]]) -> bool:
  """Evaluation times and counts of nothing are left out."""
  nothing = name.rpartition('/')[2] in _COUNTS and not any(value for _, value in points)
  return not name.endswith('/seconds') and not nothing


def _whole(name: str) -> str | None:
  """The metric that another is a part of, or that it is compared with, by its name: NAME/hats, NAME_chance."""
  found = re.fullmatch(r'(.+?)(?:/[^/]*|_chance|_real)', name)
  return found and found[1]


def parts(series: Mapping[str, Sequence[tuple[int, float | None]]], metric: str) -> dict[str, float]:
  """The last value of each part of a metric, such as an attribute or a class: those named METRIC/PART."""
  found = {}
  for name, points in series.items():
    whole, slash, part = name.rpartition('/')
    known = [value for _, value in points if value is not None]
    if slash and whole == metric and part != 'seconds' and known:
      found[part] = known[-1]
  return found


def parts_table(columns: Mapping[str, Mapping[str, float]]) -> str:
  """A row for each part and a column for each metric or run; a cell is empty where there is no such part."""
  rows = ''
  for part in dict.fromkeys(part for column in columns.values() for part in column):
    cells = ''.join(f'<td>{_number(column[part]) if part in column else ""}</td>' for column in columns.values())
    rows += f'<tr><th scope="row">{html.escape(part)}</th>{cells}</tr>'
  head = ''.join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
  return f'<table><tr><th></th>{head}</tr>{rows}</table>'


def _by_part(series: Series, quality: Series) -> str:
  """The last values of all metrics that are measured by attribute or class, with the whole in the first row."""
  columns = {}
  for name, points in quality.items():
    whole = [value for _, value in points if value is not None]
    if (found := parts(series, name)) and whole:
      columns[name] = {'all': whole[-1]} | dict(sorted(found.items()))
  if not columns:
    return ''
  table = parts_table(columns)
  return f'<section><div class="head"><h2>By part</h2></div><div class="card wide">{table}</div></section>'


def _order(name: str) -> tuple[int, str]:
  last = name.rpartition('/')[2]
  return (_FIRST.index(last) if last in _FIRST else 0 if last.endswith('loss') else len(_FIRST), name)


def is_quality(name: str) -> bool:
  """Whether a metric judges samples rather than training."""
  return _QUALITY.fullmatch(name) is not None


def thinned(points: Sequence[tuple[int, float | None]]) -> list[list[float | None]]:
  """At most `_MOST_POINTS` points: each the last step and the mean of its bucket."""
  size = -(-len(points) // _MOST_POINTS)
  thin: list[list[float | None]] = []
  for begin in range(0, len(points), size):
    bucket = points[begin : begin + size]
    known = [value for _, value in bucket if value is not None]
    thin.append([bucket[-1][0], float(f'{sum(known) / len(known):.6g}') if known else None])
  return thin


def _samples(folder: epath.Path) -> dict[str, list[dict[str, Any]]]:
  """Grids by name, each a step and a data URL: the first, the last and some evenly between."""
  grids: dict[str, list[tuple[int, epath.Path]]] = {}
  for path in sorted(folder.glob('*.png')):
    if match := _SAMPLE.fullmatch(path.name):
      grids.setdefault(match[1], []).append((int(match[2]), path))
  most = _MOST_FRAMES
  chosen = {name: _evenly(frames, most) for name, frames in grids.items()}
  while most > 2 and sum(path.stat().length for _, path in _all(chosen)) > _MOST_BYTES:
    most -= 1
    chosen = {name: _evenly(frames, most) for name, frames in grids.items()}
  return {name: [{'step': step, 'url': data_url(path)} for step, path in frames] for name, frames in chosen.items()}


def _all(chosen: Mapping[str, Sequence[tuple[int, epath.Path]]]) -> Iterator[tuple[int, epath.Path]]:
  for frames in chosen.values():
    yield from frames


def _evenly(frames: Sequence[Any], most: int) -> list[Any]:
  if len(frames) <= most:
    return list(frames)
  return [frames[round(i * (len(frames) - 1) / (most - 1))] for i in range(most)]


def _real(path: epath.Path) -> str:
  if not path.exists():
    return ''
  picture = f'<img src="{data_url(path)}" alt="training images">'
  return f'<h3>training data</h3><div class="card viewer">{picture}</div>'


def data_url(path: epath.Path) -> str:
  return 'data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode()


def _status(step: int, total: int, status: Mapping[str, Any]) -> str:
  when = (
    time.strftime('%Y-%m-%d %H:%M', time.localtime(seconds)) if (seconds := _whole_number(status.get('time'))) else ''
  )
  state = 'finished' if total and step >= total else f'step {step:,} of {total:,}'
  return f'<b>{state}</b>' + (f' <span>{step:,} steps</span>' if state == 'finished' else '') + f' <span>{when}</span>'


def _tiles(
  series: Series, quality: Series, record: Mapping[str, Any], spent: Mapping[str, float]
) -> Iterator[tuple[str, str, str]]:
  """Label, number and remark of each tile."""
  for name, points in quality.items():
    known = [value for _, value in points if value is not None]
    if known:
      change = f'{100 * (known[-1] - known[0]) / abs(known[0]):+.0f}% ' if len(known) > 1 and known[0] else ''
      yield name, _number(known[-1]), f'{change}from {_number(known[0])}' if len(known) > 1 else 'first value'
  for name in ('loss', 'images_per_second', 'input_wait'):
    known = [value for _, value in series.get(name, []) if value is not None]
    if not known:
      continue
    if name == 'loss':
      yield 'loss', _number(known[-1]), f'lowest {_number(min(known))}'
    elif name == 'images_per_second':
      yield 'images/s', _number(known[-1]), f'median {_number(sorted(known)[len(known) // 2])}'
    else:
      yield 'waiting for input', f'{100 * known[-1]:.1f}%', f'most {100 * max(known):.1f}%'
  if trained := _training_seconds(series.get('step_seconds', [])):
    yield 'run time', duration(trained), 'of training'
  if whole := sum(spent.values()):
    others = sorted(((seconds, state) for state, seconds in spent.items() if state != 'step'), reverse=True)[:2]
    remark = ', '.join(f'{state} {100 * seconds / whole:.1f}%' for seconds, state in others if seconds > 0.001 * whole)
    yield 'goodput', f'{100 * spent["step"] / whole:.1f}%', remark
  seconds = sum(value or 0 for name, points in series.items() if name.endswith('/seconds') for _, value in points)
  if seconds:
    yield 'evaluations', duration(seconds), 'in all'
  environment = _object(record.get('environment'))
  if 'devices' in environment:
    yield 'devices', html.escape(str(environment['devices'])), html.escape(f'jax {environment.get("jax", "?")}')


def _training_seconds(points: Sequence[tuple[int, float | None]]) -> float:
  """The time of all steps, from the mean of each window: what restarts repeated does not count."""
  begins = [0, *(step for step, _ in points)]
  return sum((step - begin) * (value or 0) for begin, (step, value) in zip(begins, points, strict=False))


def _tile(label: str, number: str, remark: str) -> str:
  return f'<div class="tile"><small>{html.escape(label)}</small><b>{number}</b><span>{remark}</span></div>'


def _number(value: float) -> str:
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def _protocols(protocols: Mapping[str, Any]) -> str:
  texts = {html.escape(metric): _table(flat(_object(how))) for metric, how in protocols.items()}
  return ''.join(
    f'<details><summary>How <code>{metric}</code> is measured</summary>{text}</details>'
    for metric, text in texts.items()
  )


def _evaluations(folder: epath.Path) -> str:
  """What `jaxgen evaluate --metrics` measured, points of sweeps aside: numbers, protocol, possible copies."""
  sections = ''
  for path in sorted(folder.glob('*/result.json')):
    found = read_json_object(path) or {}
    protocol = _object(found.get('protocol'))
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    if 'settings' in protocol or not numbers:
      continue
    rows = _table({name: float(f'{value:.5g}') for name, value in numbers.items()})
    programs = _object(found.get('dialects'))
    rows += ''.join(
      f'<h3>as {html.escape(program)} would report</h3>{_table(_object(values))}'
      for program, values in programs.items()
    )
    copies = path.parent / 'memorisation.png'
    if copies.exists():
      rows += (
        '<h3>samples most like copies, the nearest training image at the right; below 0.33 counts as a copy</h3>'
        f'<div class="viewer"><img src="{data_url(copies)}" alt="samples and their nearest training images"></div>'
      )
    step = protocol.get('step')
    title = f'Evaluation of {_whole_number(protocol.get("samples")):,} samples'
    title += f' of step {step:,}' if isinstance(step, int) else ''
    sections += (
      f'<section><div class="head"><h2>{title}</h2></div><div class="card wide">{rows}</div>'
      f'<details><summary>How they are measured</summary>{_table(flat(protocol))}</details></section>'
    )
  return sections


def _sweep(path: epath.Path) -> str:
  points = sweep.read(pathlib.Path(path)) if '://' not in os.fspath(path) else []
  return f'<section>{sweep.section(points)}</section>' if points else ''


def _votes(folder: epath.Path) -> str:
  """A section for each study whose results `jaxgen vote results --run` has put here."""
  sections = []
  for path in sorted(folder.glob('*.json')):
    try:
      sections.append(f'<section>{figure.section(read_json_object(path) or {})}</section>')
    except (KeyError, TypeError, ValueError):  # not what `jaxgen vote results` wrote
      sections.append(f'<section><p class="none">votes/{html.escape(path.name)} holds no results.</p></section>')
  return ''.join(sections)


def _parameters(path: epath.Path) -> str:
  if not path.exists():
    return ''
  text = html.escape(path.read_bytes().decode(errors='replace'))
  return f'<section><h2>Parameters</h2><pre>{text}</pre></section>'


def _table(values: Mapping[str, Any]) -> str:
  """Names and values, a group's own fields under its name."""
  if not values:
    return '<p class="none">Not recorded.</p>'
  rows = ''
  for name, value in values.items():
    group, dot, field = name.rpartition('.')
    shown = html.escape(value if isinstance(value, str) else json.dumps(value))
    rows += f'<tr><th><i>{html.escape(group + dot)}</i>{html.escape(field)}</th><td>{shown}</td></tr>'
  return f'<table>{rows}</table>'
