"""A study: which images are judged, by whom, and every vote, in one SQLite file.

Three kinds:

  pairs   two images for one prompt, of two contenders: which is better, or neither?
  rating  one image on a scale of 1 to 5; the mean is the mean opinion score
  hype    one image, real or fake? The share of wrong answers is HYPE-infinity (Zhou et al. 2019, arXiv:1904.01121)

A *trial* is one question about one item (a pair, or an image). When a rater joins, trials are assigned in an order of
the rater's own: one question after the other, items and sides at random, first the items that fewest raters have.
Everything that a rater's browser sees of a trial is the random token of that assignment.

Attention checks are trials with a known answer: beside an image, the same one under heavy noise.
"""

import contextlib
import itertools
import json
import random
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen.data.image import decode_image
from jaxgen.vote.pictures import Item, digest, prompted_images

QUESTIONS = {
  'pairs': {
    'real': 'Which image looks more real?',
    'text': 'Which image fits the text better?',
    'creative': 'Which image is more creative?',
  },
  'rating': {
    'real': 'How real does this image look?',
    'text': 'How well does this image fit the text?',
    'creative': 'How creative is this image?',
  },
  'hype': {'real': 'Is this image real, or was it made by a computer?'},
}
REAL = -1  # the contender number of real images
_NO_CHECKS = ('creative',)  # noise is a matter of taste
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE images (id INTEGER PRIMARY KEY, contender INTEGER NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE trials (
  id INTEGER PRIMARY KEY, question TEXT NOT NULL, item INTEGER NOT NULL, prompt TEXT,
  first INTEGER NOT NULL REFERENCES images, second INTEGER REFERENCES images, is_check INTEGER NOT NULL);
CREATE TABLE raters (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, token TEXT UNIQUE NOT NULL);
CREATE TABLE assignments (
  token TEXT PRIMARY KEY, rater INTEGER NOT NULL REFERENCES raters, place INTEGER NOT NULL,
  trial INTEGER NOT NULL REFERENCES trials, flipped INTEGER NOT NULL, UNIQUE (rater, trial));
CREATE TABLE votes (
  assignment TEXT PRIMARY KEY REFERENCES assignments, answer TEXT NOT NULL, milliseconds INTEGER, time REAL NOT NULL);
"""


class Image(NamedTuple):
  """A file that is shown, and what it held when the study was made."""

  path: Path
  digest: str
  damaged: bool  # shown under noise, as an attention check


class Shown(NamedTuple):
  """The next trial of a rater.

  Attributes:
    token: token of the assignment.
    question, prompt: the question, and the prompt of the images, empty if they have none.
    images: images from left to right.
    done, total: assignments that have a vote, and all.
  """

  token: str
  question: str
  prompt: str | None
  images: tuple[Image, ...]
  done: int
  total: int


class Vote(NamedTuple):
  """One vote, sides already put back: `answer` is 'first', 'second', 'tie', '1' to '5', 'real' or 'fake'."""

  question: str
  item: int
  prompt: str | None
  first: int  # contender of each image
  second: int | None
  first_path: str
  second_path: str | None
  is_check: bool
  rater: str
  answer: str
  milliseconds: int | None


class Refused(ValueError):
  """A request that a rater's page should not have made, or a name that is taken."""


def create(
  path: Path,
  sources: Mapping[str, Path],
  *,
  kind: str = 'pairs',
  questions: Mapping[str, str] | None = None,
  reference: Path | None = None,
  num: int | None = None,
  per_rater: int | None = None,
  checks: float = 0.1,
  exposure: int | None = None,
  seed: int = 0,
) -> None:
  """Makes a study's file.

  Args:
    path: the file; it must not exist.
    sources: contenders by name, each a folder of images, with prompts where it has them.
    kind: 'pairs', 'rating' or 'hype'.
    questions: short name to text; by default those of the kind that the images allow.
    reference: folder of real images, which `hype` needs.
    num: number of prompts, or of images of each contender, chosen at random; all by default.
    per_rater: items that one rater judges; all by default.
    checks: share of attention checks among the trials of a question.
    exposure: milliseconds for which images are shown; until the vote by default.
    seed: seed of all choices and of every rater's order.

  Raises:
    ValueError: the study cannot be made of these.
    FileExistsError: there is one already.
  """
  if path.exists():
    raise FileExistsError(f'{path} exists; a study keeps its votes there: give another name, or serve it')
  if kind not in QUESTIONS:
    raise ValueError(f'kind is {kind!r}; wanted one of {", ".join(QUESTIONS)}')
  if kind == 'pairs' and len(sources) < 2:
    raise ValueError(f'pairs need two contenders or more, got {len(sources)}; add --of NAME=FOLDER')
  if kind == 'hype' and reference is None:
    raise ValueError('hype shows real images among the fake ones; give their folder (--reference)')
  if not 0 <= checks < 1:
    raise ValueError(f'checks is {checks}; wanted a share from 0 to below 1')
  rng = random.Random(seed)
  found = [prompted_images(folder) for folder in sources.values()]
  items = _pairs(found, list(sources), num, rng) if kind == 'pairs' else _singles(found, num, rng)
  if reference is not None and kind == 'hype':
    real = prompted_images(reference)
    items += [(None, (REAL, item), None) for item in rng.sample(real, min(len(real), len(items)))]
  has_prompts = all(prompt for prompt, _, _ in items)
  questions = dict(questions or {name: text for name, text in QUESTIONS[kind].items() if name != 'text' or has_prompts})
  if 'text' in questions and not has_prompts:
    raise ValueError(
      'the question `text` needs a prompt for every image: a metadata.jsonl with file_name and text, or NAME.txt files'
    )
  meta = {
    'version': 1,
    'kind': kind,
    'contenders': list(sources),
    'folders': {name: str(folder) for name, folder in sources.items()},
    'questions': questions,
    'checks': checks,
    'per_rater': per_rater,
    'exposure': exposure,
    'seed': seed,
    'secret': secrets.token_hex(16),
  }
  partial = path.with_name(f'.{path.name}.partial')
  partial.unlink(missing_ok=True)
  path.parent.mkdir(parents=True, exist_ok=True)
  with connect(partial, new=True) as db:
    db.executescript(_SCHEMA)
    db.executemany('INSERT INTO meta VALUES (?, ?)', [(key, json.dumps(value)) for key, value in meta.items()])
    _add_trials(db, items, meta, rng)
    db.commit()
    db.execute('PRAGMA journal_mode = DELETE')  # all of it is in the one file that is renamed
  partial.rename(path)


_Judged = tuple[str | None, tuple[int, Item], tuple[int, Item] | None]  # prompt, first and perhaps second image


def _pairs(found: Sequence[Sequence[Item]], names: Sequence[str], num: int | None, rng: random.Random) -> list[_Judged]:
  """Images of every two contenders that share a slot: the k-th image of a prompt, else a file name."""
  slots = [_slots(items) for items in found]
  shared = [slot for slot in slots[0] if all(slot in other for other in slots[1:])]
  if not shared:
    raise ValueError(
      f'{" and ".join(names)} share no prompt and no file name, so there are no pairs; '
      'sample them with the same prompts'
    )
  chosen = rng.sample(shared, min(num or len(shared), len(shared)))
  return [
    (slots[a][slot].prompt, (a, slots[a][slot]), (b, slots[b][slot]))
    for slot in chosen
    for a, b in itertools.combinations(range(len(found)), 2)
  ]


def _slots(items: Sequence[Item]) -> dict[tuple[str, int], Item]:
  slots: dict[tuple[str, int], Item] = {}
  counts: dict[str, int] = {}
  for item in items:
    key = item.prompt or item.name
    counts[key] = counts.get(key, -1) + 1
    slots[key, counts[key]] = item
  return slots


def _singles(found: Sequence[Sequence[Item]], num: int | None, rng: random.Random) -> list[_Judged]:
  return [
    (item.prompt, (contender, item), None)
    for contender, items in enumerate(found)
    for item in rng.sample(list(items), min(num or len(items), len(items)))
  ]


def _add_trials(db: sqlite3.Connection, items: Sequence[_Judged], meta: Mapping[str, Any], rng: random.Random) -> None:
  ids: dict[Path, int] = {}

  def image(contender: int, item: Item) -> int:
    if item.path not in ids:
      data = item.path.read_bytes()
      try:
        decode_image(data)  # one that is damaged is found now, not by a rater
      except ValueError as error:
        raise ValueError(f'{item.path} cannot be decoded ({error}); remove it or make it again') from error
      row = (contender, str(item.path), digest(data))
      ids[item.path] = db.execute('INSERT INTO images (contender, path, digest) VALUES (?, ?, ?)', row).lastrowid or 0
    return ids[item.path]

  insert = 'INSERT INTO trials (question, item, prompt, first, second, is_check) VALUES (?, ?, ?, ?, ?, ?)'
  rows = [(prompt, image(*first), None if second is None else image(*second)) for prompt, first, second in items]
  seen = min(meta['per_rater'] or len(rows), len(rows))
  count = max(1, round(meta['checks'] * seen)) if meta['checks'] else 0
  for question in meta['questions']:
    db.executemany(insert, [(question, n, *row, 0) for n, row in enumerate(rows)])
    if question not in _NO_CHECKS:
      checks = [rows[i] for i in rng.sample(range(len(rows)), min(count, len(rows)))]
      pairs = meta['kind'] == 'pairs'
      db.executemany(
        insert,
        [(question, len(rows) + n, prompt, a, a if pairs else None, 1) for n, (prompt, a, _) in enumerate(checks)],
      )


@contextlib.contextmanager
def connect(path: Path, *, new: bool = False) -> Iterator[sqlite3.Connection]:
  """A connection whose commits are on the disk when they return.

  Raises:
    FileNotFoundError, ValueError: no study there.
  """
  if not new and not path.is_file():
    raise FileNotFoundError(f'{path} is not there; make a study with `jaxgen vote new`')
  db = sqlite3.connect(path, timeout=30, isolation_level=None if not new else 'DEFERRED')
  try:
    try:
      db.execute('PRAGMA journal_mode = WAL')
      db.execute('PRAGMA synchronous = FULL')
      if not new:
        db.execute('SELECT 1 FROM meta, assignments LIMIT 1')
    except sqlite3.DatabaseError as error:
      if isinstance(error, sqlite3.OperationalError) and 'no such table' not in str(error):
        raise
      raise ValueError(f'{path} is not a study ({error}); make one with `jaxgen vote new`') from error
    yield db
  finally:
    db.close()


def read_meta(db: sqlite3.Connection) -> dict[str, Any]:
  return {key: json.loads(value) for key, value in db.execute('SELECT key, value FROM meta')}


def join(db: sqlite3.Connection, name: str, *, known: bool = True) -> str:
  """The token of a rater, who is assigned trials when new.

  Args:
    name: the rater's name.
    known: a name that is there goes on; else it is refused.
  """
  name = ' '.join(name.split())
  if not 0 < len(name) <= 60:
    raise Refused('a name has 1 to 60 characters')
  with _transaction(db):
    row = db.execute('SELECT token FROM raters WHERE name = ?', (name,)).fetchone()
    if row is not None:
      if not known:
        raise Refused('this name is taken; if it is yours, use the link that you were given')
      return row[0]
    token = secrets.token_urlsafe(18)
    rater = db.execute('INSERT INTO raters (name, token) VALUES (?, ?)', (name, token)).lastrowid
    assert rater is not None
    _assign(db, rater)
  return token


def _assign(db: sqlite3.Connection, rater: int) -> None:
  meta = read_meta(db)
  rng = random.Random(f'{meta["secret"]} {rater}')
  counted = db.execute(
    'SELECT item, COUNT(assignments.token) FROM trials LEFT JOIN assignments ON trial = trials.id '
    'WHERE NOT is_check GROUP BY item'
  ).fetchall()
  rng.shuffle(counted)
  counted.sort(key=lambda row: row[1])
  items = {item for item, _ in counted[: meta['per_rater'] or len(counted)]}
  rows = db.execute('SELECT id, question, item, is_check FROM trials').fetchall()
  questions = list(meta['questions'])
  rng.shuffle(questions)
  place = 0
  for name in questions:
    block = [trial for trial, question, item, check in rows if question == name and (check or item in items)]
    rng.shuffle(block)
    for trial in block:
      values = (secrets.token_urlsafe(12), rater, place, trial, rng.randrange(2))
      db.execute('INSERT INTO assignments VALUES (?, ?, ?, ?, ?)', values)
      place += 1


def rater_of(db: sqlite3.Connection, token: str) -> int:
  row = db.execute('SELECT id FROM raters WHERE token = ?', (token,)).fetchone()
  if row is None:
    raise Refused('this link belongs to no rater of this study')
  return row[0]


_SHOWN = """
SELECT assignments.token, question, prompt, flipped, is_check, a.path, a.digest, b.path, b.digest
FROM assignments JOIN trials ON trials.id = trial
JOIN images a ON a.id = first LEFT JOIN images b ON b.id = second
LEFT JOIN votes ON votes.assignment = assignments.token
"""


def open_trials(db: sqlite3.Connection, rater: int) -> Iterator[Shown]:
  """The trials that the rater has not judged yet, in order."""
  total, done = db.execute(
    'SELECT COUNT(*), COUNT(votes.assignment) FROM assignments '
    'LEFT JOIN votes ON votes.assignment = assignments.token WHERE rater = ?',
    (rater,),
  ).fetchone()
  for row in db.execute(_SHOWN + 'WHERE rater = ? AND votes.assignment IS NULL ORDER BY place', (rater,)):
    yield _shown(row, done, total)


def shown(db: sqlite3.Connection, rater: int, token: str) -> Shown:
  """One assignment of this rater."""
  row = db.execute(_SHOWN + 'WHERE rater = ? AND assignments.token = ?', (rater, token)).fetchone()
  if row is None:
    raise Refused('this is no trial of yours')
  return _shown(row, 0, 0)


def _shown(row: tuple, done: int, total: int) -> Shown:
  token, question, prompt, flipped, is_check, path_a, digest_a, path_b, digest_b = row
  single = path_b is None
  images = [Image(Path(path_a), digest_a, damaged=bool(is_check) and single)]
  if not single:
    images.append(Image(Path(path_b), digest_b, damaged=bool(is_check)))
  return Shown(token, question, prompt, tuple(images[::-1] if flipped else images), done, total)


def vote(db: sqlite3.Connection, rater: int, token: str, answer: str, milliseconds: int | None = None) -> None:
  """Keeps a vote: on the disk when this returns. A vote that is sent again changes nothing.

  Args:
    answer: 'left', 'right' or 'tie' for a pair, '1' to '5' for a rating, 'real' or 'fake' for hype.
  """
  kind = json.loads(db.execute("SELECT value FROM meta WHERE key = 'kind'").fetchone()[0])
  answers = {'pairs': ('left', 'right', 'tie'), 'rating': tuple('12345'), 'hype': ('real', 'fake')}[kind]
  if answer not in answers:
    raise Refused(f'the answer is {answer!r}; wanted one of {", ".join(answers)}')
  shown(db, rater, token)
  (flipped,) = db.execute('SELECT flipped FROM assignments WHERE token = ?', (token,)).fetchone()
  kept = {'left': ('first', 'second')[flipped], 'right': ('second', 'first')[flipped]}.get(answer, answer)
  with _transaction(db):
    db.execute('INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?)', (token, kept, milliseconds, time.time()))


def undo(db: sqlite3.Connection, rater: int) -> bool:
  """Takes the rater's last vote back, so that it is asked again; False where there is none."""
  with _transaction(db):
    last = (
      'SELECT assignment FROM votes JOIN assignments ON token = assignment WHERE rater = ? '
      'ORDER BY time DESC, place DESC LIMIT 1'
    )
    return db.execute(f'DELETE FROM votes WHERE assignment = ({last})', (rater,)).rowcount > 0


def votes(db: sqlite3.Connection) -> list[Vote]:
  """Every vote, in the order of trials and raters."""
  rows = db.execute(
    'SELECT question, item, prompt, a.contender, b.contender, a.path, b.path, is_check, name, answer, milliseconds '
    'FROM votes JOIN assignments ON assignments.token = assignment JOIN trials ON trials.id = trial '
    'JOIN images a ON a.id = first LEFT JOIN images b ON b.id = second JOIN raters ON raters.id = rater '
    'ORDER BY trials.id, raters.id'
  )
  return [Vote(*row)._replace(is_check=bool(row[7])) for row in rows]


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
  """All or nothing; two writers wait for each other."""
  db.execute('BEGIN IMMEDIATE')
  try:
    yield
    db.execute('COMMIT')
  except BaseException:
    with contextlib.suppress(sqlite3.Error):
      db.execute('ROLLBACK')
    raise
