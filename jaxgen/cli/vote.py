"""`jaxgen vote`: people compare images in the browser; results with confidence intervals."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxgen.cli.numbers import finite

_DESCRIPTION = """People compare images, blind, on a web page of this machine.

  jaxgen vote new STUDY --of a=FOLDER --of b=FOLDER   make a study
  jaxgen vote serve STUDY                             the page, until Ctrl-C
  jaxgen vote results STUDY                           win rates, strengths, agreement
  jaxgen vote export STUDY --out pairs.jsonl          votes as preference pairs
  jaxgen vote power 0.6                               votes that tell a win rate of 60% from chance
"""


def main(argv: list[str]) -> int:
  options = _parser().parse_args(argv)
  return options.run_command(options) or 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='jaxgen vote', description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  new = commands.add_parser('new', help='make a study', allow_abbrev=False)
  new.add_argument('study', type=Path, help='the file that keeps the study and its votes')
  new.add_argument(
    '--of', action='append', required=True, metavar='NAME=FOLDER', help='a contender: a folder of images, or of a run'
  )
  new.add_argument(
    '--kind', default='pairs', choices=('pairs', 'rating', 'hype'), help='kind of study (default: pairs)'
  )
  new.add_argument('--reference', type=Path, help='folder of real images, for hype')
  new.add_argument(
    '--question', action='append', metavar='NAME[=TEXT]', help='real, text, creative, or one of your own (default: all)'
  )
  new.add_argument(
    '--num', type=int, help='number of prompts, or of images of each contender, chosen at random (default: all)'
  )
  new.add_argument('--per-rater', type=int, help='items that one rater judges (default: all)')
  new.add_argument('--checks', type=finite, default=0.1, help='share of attention checks (default: 0.1)')
  new.add_argument('--exposure', type=int, help='milliseconds for which images are shown (default: until the vote)')
  new.add_argument('--samples', type=int, default=64, help='images that are made of each run (default: 64)')
  new.add_argument('--seed', type=int, default=0, help='seed of all choices, and of the samples of runs')
  new.set_defaults(run_command=_new)
  serve = commands.add_parser('serve', help='serve the page until Ctrl-C', allow_abbrev=False)
  serve.add_argument('study', type=Path)
  serve.add_argument('--host', default='127.0.0.1', help='address to listen on (default: this machine only)')
  serve.add_argument('--port', type=int, default=8400, help='port of the page (default: 8400)')
  serve.add_argument('--rater', action='append', default=[], metavar='NAME', help='prints a link for this rater')
  serve.set_defaults(run_command=_serve)
  results = commands.add_parser('results', help='win rates, strengths and agreement', allow_abbrev=False)
  results.add_argument('study', type=Path)
  results.add_argument('--json', type=Path, help='write the results as JSON too')
  results.add_argument('--csv', type=Path, help='write the results as CSV too')
  results.add_argument('--plot', type=Path, help='write a plot too, .svg')
  results.add_argument(
    '--run', type=Path, action='append', default=[], help="add the results to this run's report.html"
  )
  results.add_argument('--everyone', action='store_true', help='count raters who failed attention checks too')
  results.set_defaults(run_command=_results)
  export = commands.add_parser('export', help='votes as preference pairs', allow_abbrev=False)
  export.add_argument('study', type=Path)
  export.add_argument('--out', type=Path, required=True, help='the .jsonl file to write')
  export.set_defaults(run_command=_export)
  power = commands.add_parser('power', help='how many votes a difference needs', allow_abbrev=False)
  power.add_argument('win_rate', type=finite, help='the true win rate to detect, e.g. 0.6')
  power.add_argument('--power', type=finite, default=0.8, help='probability of detecting it (default: 0.8)')
  power.set_defaults(run_command=_power)
  return parser


def _new(options: argparse.Namespace) -> None:
  from jaxgen.vote import study

  sources: dict[str, Path] = {}
  for text in options.of:
    name, equals, folder = text.partition('=')
    if not equals or not name or not folder:
      raise ValueError(f'--of {text} is not understood; wanted NAME=FOLDER, such as a=samples/a')
    if name in sources:
      raise ValueError(f'two contenders are named {name!r}; give each a name of its own')
    sources[name] = Path(folder).expanduser()
  if options.study.exists():
    raise FileExistsError(f'{options.study} exists; a study keeps its votes there: give another name, or serve it')
  for name, folder in sources.items():
    if (folder / 'config.json').exists() and (folder / 'checkpoints').exists():
      sources[name] = _samples(folder, options.study.with_suffix('.images') / name, options)
  study.create(
    options.study,
    sources,
    kind=options.kind,
    questions=_questions(options.question, options.kind),
    reference=options.reference,
    num=options.num,
    per_rater=options.per_rater,
    checks=options.checks,
    exposure=options.exposure,
    seed=options.seed,
  )
  with study.connect(options.study) as db:
    meta = study.read_meta(db)
    (items,) = db.execute('SELECT COUNT(DISTINCT item) FROM trials WHERE NOT is_check').fetchone()
  questions = ', '.join(meta['questions'])
  print(f'{options.study}: {items} {"pairs" if options.kind == "pairs" else "images"}; questions: {questions}')
  if options.kind == 'pairs':
    _say_power(items // max(len(sources) * (len(sources) - 1) // 2, 1))
  print(f'next: jaxgen vote serve {options.study}')


def _samples(run: Path, out: Path, options: argparse.Namespace) -> Path:
  """Images of a run: the same seed and conditioning for each, so that image i is for the same prompt in all."""
  from jaxgen.cli import sample

  if out.exists():
    raise FileExistsError(f'{out} exists; remove it, or give another name of the study')
  sample.main(['--run', str(run), '--out', str(out), '--num', str(options.samples), '--seed', str(options.seed)])
  return out


def _questions(texts: list[str] | None, kind: str) -> dict[str, str] | None:
  from jaxgen.vote.study import QUESTIONS

  if texts is None:
    return None
  questions = {}
  for text in texts:
    name, equals, words = text.partition('=')
    known = QUESTIONS[kind]
    if not equals and name not in known:
      raise ValueError(f'--question {name!r} has no text; wanted NAME=TEXT, or one of {", ".join(known)}')
    questions[name] = words or known[name]
  return questions


def _say_power(pairs: int) -> None:
  """Prints the power of the study beforehand: votes that each rater adds, and votes that differences need."""
  from jaxgen.metrics import preference

  needed = ', '.join(f'{rate:.0%}: {preference.votes_needed(rate)}' for rate in (0.55, 0.6, 0.65, 0.7))
  print(f'votes a question needs to find a win rate (80% power, 95% confidence): {needed}')
  if pairs > 1:
    print(
      f'one rater gives {pairs} votes a question, which find a win rate of {preference.detectable(pairs):.0%} or more'
    )


def _serve(options: argparse.Namespace) -> None:
  if any(importlib.util.find_spec(name) is None for name in ('starlette', 'uvicorn')):
    raise ValueError("the page needs Starlette and uvicorn; install them: pip install 'jaxgen[vote]'")
  from jaxgen.vote import server, study

  loopback = server.is_loopback(options.host)
  key = None if loopback else server.new_key()
  with study.connect(options.study) as db:
    listener = server.listen(options.host, options.port)
    port = listener.getsockname()[1]
    host = f'[{options.host}]' if ':' in options.host else options.host
    address = f'http://{host}:{port}'
    print(f'{address}/' + (f'?key={key}' if key else ''), flush=True)
    for name in options.rater:
      print(f'{name}: {address}/r/{study.join(db, name)}', flush=True)
  server.serve(options.study, listener, key=key, loopback=loopback, log=lambda line: print(line, file=sys.stderr))


def _results(options: argparse.Namespace) -> None:
  from jaxgen import report
  from jaxgen.files import write_whole
  from jaxgen.vote import figure, results

  found = results.summary(options.study, everyone=options.everyone)
  print(results.as_text(found))
  written: list[tuple[Path | None, str]] = [
    (options.json, json.dumps(found, indent=2, allow_nan=False) + '\n'),
    (options.csv, results.as_csv(found)),
    (options.plot, figure.document(found)),
  ]
  for path, text in written:
    if path is not None:
      path.parent.mkdir(parents=True, exist_ok=True)
      write_whole(path, text)
  for run in options.run:
    _add_to_report(run, found, report.write)


def _add_to_report(run: Path, found: dict[str, Any], write_report: Callable[[Path], Any]) -> None:
  from jaxgen.files import write_whole

  if not (run / 'metrics.jsonl').exists():
    raise FileNotFoundError(f'{run} is not the folder of a run: it has no metrics.jsonl')
  (run / 'votes').mkdir(exist_ok=True)
  write_whole(run / 'votes' / f'{found["study"]}.json', json.dumps(found, indent=2) + '\n')
  print(write_report(run))


def _export(options: argparse.Namespace) -> None:
  from jaxgen.files import write_whole
  from jaxgen.vote import results

  text = results.preferences(options.study)
  options.out.parent.mkdir(parents=True, exist_ok=True)
  write_whole(options.out, text)
  print(f'{text.count(chr(10))} preferences in {options.out}')


def _power(options: argparse.Namespace) -> None:
  from jaxgen.metrics import preference

  votes = preference.votes_needed(options.win_rate, power=options.power)
  print(f'{votes} independent votes find a win rate of {options.win_rate:.0%} with probability {options.power:.0%}')
