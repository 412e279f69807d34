"""The results of a study: a JSON object, and its tables.

`summary` gives

  {'study', 'kind', 'contenders', 'protocol', 'raters': [...], 'questions': {name: {'text', ...}}}

where a question of pairs has `pairs` (win rates, metrics/preference.py Eqs. 1 and 2, p-values after Holm), `strengths`
(Eq. 3, on chess's scale) and `by_prompt`; one of ratings or hype has `scores`; all have `agreement` (Eq. 4).
"""

import csv
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.metrics import preference
from jaxgen.vote import study
from jaxgen.vote.study import REAL, Vote

PASS = 0.75  # share of the attention checks that a rater must pass to be counted
_SCORES = {'first': 1.0, 'tie': 0.5, 'second': 0.0}
_PRIOR = 1.0  # ties added to each pair of contenders for Eq. 3


def summary(path: Path, *, everyone: bool = False, confidence: float = 0.95) -> dict[str, Any]:
  """All results of a study.

  Args:
    path: the study's file.
    everyone: count raters who failed attention checks as well.
    confidence: confidence of the intervals.
  """
  with study.connect(path) as db:
    meta, votes = study.read_meta(db), study.votes(db)
    names = [name for (name,) in db.execute('SELECT name FROM raters ORDER BY id')]
  raters = [_rater(name, meta['kind'], votes) for name in names]
  counted = {rater['name'] for rater in raters if rater['counted'] or everyone}
  kept = [vote for vote in votes if not vote.is_check and vote.rater in counted]
  questions = {}
  for name, text in meta['questions'].items():
    own = [vote for vote in kept if vote.question == name]
    about = _of_pairs if meta['kind'] == 'pairs' else _of_images
    questions[name] = {'text': text, 'votes': len(own)} | about(own, meta, confidence)
  return {
    'study': path.stem,
    'kind': meta['kind'],
    'contenders': meta['contenders'],
    'protocol': _protocol(meta, raters, everyone, confidence),
    'raters': raters,
    'questions': questions,
  }


def _protocol(meta: Mapping[str, Any], raters: Sequence[Mapping], everyone: bool, confidence: float) -> dict[str, Any]:
  few = sum(rater['counted'] or everyone for rater in raters) < 5
  protocol = {
    'folders': meta['folders'],
    'presentation': 'blind; order, sides and questions at random for each rater',
    'raters_counted': 'all' if everyone else f'{PASS:.0%} of attention checks right, or none asked',
    'confidence': confidence,
    'seed': meta['seed'],
    'variance': 'clustered by image' + ('; fewer than 5 raters are taken as given' if few else ' and by rater'),
  }
  if meta['kind'] == 'pairs':
    protocol |= {
      'ties': 'half a win for each',
      'p_values': "score test, Holm over all questions' pairs of contenders",
      'strengths': f'Bradley-Terry with {_PRIOR:g} tie added to each pair, Elo scale, 1000 bootstrap resamples',
    }
  return protocol


def _rater(name: str, kind: str, votes: Sequence[Vote]) -> dict[str, Any]:
  mine = [vote for vote in votes if vote.rater == name]
  checks = [vote for vote in mine if vote.is_check]
  right = {'pairs': ('first',), 'rating': ('1', '2'), 'hype': ('fake',)}[kind]
  passed = sum(vote.answer in right for vote in checks)
  times = [vote.milliseconds for vote in mine if vote.milliseconds is not None]
  return {
    'name': name,
    'votes': len(mine) - len(checks),
    'checks': len(checks),
    'checks_right': passed,
    'counted': passed >= PASS * len(checks),
    'median_seconds': round(float(np.median(times)) / 1000, 2) if times else None,
  }


def _numbers(values: Sequence[Any]) -> np.ndarray:
  return np.unique(np.asarray(values, dtype=object).astype(str), return_inverse=True)[1]


def _arrays(votes: Sequence[Vote]) -> tuple[np.ndarray, np.ndarray]:
  """The item and the rater of each vote, by number."""
  return np.array([vote.item for vote in votes], int), _numbers([vote.rater for vote in votes])


def _of_pairs(votes: Sequence[Vote], meta: Mapping[str, Any], confidence: float) -> dict[str, Any]:
  contenders = meta['contenders']
  pairs = []
  for a, b in itertools.combinations(range(len(contenders)), 2):
    between = [vote for vote in votes if (vote.first, vote.second) == (a, b)]
    if between:
      pairs.append({'a': contenders[a], 'b': contenders[b]} | _win_rate(between, confidence))
  if pairs:
    many = len(meta['questions']) * len(contenders) * (len(contenders) - 1) // 2
    p_values = np.array([pair['p_value'] for pair in pairs] + [1.0] * (many - len(pairs)))
    for pair, adjusted in zip(pairs, preference.holm(p_values), strict=False):
      pair['p_holm'] = float(adjusted)
  return {
    'pairs': pairs,
    'strengths': _strengths(votes, contenders, confidence),
    'agreement': _agreement(votes, lambda vote: _SCORES[vote.answer], preference.nominal),
    'by_prompt': _by_prompt(votes, contenders),
  }


def _win_rate(votes: Sequence[Vote], confidence: float) -> dict[str, Any]:
  items, raters = _arrays(votes)
  scores = np.array([_SCORES[vote.answer] for vote in votes])
  found = preference.win_rate(scores, items, raters, confidence=confidence)
  return {
    'wins_a': int((scores == 1).sum()),
    'wins_b': int((scores == 0).sum()),
    'ties': int((scores == 0.5).sum()),
    'votes': found.votes,
    'effective_votes': round(found.effective, 1),
    'win_rate': found.interval.value,
    'low': found.interval.low,
    'high': found.interval.high,
    'p_value': found.p_value,
  }


def _strengths(votes: Sequence[Vote], contenders: Sequence[str], confidence: float) -> list[dict[str, Any]]:
  if len(votes) < 2:
    return []
  items, raters = _arrays(votes)
  found = preference.bradley_terry_intervals(
    np.array([vote.first for vote in votes]),
    np.array([vote.second for vote in votes]),
    np.array([_SCORES[vote.answer] for vote in votes]),
    pairs=items,
    raters=raters,
    contenders=len(contenders),
    prior=_PRIOR,
    confidence=confidence,
  )
  rows = [
    {'name': name, 'elo': preference.elo(s.value), 'low': preference.elo(s.low), 'high': preference.elo(s.high)}
    for name, s in zip(contenders, found, strict=True)
  ]
  return sorted(rows, key=lambda row: -row['elo'])


def _agreement(
  votes: Sequence[Vote], value: Callable[[Vote], float], difference: preference.Difference
) -> float | None:
  if not votes:
    return None
  items, raters = _arrays(votes)
  items = np.unique(items, return_inverse=True)[1]
  ratings = np.full((raters.max() + 1, items.max() + 1), np.nan)
  ratings[raters, items] = [value(vote) for vote in votes]
  return preference.krippendorff_alpha(ratings, difference=difference)


def _by_prompt(votes: Sequence[Vote], contenders: Sequence[str]) -> list[dict[str, Any]]:
  """Each prompt's win rates; a file's name stands for a prompt that is not there."""
  groups: dict[tuple[str, int, int], list[Vote]] = {}
  for vote in votes:
    assert vote.second is not None
    groups.setdefault((vote.prompt or Path(vote.first_path).name, vote.first, vote.second), []).append(vote)
  rows = []
  for (prompt, a, b), group in groups.items():
    scores = [_SCORES[vote.answer] for vote in group]
    share = float(np.mean(scores))
    row = {'prompt': prompt, 'a': contenders[a], 'b': contenders[b], 'votes': len(group), 'win_rate': share}
    rows.append(row | preference.wilson(share, len(group))._asdict())
  return [{key: value for key, value in row.items() if key != 'value'} for row in rows]


def _of_images(votes: Sequence[Vote], meta: Mapping[str, Any], confidence: float) -> dict[str, Any]:
  """Means of ratings, or shares of wrong answers (HYPE), of each contender."""
  hype = meta['kind'] == 'hype'
  named = [*enumerate(meta['contenders'])] + ([(REAL, 'real images')] if hype else [])

  def value(vote: Vote) -> float:
    if not hype:
      return float(vote.answer)
    return float(vote.answer != ('real' if vote.first == REAL else 'fake'))

  scores = []
  for contender, name in named:
    mine = [vote for vote in votes if vote.first == contender]
    if not mine:
      continue
    items, raters = _arrays(mine)
    values = np.array([value(vote) for vote in mine])
    if hype:
      found = preference.win_rate(values, items, raters, confidence=confidence).interval
    elif len(np.unique(items)) > 1:
      found = preference.mean_interval(values, items, raters, confidence=confidence)
    else:
      continue
    scores.append({'name': name, 'votes': len(mine), 'mean': found.value, 'low': found.low, 'high': found.high})
  difference = preference.nominal if hype else preference.ordinal
  answer_of = (lambda vote: float(vote.answer == 'real')) if hype else value
  return {'scores': scores, 'agreement': _agreement(votes, answer_of, difference)}


def as_text(found: Mapping[str, Any]) -> str:
  """The tables of a terminal."""
  lines = [f'{found["study"]}: {found["kind"]}, {sum(rater["votes"] for rater in found["raters"])} votes']
  for rater in found['raters']:
    checks = f', {rater["checks_right"]} of {rater["checks"]} checks right' if rater['checks'] else ''
    lines.append(f'  {rater["name"]}: {rater["votes"]} votes{checks}{"" if rater["counted"] else ", left out"}')
  for question in found['questions'].values():
    alpha = question['agreement']
    lines += ['', question['text'], f'  agreement (Krippendorff alpha) {"-" if alpha is None else f"{alpha:.2f}"}']
    for pair in question.get('pairs', ()):
      lines.append(
        f'  {pair["a"]} over {pair["b"]}: {pair["win_rate"]:.1%}  [{pair["low"]:.1%}, {pair["high"]:.1%}]  '
        f'{pair["wins_a"]} won, {pair["ties"]} tied, {pair["wins_b"]} lost  p = {pair["p_holm"]:.3g}  {_verdict(pair)}'
      )
    for row in question.get('strengths', ()):
      lines.append(f'  {row["name"]}: Elo {row["elo"]:.0f}  [{row["low"]:.0f}, {row["high"]:.0f}]')
    for row in question.get('scores', ()):
      shown = (lambda x: f'{x:.1%}') if found['kind'] == 'hype' else (lambda x: f'{x:.2f}')
      label = 'judged wrongly' if found['kind'] == 'hype' else 'mean opinion'
      interval = f'[{shown(row["low"])}, {shown(row["high"])}]'
      lines.append(f'  {row["name"]}: {label} {shown(row["mean"])}  {interval}  {row["votes"]} votes')
  return '\n'.join(lines)


def _verdict(pair: Mapping[str, Any]) -> str:
  if pair['p_holm'] >= 0.05:
    return 'no difference shown'
  return f'{pair["a"] if pair["win_rate"] > 0.5 else pair["b"]} is preferred'


def as_csv(found: Mapping[str, Any]) -> str:
  """One row for each question and pair of contenders, or contender; those of single prompts after them."""
  fields = ['question', 'prompt', 'a', 'b', 'votes', 'value', 'low', 'high', 'p_holm']
  out = io.StringIO()
  writer = csv.DictWriter(out, fields, lineterminator='\n')
  writer.writeheader()
  for name, question in found['questions'].items():
    for row in [*question.get('pairs', ()), *question.get('by_prompt', ())]:
      kept = {key: row.get(key, '') for key in fields}
      writer.writerow(kept | {'question': name, 'value': row['win_rate']})
    for row in question.get('scores', ()):
      kept = {key: row.get(key, '') for key in fields}
      writer.writerow(kept | {'question': name, 'a': row['name'], 'value': row['mean']})
  return out.getvalue()


def preferences(path: Path) -> str:
  """Votes on pairs as lines of JSON, {"prompt", "chosen", "rejected", ...}, the form that preference training takes."""
  with study.connect(path) as db:
    meta, votes = study.read_meta(db), study.votes(db)
  if meta['kind'] != 'pairs':
    raise ValueError(f'{path} is a study of kind {meta["kind"]}; only pairs can be exported as preferences')
  counted = {name for name in {vote.rater for vote in votes} if _rater(name, 'pairs', votes)['counted']}
  lines = []
  for vote in votes:
    if vote.is_check or vote.answer == 'tie' or vote.rater not in counted:
      continue
    sides = [(vote.first, vote.first_path), (vote.second, vote.second_path)]
    (a, chosen), (b, rejected) = sides if vote.answer == 'first' else sides[::-1]
    record = {'prompt': vote.prompt, 'chosen': chosen, 'rejected': rejected, 'question': vote.question}
    record |= {'chosen_from': meta['contenders'][a], 'rejected_from': meta['contenders'][b], 'rater': vote.rater}
    lines.append(json.dumps(record, ensure_ascii=False) + '\n')
  return ''.join(lines)
