"""A sweep: one run measured at several settings (guidance, steps, samplers, averages), as a table and a plot.

evaluation/sweep.json in the run's folder holds the points that are done, {'settings', 'values', 'protocol'} each.
"""

import html
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgen.files import write_whole

Point = dict[str, Any]
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 300, 52, 20, 14, 50
_COLOURS = ('var(--accent, #4453d8)', '#c2410c', '#15803d', '#a21caf', '#0e7490', '#b45309')


def settings_of(texts: Sequence[str]) -> list[dict[str, str]]:
  """Every combination of `FIELD=VALUE,VALUE` texts.

  Raises:
    ValueError: a text that is not of this form, or a field that is given twice.
  """
  fields: dict[str, list[str]] = {}
  for text in texts:
    name, equals, values = text.partition('=')
    if not equals or not name or not all(values.split(',')):
      raise ValueError(f'--sweep {text} is not understood; wanted FIELD=VALUE,VALUE, such as sampling.scale=1,2,3')
    if name in fields:
      raise ValueError(f'--sweep {name} is given twice; write all of its values behind one')
    fields[name] = list(dict.fromkeys(values.split(',')))
  return [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]


def read(path: Path) -> list[Point]:
  """The points that are done; none where the file is not there or is not of a sweep."""
  try:
    points = json.loads(path.read_text(encoding='utf-8'))['points']
    return [point for point in points if {'settings', 'values'} <= point.keys()]
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return []


def add(path: Path, point: Point) -> list[Point]:
  """Adds a point, in the place of one of the same settings; returns all."""
  points = [old for old in read(path) if old['settings'] != point['settings']] + [point]
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, json.dumps({'points': points}, indent=2, default=str) + '\n')
  return points


def columns(points: Sequence[Point]) -> tuple[list[str], list[str]]:
  """Fields and metrics that any point has."""
  fields = list(dict.fromkeys(name for point in points for name in point['settings']))
  metrics = list(dict.fromkeys(name for point in points for name in point['values']))
  return fields, [name for name in metrics if not name.endswith(('_deviation', '_standard_error'))]


def table(points: Sequence[Point]) -> str:
  """The points as lines of text."""
  fields, metrics = columns(points)
  rows = [[*fields, *metrics]] + [
    [point['settings'].get(name, '') for name in fields] + [_number(point['values'].get(name)) for name in metrics]
    for point in points
  ]
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def section(points: Sequence[Point]) -> str:
  """The sweep as HTML, for a run's report."""
  fields, metrics = columns(points)
  head = ''.join(f'<th>{html.escape(name)}</th>' for name in (*fields, *metrics))
  best = {name: _best(points, name) for name in metrics}
  rows = ''
  for point in points:
    cells = ''.join(f'<td>{html.escape(str(point["settings"].get(name, "")))}</td>' for name in fields)
    for name in metrics:
      value = point['values'].get(name)
      mark = ' class="best"' if value is not None and value == best[name] else ''
      cells += f'<td{mark}>{_number(value)}</td>'
    rows += f'<tr>{cells}</tr>'
  return (
    f'<div class="head"><h2>Sweep</h2></div><div class="card">{svg(points)}</div>'
    f'<div class="card wide"><table class="sweep"><tr>{head}</tr>{rows}</table></div>'
  )


def svg(points: Sequence[Point]) -> str:
  """The first metric against the second of those that were measured: FID against precision, say; '' for one metric."""
  fields, metrics = columns(points)
  first = next((name for name in metrics if 'fid' in name), metrics[0] if metrics else '')
  second = next(
    (name for name in ('clip_score', 'recall', 'precision', *metrics) if name in metrics and name != first), ''
  )
  shown = [p for p in points if p['values'].get(first) is not None and p['values'].get(second) is not None]
  if not first or not second or not shown:
    return ''
  groups: dict[str, list[Point]] = {}
  for point in shown:  # a line for each setting of all fields but the first
    key = ', '.join(f'{name.rpartition(".")[2]} {point["settings"].get(name)}' for name in fields[1:])
    groups.setdefault(key, []).append(point)
  xs, ys = ([point['values'][name] for point in shown] for name in (second, first))
  (left, right), (low, high) = _range(xs), _range(ys)

  def at(point: Point) -> tuple[float, float]:
    x = _LEFT + (point['values'][second] - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
    y = _HEIGHT - _BOTTOM - (point['values'][first] - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
    return round(x, 1), round(y, 1)

  parts = []
  for value in ticks(low, high, 4):
    y = round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)
    parts.append(
      f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="currentColor" stroke-opacity=".1"/>'
      f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end" opacity=".65">{_number(value)}</text>'
    )
  for value in ticks(left, right, 5):
    x = round(_LEFT + (value - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT), 1)
    parts.append(
      f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle" opacity=".65">{_number(value)}</text>'
    )
  for i, (key, group) in enumerate(groups.items()):
    colour = _COLOURS[i % len(_COLOURS)]
    places = [at(point) for point in group]
    line = ' '.join(f'{x},{y}' for x, y in places)
    parts.append(
      f'<polyline points="{line}" fill="none" style="stroke: {colour}" stroke-width="1.75" stroke-opacity=".6"/>'
    )
    for point, (x, y) in zip(group, places, strict=True):
      label = html.escape(str(point['settings'].get(fields[0], ''))) if fields else ''
      parts.append(
        f'<circle cx="{x}" cy="{y}" r="4.5" style="fill: {colour}"/><text x="{x + 8}" y="{y - 6}">{label}</text>'
      )
    if key:
      y = _TOP + 14 + 18 * i
      parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{y}" text-anchor="end" style="fill: {colour}">{html.escape(key)}</text>'
      )
  name = f'{html.escape(first)} against {html.escape(second)}' + (f', by {html.escape(fields[0])}' if fields else '')
  parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}" opacity=".8">{name}</text>')
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}" '
    f'font-family="system-ui, sans-serif" font-size="12.5" fill="currentColor">{"".join(parts)}</svg>'
  )


def ticks(low: float, high: float, count: int) -> list[float]:
  """About `count` round numbers within [low, high]."""
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
  return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
  low, high = min(values), max(values)
  pad = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
  return low - pad, high + pad


def _best(points: Sequence[Mapping[str, Any]], name: str) -> float | None:
  known = [p['values'][name] for p in points if p['values'].get(name) is not None]
  lower = any(part in name for part in ('fid', 'kid', 'memor', 'cmmd', 'fd_', 'loss'))
  return (min(known) if lower else max(known)) if len(known) > 1 else None


def _number(value: Any) -> str:
  if not isinstance(value, int | float) or not math.isfinite(value):
    return ''
  return f'{value:,.0f}' if abs(value) >= 10_000 else f'{value:.4g}'
