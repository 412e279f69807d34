"""report.html: one page that holds everything and loads nothing."""

import base64
import html.parser
import json
import math
import pathlib
import re

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jaxgen import report, writer

STEPS = range(10, 2010, 10)


@pytest.fixture
def run(tmp_path):
  with writer.Writer(tmp_path) as out:
    out.config({'name': 'my <run>', 'config': {'steps': 4000, 'model': {'width': 8}, 'note': '</script><b>'}})
    out.protocol('fid_2k', {'samples': 2000, 'weights': 'sha256:abc'})
    out.text('net/kernel  (3, 8)\nTotal: 24', name='parameters')
    for step in STEPS:
      out.scalars(step, {'loss': 1000 / step, 'skipped': 0.0, 'bad_steps': 0.0, 'images_per_second': 100.0})
    out.scalars(2010, {'loss': math.nan})
    for step, value in ((1000, 300.0), (2000, 120.0)):
      out.scalars(step, {'fid_2k': value, 'fid/seconds': 61.0})
      out.images(step, 'samples', np.full((4, 8, 8, 3), step // 10, np.uint8))
    out.progress(2000, 4000, {'loss': 0.5})
  return tmp_path


class Page(html.parser.HTMLParser):
  """The page's elements, its text, and the JSON it carries."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.text = [], [], ''
    self.feed(text)
    self.close()
    self.data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes

  def handle_data(self, data):
    if self.tags[-1:] not in (['script'], ['style']):
      self.text += data + ' '


@pytest.fixture
def page(run):
  return Page(report.write(run).read_text(encoding='utf-8'))


def test_it_loads_nothing(run, page):
  text = (run / 'report.html').read_text(encoding='utf-8')
  assert 'http://' not in text
  assert 'https://' not in text
  assert not re.search(r'@import|url\(|fetch\(|XMLHttpRequest|import\(', text)
  assert not {'link', 'iframe', 'object', 'embed'} & set(page.tags)
  loads = [value for name, value in page.attributes if name in ('src', 'href', 'srcset')]
  assert loads == []
  # The browser itself refuses what slips through.
  assert any(name == 'content' and value.startswith("default-src 'none'") for name, value in page.attributes)


def test_it_holds_every_series_at_its_place(page):
  assert page.data['quality'] == {'fid_2k': [[1000, 300.0], [2000, 120.0]]}
  assert list(page.data['curves']) == [
    'loss',
    'images_per_second',
  ]  # counts of nothing and evaluation times are left out
  loss = page.data['curves']['loss']
  assert [step for step, _ in loss] == [*STEPS, 2010]
  assert loss[0] == [10, 100.0]
  assert loss[-1] == [2010, None]


def test_it_holds_the_grids_in_order_of_steps(run, page):
  frames = page.data['samples']['samples']
  assert [frame['step'] for frame in frames] == [1000, 2000]
  assert all(frame['url'].startswith('data:image/png;base64,') for frame in frames)
  last = base64.b64decode(frames[-1]['url'].partition(',')[2])
  assert last == (run / 'samples' / 'samples_00002000.png').read_bytes()


def test_it_tells_state_quality_and_config(page):
  text = ' '.join(page.text.split())
  assert 'step 2,010 of 4,000' in text
  assert '-60% from 300' in text
  assert 'evaluations 2:02 in all' in text
  assert 'model. width 8' in text
  for part in ('sha256:abc', 'net/kernel', 'jax'):
    assert part in text


def test_it_tells_the_time_of_training_the_command_and_the_commit(run):
  with writer.Writer(run, resume_step=2010) as out:
    out.scalars(2020, {'step_seconds': 0.5})
    out.scalars(2040, {'step_seconds': 2.0})
  assert report._training_seconds([(2020, 0.5), (2040, 2.0), (2050, None)]) == 2020 * 0.5 + 20 * 2.0
  text = ' '.join(Page(report.write(run).read_text(encoding='utf-8')).text.split())
  assert 'run time 17:30 of training' in text
  assert 'command' in text
  assert 'commit' in text


def test_what_a_config_says_is_text_and_never_markup(run, page):
  source = (run / 'report.html').read_text(encoding='utf-8')
  assert '<title>my &lt;run&gt;' in source
  assert '</script><b>' not in source
  assert page.tags.count('script') == 2


def test_a_metrics_name_cannot_end_the_script(run):
  with writer.Writer(run, resume_step=2010) as out:
    out.scalars(2020, {'a</script><img>': 1.0})
  page = Page(report.write(run).read_text(encoding='utf-8'))
  assert page.data['curves']['a</script><img>'] == [[2020, 1.0]]
  assert page.tags.count('script') == 2


def test_a_count_that_happened_is_shown(run):
  with writer.Writer(run, resume_step=2010) as out:
    out.scalars(2020, {'skipped': 0.5})
  assert 'skipped' in Page(report.write(run).read_text(encoding='utf-8')).data['curves']


def test_parts_of_a_metric_are_folded_and_real_images_stand_beside_samples(run):
  seen = {'attributes_seen': 0.5, 'attributes_seen/hat': 0.4, 'attributes_seen/seconds': 3}
  with (run / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps({'step': 2040, 'attributes_seen_chance': 0.2} | seen) + '\n')
  before = report.write(run).read_text(encoding='utf-8')
  data = Page(before).data
  assert data['quality']['attributes_seen'] == [[2040, 0.5]]
  assert data['details'] == {'attributes_seen/hat': [[2040, 0.4]], 'attributes_seen_chance': [[2040, 0.2]]}
  assert not any('attributes' in name for name in data['curves'])
  (run / 'data.png').write_bytes(b'real')
  assert report.data_url(epath.Path(run / 'data.png')) in report.write(run).read_text(encoding='utf-8')
  assert 'training data' not in before


def test_parts_of_metrics_are_a_table_with_the_last_value_of_each(run):
  records = [
    {'step': 2040, 'attributes_seen': 0.5, 'attributes_seen/hat<': 0.4, 'attributes_seen/hair': None},
    {'step': 2080, 'attributes_seen': 0.75, 'attributes_seen/hat<': 0.625, 'attributes_seen/seconds': 3},
    {'step': 2080, 'attributes_test': 0.25, 'attributes_test/eyes': 0.125, 'held_out/loss_t0.10': 1.0},
  ]
  with (run / 'metrics.jsonl').open('a') as file:
    file.write(''.join(json.dumps(record) + '\n' for record in records))
  text = report.write(run).read_text(encoding='utf-8')
  table = text.partition('<h2>By part</h2>')[2].partition('</section>')[0]
  rows = [re.findall(r'>([^<]*)</t[hd]>', row) for row in table.split('<tr>')[1:]]
  assert rows == [
    ['', 'attributes_seen', 'attributes_test'],
    ['all', '0.75', '0.25'],
    ['hat&lt;', '0.625', ''],
    ['eyes', '', '0.125'],
  ]


def test_long_series_are_thinned_and_keep_their_mean_and_end():
  points = [(step, float(step)) for step in range(1, 100_001)]
  thin = report.thinned(points)
  assert len(thin) <= 600
  assert thin[-1][0] == 100_000
  assert np.mean([value for _, value in thin]) == pytest.approx(50_000, rel=0.01)


def test_many_grids_become_few_with_the_first_and_the_last(run):
  for step in range(3000, 13_000, 100):
    (run / 'samples' / f'samples_{step:08d}.png').write_bytes(b'png')
  frames = report._samples(epath.Path(run) / 'samples')['samples']
  assert len(frames) == 24
  assert (frames[0]['step'], frames[-1]['step']) == (1000, 12_900)


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
  writer.Writer(tmp_path).close()
  assert report.write(tmp_path).exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='is not the folder of a run'):
    report.write(tmp_path)


def test_evaluations_are_a_section_with_their_protocol_and_copies(run):
  folder = run / 'evaluation' / 'samples'
  folder.mkdir(parents=True)
  found = {'fid_2k': 12.345678, 'recall': 0.5, 'dialects': {'adm': {'fid_2k': 12.5}}}
  (folder / 'result.json').write_text(json.dumps(found | {'protocol': {'samples': 2000, 'step': 7, 'seed': '<b>0'}}))
  Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / 'memorisation.png')
  other = run / 'evaluation' / 'scale=2'
  other.mkdir()
  (other / 'result.json').write_text(json.dumps({'fid_2k': 1.0, 'protocol': {'settings': {'scale': '2'}}}))
  text = pathlib.Path(report.write(run)).read_text()
  assert text.count('Evaluation of') == 1 and 'Evaluation of 2,000 samples of step 7' in text
  assert '12.346' in text and 'as adm would report' in text and '&lt;b&gt;0' in text
  assert 'alt="samples and their nearest training images"' in text
