"""A study's results as a picture: each estimate a point, its interval a line. SVG, and the section of a report."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_WIDTH, _SIDE, _ROW = 440, 16, 46


class _Row(NamedTuple):
  label: str
  value: float
  low: float
  high: float
  text: str


def svg(question: Mapping[str, Any], kind: str) -> str:
  """One question's plot, in the colours of the text around it; '' where there are no votes."""
  rows, ends, middle, ticks = _rows(question, kind)
  if not rows:
    return ''
  low, high = ends
  height = _ROW * len(rows) + 34
  left, right = _SIDE, _WIDTH - _SIDE
  bottom = height - 28

  def x(value: float) -> str:
    share = (min(max(value, low), high) - low) / (high - low)
    return f'{left + share * (right - left):.1f}'

  parts = [
    f'<line x1="{x(tick)}" x2="{x(tick)}" y1="22" y2="{bottom}" stroke="currentColor" '
    f'stroke-opacity="{0.45 if tick == middle else 0.12}"/>'
    f'<text x="{x(tick)}" y="{height - 8}" text-anchor="middle" opacity=".65">{_tick(tick, kind)}</text>'
    for tick in ticks
  ]
  for i, row in enumerate(rows):
    y = _ROW * i + 32
    label = html.escape(row.label if len(row.label) < 36 else row.label[:34] + '…')
    parts.append(
      f'<text x="{left}" y="{y - 14}">{label}</text>'
      f'<text x="{right}" y="{y - 14}" text-anchor="end" opacity=".75">{html.escape(row.text)}</text>'
      f'<line x1="{x(row.low)}" x2="{x(row.high)}" y1="{y}" y2="{y}" style="stroke: var(--accent, #4453d8)" '
      f'stroke-width="4" stroke-linecap="round" stroke-opacity=".45"/>'
      f'<circle cx="{x(row.value)}" cy="{y}" r="6" style="fill: var(--accent, #4453d8)"/>'
    )
  title = html.escape(str(question['text']))
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}" '
    f'font-family="system-ui, sans-serif" font-size="13" fill="currentColor">{"".join(parts)}</svg>'
  )


def _tick(value: float, kind: str) -> str:
  return f'{value:g}' if kind == 'rating' else f'{value:.0%}'


def _rows(
  question: Mapping[str, Any], kind: str
) -> tuple[list[_Row], tuple[float, float], float | None, Sequence[float]]:
  if kind == 'pairs':
    rows = [
      _Row(f'{p["a"]} over {p["b"]}', p['win_rate'], p['low'], p['high'], f'{p["win_rate"]:.0%} of {p["votes"]} votes')
      for p in question['pairs']
    ]
    return rows, (0, 1), 0.5, (0, 0.25, 0.5, 0.75, 1)
  mean_text = (lambda s: f'{s["mean"]:.0%} wrong') if kind == 'hype' else (lambda s: f'{s["mean"]:.2f}')
  rows = [
    _Row(s['name'], s['mean'], s['low'], s['high'], f'{mean_text(s)}, {s["votes"]} votes') for s in question['scores']
  ]
  return (rows, (0, 1), 0.5, (0, 0.25, 0.5, 0.75, 1)) if kind == 'hype' else (rows, (1, 5), None, (1, 2, 3, 4, 5))


def document(found: Mapping[str, Any]) -> str:
  """All questions as one SVG file."""
  plots, top = [], 0
  for question in found['questions'].values():
    plot = svg(question, found['kind'])
    if plot:
      height = float(plot.partition('viewBox="0 0 ')[2].split('"')[0].split()[1])
      plots.append(
        f'<text x="16" y="{top + 22}" font-size="16" font-weight="600">{html.escape(question["text"])}</text>'
      )
      plots.append(plot.replace('<svg ', f'<svg y="{top + 34}" height="{height}" ', 1))
      top += int(height) + 52
  body = ''.join(plots) or '<text x="16" y="30">No votes yet.</text>'
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {max(top, 48)}" '
    f'font-family="system-ui, sans-serif" fill="#1b1b1a" color="#1b1b1a">'
    f'<rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
  )


def section(found: Mapping[str, Any]) -> str:
  """The results as HTML, for a run's report."""
  parts = []
  for question in found['questions'].values():
    alpha = question['agreement']
    agreement = 'not known' if alpha is None else f'{alpha:.2f}'
    remark = f'{question["votes"]} votes; agreement between raters (Krippendorff alpha) {agreement}'
    verdicts = ''.join(f'<li>{html.escape(line)}</li>' for line in _verdicts(question, found['kind']))
    parts.append(
      f'<div class="card"><h3>{html.escape(str(question["text"]))} <span>{remark}</span></h3>'
      f'{svg(question, found["kind"]) or "<p class=none>No votes yet.</p>"}<ul class="plainlist">{verdicts}</ul>'
      f'{_by_prompt(question.get("by_prompt", ()))}</div>'
    )
  raters = [rater for rater in found['raters'] if rater['votes']]
  left_out = sum(not rater['counted'] for rater in raters)
  who = f'{len(raters)} raters' + (f', {left_out} of them left out for failed attention checks' if left_out else '')
  return (
    f'<div class="head"><h2>People: {html.escape(str(found["study"]))}</h2><small>{who}</small></div>'
    f'<div class="charts one">{"".join(parts)}</div>'
  )


def _by_prompt(rows: Sequence[Mapping[str, Any]]) -> str:
  """The win rates of each prompt, folded; '' where there are none."""
  if not rows:
    return ''
  body = ''.join(
    f'<tr><th scope="row">{html.escape(str(row["prompt"]))}</th>'
    f'<td>{html.escape(str(row["a"]))} over {html.escape(str(row["b"]))}</td>'
    f'<td>{row["win_rate"]:.0%}</td><td>{row["low"]:.0%} to {row["high"]:.0%}</td><td>{row["votes"]}</td></tr>'
    for row in rows
  )
  head = ''.join(f'<th scope="col">{name}</th>' for name in ('prompt', 'pair', 'wins', '95% interval', 'votes'))
  return (
    f'<details><summary>{len(rows)} win rates by prompt</summary>'
    f'<div class="wide"><table><tr>{head}</tr>{body}</table></div></details>'
  )


def _verdicts(question: Mapping[str, Any], kind: str) -> list[str]:
  if kind != 'pairs':
    return []
  lines = []
  for pair in question['pairs']:
    better = pair['a'] if pair['win_rate'] > 0.5 else pair['b']
    sure = pair['p_holm'] < 0.05
    verdict = f'{better} is preferred' if sure else 'no difference is shown'
    lines.append(f'{pair["a"]} and {pair["b"]}: {verdict} (p = {pair["p_holm"]:.2g})')
  if len(question['strengths']) > 2:
    lines.append('Elo: ' + ', '.join(f'{s["name"]} {s["elo"]:.0f}' for s in question['strengths']))
  return lines
