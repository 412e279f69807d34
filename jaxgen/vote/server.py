"""The web page of a study, for this machine or, with a key, for a network.

A rater's browser sees the question, the prompt, pixels and random tokens: no file, no folder, no contender. A vote is
answered with `saved` only when it is on the disk.
"""

import contextlib
import hmac
import ipaddress
import json
import secrets
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen.data.image import decode_image, encode_png
from jaxgen.vote import pictures, study

_PAGE = Path(__file__).with_name('page.html')
_MOST_BYTES = 4096  # bytes of a request
_HEADERS = {
  'Content-Security-Policy': (
    "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
  ),
  'Referrer-Policy': 'no-referrer',  # a rater's link is a password
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-store',
}


class _Site(NamedTuple):
  """The arguments of all answers: the study's file, the key, a log that prints each message once, the page's HTML."""

  path: Path
  key: str | None
  log: Callable[[str], None]
  page: str


Fields = dict[str, Any]  # the JSON object of a request
Answer = Callable[[_Site, sqlite3.Connection, Any, Fields], Any]  # (site, database, request, fields) -> an answer


def make_app(path: Path, *, key: str | None = None, loopback: bool = True, log: Callable[[str], None] = print) -> Any:
  """The ASGI application of a study.

  Args:
    path: the study's file.
    key: secret that a rater has to give to join; with None, everybody who reaches the page may join.
    loopback: answer only to requests that name this machine, so that no other site's page can vote here.
    log: gets a line for each thing that the study's owner should know.
  """
  from starlette.applications import Starlette
  from starlette.middleware import Middleware
  from starlette.middleware.trustedhost import TrustedHostMiddleware
  from starlette.routing import Route

  site = _Site(path, key, _once(log), _PAGE.read_text(encoding='utf-8'))
  hosts = ['127.0.0.1', 'localhost', '[::1]'] if loopback else ['*']
  return Starlette(
    routes=[
      Route('/', _endpoint(site, _show_page)),
      Route('/join', _endpoint(site, _join), methods=['POST']),
      Route('/r/{rater}', _endpoint(site, _show_page)),
      Route('/r/{rater}/next', _endpoint(site, _next_trial)),
      Route('/r/{rater}/image/{trial}/{side:int}', _endpoint(site, _image)),
      Route('/r/{rater}/vote', _endpoint(site, _vote), methods=['POST']),
      Route('/r/{rater}/undo', _endpoint(site, _undo), methods=['POST']),
    ],
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
  )


def _once(log: Callable[[str], None]) -> Callable[[str], None]:
  """Logs each message once."""
  logged: set[str] = set()

  def once(message: str) -> None:
    if message not in logged:
      logged.add(message)
      log(message)

  return once


def _endpoint(site: _Site, answer: Answer) -> Callable:
  """Runs an answer beside the event loop; an error becomes one line."""
  from starlette.concurrency import run_in_threadpool
  from starlette.responses import JSONResponse, Response

  def work(request: Any, fields: Fields) -> Response:
    try:
      with study.connect(site.path) as db:
        made = answer(site, db, request, fields)
    except study.Refused as error:
      return JSONResponse({'error': str(error)}, 400, _HEADERS)
    except (sqlite3.Error, OSError, ValueError) as error:
      message = _message(error, site.path)
      site.log(message)
      return JSONResponse({'error': message.replace(str(site.path), 'the study')}, 503, _HEADERS)
    return made if isinstance(made, Response) else JSONResponse(made, headers=_HEADERS)

  async def handle(request: Any) -> Response:
    try:
      fields = await _fields(request)
    except study.Refused as error:
      return JSONResponse({'error': str(error)}, 400, _HEADERS)
    return await run_in_threadpool(work, request, fields)

  return handle


def _show_page(site: _Site, db: sqlite3.Connection, request: Any, fields: Fields) -> Any:
  from starlette.responses import HTMLResponse

  if 'rater' in request.path_params:
    study.rater_of(db, request.path_params['rater'])
  return HTMLResponse(site.page, headers=_HEADERS)


def _join(site: _Site, db: sqlite3.Connection, request: Any, fields: Fields) -> Fields:
  if site.key is not None and not hmac.compare_digest(site.key.encode(), str(fields.get('key', '')).encode()):
    raise study.Refused('this study needs its key; ask for the whole link')
  return {'url': f'/r/{study.join(db, str(fields.get("name", "")), known=site.key is None)}'}


def _find(site: _Site, image: study.Image) -> bytes | None:
  """The file as it was when the study was made."""
  data = image.path.read_bytes() if image.path.is_file() else None
  if data is not None and pictures.digest(data) == image.digest:
    return data
  site.log(f'{image.path} {"is gone" if data is None else "has changed"} since the study was made; it is not shown')
  return None


def _next_trial(site: _Site, db: sqlite3.Connection, request: Any, fields: Fields) -> Fields:
  """The next trial whose images are there, and the images of the one after it to load ahead."""
  token = request.path_params['rater']
  meta, skipped, trials = study.read_meta(db), 0, []
  for trial in study.open_trials(db, study.rater_of(db, token)):
    if all(_find(site, image) for image in trial.images):
      trials.append(trial)
      if len(trials) == 2:
        break
    else:
      skipped += 1
  if not trials:
    return {'finished': True}
  urls = [[f'/r/{token}/image/{trial.token}/{side}' for side in range(len(trial.images))] for trial in trials]
  trial = trials[0]
  return {
    'finished': False,
    'kind': meta['kind'],
    'trial': trial.token,
    'question': meta['questions'][trial.question],
    'prompt': None if trial.question == 'real' else trial.prompt,
    'images': urls[0],
    'preload': urls[1] if len(urls) > 1 else [],
    'done': trial.done,
    'total': trial.total - skipped,
    'exposure': meta['exposure'],
  }


def _image(site: _Site, db: sqlite3.Connection, request: Any, fields: Fields) -> Any:
  from starlette.responses import JSONResponse, Response

  rater = study.rater_of(db, request.path_params['rater'])
  trial = study.shown(db, rater, request.path_params['trial'])
  side = request.path_params['side']
  data = _find(site, trial.images[side]) if side < len(trial.images) else None
  if data is None:
    return JSONResponse({'error': 'this image is gone'}, 410, _HEADERS)
  pixels = decode_image(data)
  if trial.images[side].damaged:
    pixels = pictures.under_noise(pixels)
  # Pixels alone: no name, date, prompt or other mark of the file they came from.
  return Response(
    encode_png(pixels), media_type='image/png', headers=_HEADERS | {'Cache-Control': 'private, max-age=3600'}
  )


def _vote(site: _Site, db: sqlite3.Connection, request: Any, fields: Fields) -> Fields:
  rater = study.rater_of(db, request.path_params['rater'])
  took = fields.get('milliseconds')
  took = took if isinstance(took, int) and 0 <= took < 1 << 31 else None
  study.vote(db, rater, str(fields.get('trial', '')), str(fields.get('answer', '')), took)
  return {'saved': True}


def _undo(site: _Site, db: sqlite3.Connection, request: Any, fields: Fields) -> Fields:
  return {'undone': study.undo(db, study.rater_of(db, request.path_params['rater']))}


async def _fields(request: Any) -> dict[str, Any]:
  """The JSON object that a page posts. Forms of other sites cannot send this type without asking first."""
  if request.method != 'POST':
    return {}
  if request.headers.get('content-type', '').partition(';')[0] != 'application/json':
    raise study.Refused('wanted application/json')
  body = b''
  async for part in request.stream():
    body += part
    if len(body) > _MOST_BYTES:
      raise study.Refused(f'wanted at most {_MOST_BYTES} bytes')
  try:
    fields = json.loads(body)
  except ValueError:
    fields = None
  if not isinstance(fields, dict):
    raise study.Refused('wanted a JSON object')
  return fields


def _message(error: Exception, path: Path) -> str:
  text = str(error)
  if 'full' in text or 'disk I/O' in text or 'No space' in text:
    return f'nothing is saved: the disk that holds {path} is full; make room, and raters go on where they are'
  if 'locked' in text:
    return f'nothing is saved: {path} is locked by another program; close it, and raters go on where they are'
  return f'nothing is saved: {path}: {text}'


def is_loopback(host: str) -> bool:
  with contextlib.suppress(ValueError):
    return ipaddress.ip_address(host).is_loopback
  return host == 'localhost'


def new_key() -> str:
  return secrets.token_urlsafe(12)


def listen(host: str, port: int) -> socket.socket:
  """A bound socket.

  Raises:
    ValueError: the port is in use, or the address is not this machine's.
  """
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  listener = socket.socket(family, socket.SOCK_STREAM)
  try:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(128)
  except OSError as error:
    listener.close()
    raise ValueError(f'cannot listen on {host}:{port} ({error.strerror}); give another --port or --host') from error
  return listener


def serve(path: Path, listener: socket.socket, *, key: str | None, loopback: bool, log: Callable[[str], None]) -> None:
  """Answers until Ctrl-C."""
  import uvicorn

  app = make_app(path, key=key, loopback=loopback, log=log)
  config = uvicorn.Config(
    app, log_level='error', access_log=False, server_header=False, date_header=False, timeout_graceful_shutdown=3
  )
  uvicorn.Server(config).run(sockets=[listener])
