"""Several runs on one page: curves overlaid, samples side by side, and the differences of their configs.

The page loads nothing from elsewhere and needs no script. Numbers of one name are put side by side only with what their
protocols differ in, since such numbers do not compare.
"""

import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from jaxgen import report
from jaxgen.files import read_json_object, write_whole
from jaxgen.metrics_file import read_metrics
from jaxgen.sweep import ticks
from jaxgen.writer import flat

_COLOURS = (('#4453d8', '#8f9bff'), ('#c2410c', '#ff9c73'), ('#15803d', '#6fd58f'), ('#a21caf', '#ea8cf5'),
            ('#0e7490', '#67c7dd'), ('#92680b', '#e3b54a'))  # fmt: skip
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 210, 54, 22, 10, 26
_STYLE = """
:root { --page: #f6f6f4; --card: #fff; --text: #1b1b1a; --soft: #6d6c68; --line: #e3e2de; LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --page: #131314; --card: #1c1c1e; --text: #ececea; --soft: #9c9b97; --line: #323234; DARK } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 20px 64px; }
h1 { margin: 0 0 12px; font-size: 30px; line-height: 1.2; letter-spacing: -.02em; }
h2 { margin: 40px 0 14px; font-size: 19px; } h3 { margin: 0 0 6px; font-size: 14px; overflow-wrap: anywhere; }
.brand { color: var(--c0); font-weight: 600; font-size: 13px; letter-spacing: .04em; margin: 0 0 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; padding: 0; margin: 0; list-style: none; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; min-width: 0; }
.card img { width: 100%; border-radius: 4px; image-rendering: pixelated; }
.card svg { display: block; width: 100%; } svg text { fill: var(--soft); font-size: 11.5px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 400; color: var(--soft); } td { overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 13px; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""


class Run(NamedTuple):
  """The contents of a run's folder."""

  name: str
  folder: epath.Path
  series: Mapping[str, Sequence[tuple[int, float | None]]]
  config: Mapping[str, Any]
  protocols: Mapping[str, Any]


def write(workdirs: Sequence[str | os.PathLike], out: str | os.PathLike) -> epath.Path:
  """Writes the page; returns its path.

  Raises:
    ValueError: fewer than two runs, or more than there are colours.
    FileNotFoundError: a folder is not that of a run.
  """
  if not 2 <= len(workdirs) <= len(_COLOURS):
    raise ValueError(f'a page compares 2 to {len(_COLOURS)} runs, and got {len(workdirs)}')
  runs = _named([_read(epath.Path(workdir)) for workdir in workdirs])
  names = list(dict.fromkeys(name for run in runs for name in run.series))
  quality = [name for name in names if report.is_quality(name)]
  parts = {name: {run.name: report.parts(run.series, name) for run in runs} for name in quality}
  of_parts = {f'{name}/{part}' for name, columns in parts.items() for column in columns.values() for part in column}
  curves = [name for name in names if name not in quality and name not in of_parts and not name.endswith('/seconds')]
  light, dark = (' '.join(f'--c{i}: {pair[k]};' for i, pair in enumerate(_COLOURS)) for k in (0, 1))
  title = ' and '.join(html.escape(run.name) for run in runs)
  legend = ''.join(
    f'<li><i style="background: var(--c{i})"></i>{html.escape(run.name)} <span class="note">'
    f'{html.escape(str(run.folder))}</span></li>'
    for i, run in enumerate(runs)
  )
  page = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
    f'<title>{title}</title><style>{_STYLE.replace("LIGHT", light).replace("DARK", dark)}</style></head><body><main>'
    f'<p class="brand">jaxgen compare</p><h1>{title}</h1><ul class="legend">{legend}</ul>'
    f'{_numbers(runs, quality)}{_by_part(parts)}{_section("Quality", runs, quality)}{_samples(runs)}'
    f'{_differences(runs)}{_section("Training", runs, curves)}</main></body></html>\n'
  )
  path = epath.Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, page)
  return path


def _read(folder: epath.Path) -> Run:
  if not (folder / 'metrics.jsonl').exists():
    raise FileNotFoundError(f'{folder} is not the folder of a run: it has no metrics.jsonl')
  series: dict[str, list[tuple[int, float | None]]] = {}
  for record in sorted(read_metrics(folder / 'metrics.jsonl'), key=lambda record: record['step']):
    for name, value in record.items():
      if name != 'step':
        series.setdefault(name, []).append((record['step'], value))
  record = read_json_object(folder / 'config.json') or {}
  config = record.get('config')
  protocols = read_json_object(folder / 'protocols.json') or {}
  return Run(folder.resolve().name, folder, series, flat(config) if isinstance(config, Mapping) else {}, protocols)


def _named(runs: Sequence[Run]) -> list[Run]:
  """Runs by name; where two folders have the same name, with the name of the parent folder."""
  names = [run.name for run in runs]
  return [
    run._replace(name=f'{run.folder.resolve().parent.name}/{run.name}') if names.count(run.name) > 1 else run
    for run in runs
  ]


def _section(title: str, runs: Sequence[Run], names: Sequence[str]) -> str:
  cards = ''.join(_chart(name, runs) for name in names)
  return f'<h2>{title}</h2><div class="grid">{cards}</div>' if cards else ''


def _numbers(runs: Sequence[Run], names: Sequence[str]) -> str:
  """The last value of each metric of quality, and the differences of their protocols."""
  rows = ''
  for name in names:
    last = [_last(run, name) for run in runs]
    cells = ''.join(f'<td>{"" if found is None else _number(found[1])}</td>' for found in last)
    steps = {found[0] for found in last if found is not None}
    notes = [f'steps {", ".join(f"{step:,}" for step in sorted(steps))}'] * (len(steps) > 1)
    hows = [flat(run.protocols[name]) for run in runs if isinstance(run.protocols.get(name), Mapping)]
    differ = sorted({key for how in hows for key in how if any(other.get(key) != how[key] for other in hows)})
    notes += [f'protocols differ in {", ".join(differ)}'] * bool(differ)
    rows += f'<tr><th>{html.escape(name)}</th>{cells}<td class="note">{html.escape("; ".join(notes))}</td></tr>'
  if not rows:
    return ''
  head = ''.join(f'<th>{html.escape(run.name)}</th>' for run in runs)
  return f'<h2>Last values</h2><div class="card wide"><table><tr><th></th>{head}<th></th></tr>{rows}</table></div>'


def _by_part(parts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
  """A table of each metric that is measured by attribute or class: a row for each, a column for each run."""
  tables = ''.join(
    f'<div class="card wide"><h3>{html.escape(name)}</h3>{report.parts_table(columns)}</div>'
    for name, columns in parts.items()
    if any(columns.values())
  )
  return f'<h2>Last values by part</h2><div class="grid">{tables}</div>' if tables else ''


def _last(run: Run, name: str) -> tuple[int, float] | None:
  return next(((step, value) for step, value in reversed(run.series.get(name, ())) if value is not None), None)


def _samples(runs: Sequence[Run]) -> str:
  """The newest grid of each name that several runs have: the same seeds in the same places."""
  found: dict[str, list[tuple[Run, int, epath.Path]]] = {}
  for run in runs:
    newest: dict[str, tuple[int, epath.Path]] = {}
    for path in sorted((run.folder / 'samples').glob('*.png')):
      if match := re.fullmatch(r'(.+)_(\d{8})\.png', path.name):
        newest[match[1]] = (int(match[2]), path)
    for name, (step, path) in newest.items():
      found.setdefault(name, []).append((run, step, path))
  parts = ''
  for name, grids in found.items():
    cards = ''.join(
      f'<div class="card"><h3>{html.escape(run.name)} <span class="note">step {step:,}</span></h3>'
      f'<img alt="{html.escape(name)} of {html.escape(run.name)}" src="{report.data_url(path)}"></div>'
      for run, step, path in grids
    )
    parts += f'<h2>{html.escape(name)}</h2><div class="grid">{cards}</div>' if len(grids) > 1 else ''
  return parts


def _differences(runs: Sequence[Run]) -> str:
  fields = list(dict.fromkeys(field for run in runs for field in run.config))
  rows = ''
  for field in fields:
    values = [json.dumps(run.config[field]) if field in run.config else '' for run in runs]
    if len(set(values)) > 1:
      rows += f'<tr><th>{html.escape(field)}</th>' + ''.join(f'<td>{html.escape(v)}</td>' for v in values) + '</tr>'
  head = ''.join(f'<th>{html.escape(run.name)}</th>' for run in runs)
  table = (
    f'<table><tr><th></th>{head}</tr>{rows}</table>' if rows else '<p class="note">Their configs are the same.</p>'
  )
  return f'<h2>What differs in their configs</h2><div class="card wide">{table}</div>'


def _chart(name: str, runs: Sequence[Run]) -> str:
  """One metric of all runs over steps; '' where no value is finite."""
  curves = {
    i: [(step, value) for step, value in report.thinned(run.series[name]) if step is not None and value is not None]
    for i, run in enumerate(runs)
    if name in run.series
  }
  points = [point for curve in curves.values() for point in curve]
  if not points:
    return ''
  last = max(max(step for step, _ in points), 1)
  values = sorted(value for _, value in points)
  low, high = values[len(values) // 200], values[-1 - len(values) // 200]  # a spike must not flatten the rest
  low = 0.0 if 0 < low < 0.35 * high else low
  pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
  low, high = (low if low == 0 else low - pad), high + pad

  def place(step: float, value: float) -> str:
    share = (min(max(value, low), high) - low) / (high - low)
    x = _LEFT + step / last * (_WIDTH - _LEFT - _RIGHT)
    return f'{x:.1f},{_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM):.1f}'

  parts = []
  for value in ticks(low, high, 4):
    y = place(0, value).split(',')[1]
    parts.append(
      f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="var(--line)"/>'
      f'<text x="{_LEFT - 8}" y="{float(y) + 4}" text-anchor="end">{_number(value)}</text>'
    )
  for step in ticks(0, last, 4):
    parts.append(
      f'<text x="{place(step, low).split(",")[0]}" y="{_HEIGHT - 6}" text-anchor="middle">{step:,.0f}</text>'
    )
  for i, curve in curves.items():
    line = ' '.join(place(*point) for point in curve)
    colour = f'var(--c{i})'
    parts.append(
      f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.75" stroke-linejoin="round"/>'
    )
    if len(curve) <= 40:
      dots = [place(*point).split(',') for point in curve]
      parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in dots]
  body = ''.join(parts)
  label = html.escape(name)
  return (
    f'<div class="card"><h3>{label}</h3><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    f'{body}</svg></div>'
  )


def _number(value: float) -> str:
  if not math.isfinite(value):
    return ''
  return f'{value:,.0f}' if abs(value) >= 10_000 else f'{value:.4g}'
