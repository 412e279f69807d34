"""`jaxgen vote`: what a rater can see, what is kept, what goes wrong, and what the votes say."""

import io
import json
import os
import pathlib
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from jaxgen import report
from jaxgen.cli.main import main
from jaxgen.vote import figure, results, server, study

testclient = pytest.importorskip('starlette.testclient')

NAMES = ('secret-alpha', 'secret-beta')


def folder_of_images(folder: pathlib.Path, value: int, num: int = 6, texts: bool = True) -> pathlib.Path:
  """Plain images whose grey says whose they are, with a mark of their maker inside."""
  folder.mkdir(parents=True)
  lines = []
  for i in range(num):
    mark = PngImagePlugin.PngInfo()
    mark.add_text('model', folder.name)
    pixels = np.full((16, 16, 3), value, np.uint8)
    pixels[0, 0] = i
    Image.fromarray(pixels).save(folder / f'{folder.name}_{i}.png', pnginfo=mark)
    lines.append(json.dumps({'file_name': f'{folder.name}_{i}.png', 'text': f'<b>prompt {i}</b>'}) + '\n')
  if texts:
    (folder / 'metadata.jsonl').write_text(''.join(lines))
  return folder


@pytest.fixture
def sources(tmp_path):
  return {name: folder_of_images(tmp_path / name, 200 - 100 * i) for i, name in enumerate(NAMES)}


@pytest.fixture
def made(tmp_path, sources):
  study.create(tmp_path / 'study.db', sources, checks=0.2)
  return tmp_path / 'study.db'


@pytest.fixture
def logged():
  return []


@pytest.fixture
def client(made, logged):
  return testclient.TestClient(server.make_app(made, log=logged.append), base_url='http://127.0.0.1')


def joined(client, name='ann'):
  answer = client.post('/join', json={'name': name})
  assert answer.status_code == 200, answer.text
  return answer.json()['url']


def mean_of(client, url):
  answer = client.get(url)
  assert answer.status_code == 200, answer.text
  return np.asarray(Image.open(io.BytesIO(answer.content))).astype(float)


def answer_all(client, url, choose, most=1000):
  """Votes until the end; `choose` sees the trial and its images."""
  answered = []
  for _ in range(most):
    trial = client.get(f'{url}/next').json()
    if trial['finished']:
      break
    images = [mean_of(client, image) for image in trial['images']]
    answer = choose(trial, images)
    assert client.post(f'{url}/vote', json={'trial': trial['trial'], 'answer': answer, 'milliseconds': 700}).json() == {
      'saved': True
    }
    answered.append((trial, answer))
  return answered


def brighter(trial, images):
  """Prefers alpha, and sees the noise of an attention check."""
  noisy = [image.std() > 20 for image in images]
  if any(noisy):
    return 'right' if noisy[0] else 'left'
  return 'left' if images[0].mean() > images[1].mean() else 'right'


def test_every_question_is_asked_about_every_pair_once_with_sides_at_random(client, made):
  answered = answer_all(client, joined(client), brighter)
  questions = [trial['question'] for trial, _ in answered]
  assert len(answered) == 3 * 6 + 2  # one attention check each for `real` and `text`
  # One question after the other.
  assert len([i for i in range(1, len(answered)) if questions[i] != questions[i - 1]]) == 2
  assert len({answer for _, answer in answered}) == 2
  found = results.summary(made)
  for name, question in found['questions'].items():
    (pair,) = question['pairs']
    assert (pair['a'], pair['b']) == NAMES, name
    assert (pair['wins_a'], pair['wins_b'], pair['ties'], pair['win_rate']) == (6, 0, 0, 1.0)
    assert pair['low'] > 0.5
    assert [row['name'] for row in question['strengths']] == list(NAMES)
    assert {row['prompt'] for row in question['by_prompt']} == {f'<b>prompt {i}</b>' for i in range(6)}
  assert found['raters'][0]['checks_right'] == found['raters'][0]['checks'] == 2


def test_a_rater_cannot_see_which_is_which(client, made):
  url = joined(client)
  trial = client.get(f'{url}/next')
  page = client.get(url)
  picture = client.get(trial.json()['images'][0])
  seen = page.text + trial.text + str(page.headers) + str(trial.headers) + str(picture.headers)
  for word in (*NAMES, 'secret', str(made.parent), '.png'):
    assert word not in seen
  assert b'secret' not in picture.content
  assert set(Image.open(io.BytesIO(picture.content)).info) <= {'srgb', 'gamma'}
  # Nothing that a trial shows is shown again under the same name to another rater.
  other = client.get(f'{joined(client, "ben")}/next').json()
  assert not set(trial.json()['images']) & set(other['images'])
  assert all(len(token) >= 16 for token in (trial.json()['trial'], url.rpartition('/')[2]))


def test_text_stays_text(client):
  """Prompts travel as JSON and are shown by textContent; no name, however written, becomes markup."""
  url = joined(client, '<script>alert(1)</script>')
  assert '<script>alert' not in client.get(url).text
  page = (pathlib.Path(server.__file__).with_name('page.html')).read_text()
  assert not re.search(r'innerHTML|outerHTML|insertAdjacent|document\.write|eval\(', page)
  policy = client.get(url).headers['content-security-policy']
  assert policy.startswith("default-src 'none'")


def test_no_path_leads_out(client):
  url = joined(client)
  trial = client.get(f'{url}/next').json()['trial']
  for path in ('../../etc/passwd', '..%2f..%2fetc%2fpasswd', f'{trial}/2', f'{trial}/-1', 'x/0', f'{trial}/../0'):
    answer = client.get(f'{url}/image/{path}')
    assert answer.status_code in (400, 404, 410), path
  # Nor does another rater's trial, nor a link of nobody.
  assert client.get(f'{joined(client, "ben")}/image/{trial}/0').status_code == 400
  assert client.get('/r/nobody/next').status_code == 400


def test_a_double_submit_counts_once_and_a_vote_can_be_taken_back(client, made):
  url = joined(client)
  first = client.get(f'{url}/next').json()
  for answer in ('left', 'right', 'left'):
    assert client.post(f'{url}/vote', json={'trial': first['trial'], 'answer': answer}).json() == {'saved': True}
  second = client.get(f'{url}/next').json()
  assert second['done'] == 1
  with study.connect(made) as db:
    assert db.execute('SELECT COUNT(*) FROM votes').fetchone() == (1,)
  assert client.post(f'{url}/undo', json={}).json() == {'undone': True}
  assert client.get(f'{url}/next').json()['trial'] == first['trial']
  assert client.post(f'{url}/undo', json={}).json() == {'undone': False}


@pytest.mark.parametrize(
  ('fields', 'error'),
  [
    ({'trial': 'x', 'answer': 'left'}, 'no trial of yours'),
    ({'trial': 'x', 'answer': "'; DROP TABLE votes"}, 'wanted one of left, right, tie'),
    ([], 'wanted a JSON object'),
    ({'trial': 'x' * 5000}, 'at most 4096 bytes'),
  ],
)
def test_what_no_page_sends_is_refused(client, fields, error):
  answer = client.post(f'{joined(client)}/vote', json=fields)
  assert answer.status_code == 400
  assert error in answer.json()['error']


def test_other_sites_cannot_vote_here(client, made):
  url = joined(client)
  assert client.post(f'{url}/vote', content='{}', headers={'content-type': 'text/plain'}).status_code == 400
  assert client.get(url, headers={'host': 'evil.example'}).status_code == 400
  remote = testclient.TestClient(server.make_app(made, key='k' * 16, loopback=False), base_url='http://10.0.0.7')
  assert remote.post('/join', json={'name': 'eve'}).status_code == 400
  assert remote.post('/join', json={'name': 'eve', 'key': 'k' * 16}).status_code == 200
  # Elsewhere a name is no password.
  assert 'taken' in remote.post('/join', json={'name': 'ann', 'key': 'k' * 16}).json()['error']


def test_two_raters_at_once(client, made):
  urls = [joined(client, name) for name in ('ann', 'ben', 'cleo')]
  with ThreadPoolExecutor() as pool:
    counts = list(pool.map(lambda url: len(answer_all(client, url, brighter)), urls))
  assert counts == [20, 20, 20]
  with study.connect(made) as db:
    assert db.execute('SELECT COUNT(*) FROM votes').fetchone() == (60,)
  found = results.summary(made)
  assert found['questions']['real']['agreement'] is None  # all said the same: there is nothing to agree on


def test_a_pause_goes_on_where_it_was(client):
  url = joined(client)
  answer_all(client, url, brighter, most=5)
  assert joined(client) == url
  assert client.get(f'{url}/next').json()['done'] == 5


def test_an_image_that_is_gone_is_one_line_and_its_pairs_are_left_out(client, logged, sources):
  url = joined(client)
  gone = sorted(sources['secret-alpha'].glob('*.png'))[0]
  gone.unlink()
  changed = sorted(sources['secret-beta'].glob('*.png'))[1]
  Image.new('RGB', (16, 16)).save(changed)
  answered = answer_all(client, url, brighter)
  assert len(answered) == len({trial['trial'] for trial, _ in answered})
  assert 3 * 4 <= len(answered) <= 3 * 4 + 2
  assert sorted(logged) == sorted(
    [
      f'{gone} is gone since the study was made; it is not shown',
      f'{changed} has changed since the study was made; it is not shown',
    ]
  )
  assert answered[-1][0]['total'] == len(answered)


def test_a_full_disk_is_one_line_and_the_vote_is_not_said_to_be_saved(client, logged, monkeypatch):
  url = joined(client)
  trial = client.get(f'{url}/next').json()

  def full(*_):
    raise sqlite3.OperationalError('database or disk is full')

  with monkeypatch.context() as patch:
    patch.setattr(study, 'vote', full)
    answer = client.post(f'{url}/vote', json={'trial': trial['trial'], 'answer': 'left'})
  assert answer.status_code == 503
  assert answer.json()['error'].startswith('nothing is saved: the disk that holds the study is full')
  assert len(logged) == 1
  assert '\n' not in logged[0]
  # Room is made: the same page goes on.
  assert client.post(f'{url}/vote', json={'trial': trial['trial'], 'answer': 'left'}).json() == {'saved': True}


def test_sqlite_itself_refuses_where_there_is_no_room(made):
  with study.connect(made) as db:
    pages = db.execute('PRAGMA page_count').fetchone()[0]
    db.execute(f'PRAGMA max_page_count = {pages}')
    with pytest.raises(sqlite3.OperationalError, match='full'):
      [study.join(db, f'rater {i}') for i in range(1000)]
    # Half of a rater's assignments is not there.
    counts = db.execute('SELECT COUNT(*) FROM assignments GROUP BY rater').fetchall()
  assert all(count == (20,) for count in counts)


def test_raters_who_fail_attention_checks_are_left_out(client, made):
  answer_all(client, joined(client, 'ann'), brighter)
  answer_all(client, joined(client, 'bot'), lambda trial, images: 'tie')
  found = results.summary(made)
  assert [rater['counted'] for rater in found['raters']] == [True, False]
  assert found['questions']['real']['votes'] == 6
  assert results.summary(made, everyone=True)['questions']['real']['pairs'][0]['ties'] == 6
  assert 'bot: 18 votes, 0 of 2 checks right, left out' in results.as_text(found)


def test_each_rater_gets_those_that_fewest_have(tmp_path, sources):
  study.create(tmp_path / 'study.db', sources, per_rater=2, checks=0)
  with study.connect(tmp_path / 'study.db') as db:
    for name in 'abc':
      study.join(db, name)
    counts = db.execute(
      'SELECT COUNT(*) FROM trials JOIN assignments ON trial = trials.id GROUP BY question, item'
    ).fetchall()
  assert counts == [(1,)] * 18


@pytest.mark.parametrize('kind', ['rating', 'hype'])
def test_single_images(kind, tmp_path, sources):
  real = folder_of_images(tmp_path / 'photographs', 250, num=12)
  study.create(tmp_path / 'study.db', sources, kind=kind, reference=real, checks=0.1)
  client = testclient.TestClient(server.make_app(tmp_path / 'study.db'), base_url='http://localhost')

  def judge(trial, images):
    (image,) = images
    if image.std() > 20:
      return '1' if kind == 'rating' else 'fake'
    bright = image.mean() > 150
    return ('4' if bright else '2') if kind == 'rating' else ('real' if bright else 'fake')

  for name in ('ann', 'ben'):
    answer_all(client, joined(client, name), judge)
  found = results.summary(tmp_path / 'study.db')
  scores = {row['name']: row['mean'] for row in found['questions']['real']['scores']}
  wanted = {NAMES[0]: 4, NAMES[1]: 2} if kind == 'rating' else {NAMES[0]: 1, NAMES[1]: 0, 'real images': 0}
  assert scores == wanted
  assert found['questions']['real']['agreement'] == 1
  assert NAMES[0] in results.as_text(found)
  assert NAMES[0] in results.as_csv(found)
  xml.etree.ElementTree.fromstring(figure.document(found))


def test_results_are_a_table_a_plot_and_a_section_of_the_report(client, made, tmp_path, capsys):
  answer_all(client, joined(client), brighter)
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'metrics.jsonl').write_text('{"step": 1, "loss": 1.0}\n')
  paths = [tmp_path / f'out.{end}' for end in ('json', 'csv', 'svg')]
  options = [f'--{name}={path}' for name, path in zip(('json', 'csv', 'plot'), paths, strict=True)]
  assert main(['vote', 'results', str(made), *options, '--run', str(run)]) == 0
  out = capsys.readouterr().out
  assert 'secret-alpha over secret-beta: 100.0%' in out
  assert json.loads(paths[0].read_text())['questions']['real']['pairs'][0]['votes'] == 6
  rows = paths[1].read_text().splitlines()
  assert rows[0] == 'question,prompt,a,b,votes,value,low,high,p_holm'
  assert len(rows) == 1 + 3 * (1 + 6)
  xml.etree.ElementTree.fromstring(paths[2].read_text())
  page = (run / 'report.html').read_text()
  assert 'Which image looks more real?' in page
  assert 'secret-alpha over secret-beta' in page
  assert page.count('6 win rates by prompt') == 3
  assert page.count('<td>100%</td>') == 3 * 6  # the brighter one, always
  assert report.write(run).exists()


def test_votes_are_exported_as_preferences(client, made, tmp_path, capsys):
  answer_all(client, joined(client), brighter)
  assert main(['vote', 'export', str(made), '--out', str(tmp_path / 'pairs.jsonl')]) == 0
  lines = [json.loads(line) for line in (tmp_path / 'pairs.jsonl').read_text().splitlines()]
  assert len(lines) == 18
  for line in lines:
    assert 'secret-alpha' in line['chosen']
    assert 'secret-beta' in line['rejected']
    assert pathlib.Path(line['chosen']).exists()
    assert line['prompt'].startswith('<b>prompt')


@pytest.mark.parametrize(
  ('arguments', 'error'),
  [
    ('vote serve nothing.db', 'nothing.db is not there'),
    ('vote serve {sources}/metadata.jsonl', 'is not a study'),
    ('vote new {study} --of a={sources} --of b={sources}', 'exists; a study keeps its votes there'),
    ('vote new new.db --of {sources}', 'wanted NAME=FOLDER'),
    ('vote new new.db --of a={sources} --of b=nowhere', 'there is no folder nowhere'),
    ('vote new new.db --of a={sources}', 'pairs need two contenders'),
    ('vote new new.db --of a={sources} --of b={bare}', 'share no prompt and no file name'),
    ('vote new new.db --of a={bare} --of b={bare} --question text', 'needs a prompt for every image'),
    ('vote new new.db --of a={sources} --of b={sources} --question bright', 'has no text; wanted NAME=TEXT'),
    ('vote new new.db --of a={sources} --kind hype', 'give their folder (--reference)'),
    ('vote power 0.5', 'a win rate of 0.5 cannot be looked for'),
    ('vote results {study} --run {sources}', 'is not the folder of a run'),
  ],
)
def test_a_mistake_is_one_line(arguments, error, made, sources, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  folder_of_images(tmp_path / 'bare', 10, texts=False)
  fields = {'study': made, 'sources': sources['secret-alpha'], 'bare': tmp_path / 'bare'}
  assert main(arguments.format(**fields).split()) == 2
  error_text = capsys.readouterr().err
  assert error in error_text
  assert error_text.count('\n') == 1
  assert not (tmp_path / 'new.db').exists()


def test_a_port_in_use_is_one_line(made, capsys):
  taken = server.listen('127.0.0.1', 0)
  try:
    assert main(['vote', 'serve', str(made), '--port', str(taken.getsockname()[1])]) == 2
  finally:
    taken.close()
  assert 'give another --port or --host' in capsys.readouterr().err


def test_the_power_of_a_study_is_said_beforehand(sources, tmp_path, capsys):
  arguments = [f'--of={name}={folder}' for name, folder in sources.items()]
  assert main(['vote', 'new', str(tmp_path / 'new.db'), *arguments]) == 0
  out = capsys.readouterr().out
  assert '6 pairs; questions: real, text, creative' in out
  assert '60%: 194' in out


def serve_process(made):
  command = [sys.executable, '-m', 'jaxgen.cli.main', 'vote', 'serve', str(made), '--port', '0', '--rater', 'ann']
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=pathlib.Path(__file__).parents[1])
  assert process.stdout is not None
  process.stdout.readline()
  return process, process.stdout.readline().split()[1]


def test_kill_loses_no_vote_that_was_said_to_be_saved(made):
  process, url = serve_process(made)
  saved = 0
  try:
    for _ in range(7):
      trial = json.load(urllib.request.urlopen(f'{url}/next', timeout=60))
      data = json.dumps({'trial': trial['trial'], 'answer': 'tie'}).encode()
      request = urllib.request.Request(f'{url}/vote', data, {'Content-Type': 'application/json'})
      saved += json.load(urllib.request.urlopen(request, timeout=60))['saved']
  finally:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
  with study.connect(made) as db:
    assert db.execute('SELECT COUNT(*) FROM votes').fetchone() == (saved,) == (7,)
    assert db.execute('PRAGMA synchronous').fetchone() == (2,)  # FULL


def browser(width=1200, height=900):
  webdriver = pytest.importorskip('selenium.webdriver')
  if not os.path.exists('/usr/bin/chromium'):
    pytest.skip('no Chromium')
  options = webdriver.ChromeOptions()
  options.binary_location = '/usr/bin/chromium'
  flags = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage')
  for flag in (*flags, f'--window-size={width},{height}'):
    options.add_argument(flag)
  return webdriver.Chrome(options=options, service=webdriver.ChromeService('/usr/bin/chromedriver'))


@pytest.mark.slow
def test_forty_pairs_in_a_browser(tmp_path):
  """By keys and clicks, with a reload in the middle, a vote taken back, and a server that is away for a while."""
  sources = {name: folder_of_images(tmp_path / name, 200 - 100 * i, num=38) for i, name in enumerate(NAMES)}
  made = tmp_path / 'study.db'
  study.create(made, sources, questions={'text': 'Which fits <b>better</b>?'}, checks=0.05)
  process, url = serve_process(made)
  driver = browser()
  whose = (
    "return [...document.querySelectorAll('#images img')].map(image => {"
    "const c = document.createElement('canvas'); c.width = c.height = 16; const x = c.getContext('2d');"
    'x.drawImage(image, 0, 0); return x.getImageData(4, 4, 1, 1).data[0]; })'
  )

  def until(script, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      if found := driver.execute_script(f'return {script}'):
        return found
      time.sleep(0.02)
    raise AssertionError(
      f'{script} did not come; the page says {driver.execute_script("return document.body.innerText")}'
    )

  def ready(before):
    return until(f"(document.getElementById('trial').dataset.ready || '') !== '{before}' && !busy && now.trial")

  try:
    driver.get(url)
    until("!document.getElementById('intro').hidden")
    assert (
      driver.execute_script("return document.querySelector('#intro h1').textContent") == 'Which fits <b>better</b>?'
    )
    driver.find_element('css selector', '#intro button').click()
    trial, count, undone = '', 0, False
    while count < 40:
      trial = ready(trial)
      images = driver.execute_script(whose)
      left = images[0] == 200 if {*images} == {100, 200} else images[0] in (100, 200)
      if count == 10:
        driver.refresh()
        until("!document.getElementById('intro').hidden")
        driver.find_element('css selector', '#intro button').click()
        trial = ready('')
        assert driver.execute_script(whose) == images
      if count % 2:
        driver.find_element('css selector', f'.choice[data-answer={"left" if left else "right"}]').click()
      else:
        driver.find_element('css selector', 'body').send_keys('\ue012' if left else '\ue014')  # arrows
      count += 1
      if count == 20 and not undone:
        ready(trial)
        driver.find_element('id', 'undo').click()
        until(f"!busy && now.trial === '{trial}'")
        trial, count, undone = '', 19, True
    until("!document.getElementById('end').hidden")
    errors = [entry for entry in driver.get_log('browser') if entry['level'] == 'SEVERE']
    assert errors == []
  finally:
    driver.quit()
    process.terminate()
    process.wait(60)
  (pair,) = results.summary(made)['questions']['text']['pairs']
  assert (pair['wins_a'], pair['wins_b'], pair['ties']) == (38, 0, 0)
  (rater,) = results.summary(made)['raters']
  assert rater['checks_right'] == rater['checks'] == 2
