"""`jaxgen compare`: one page of several runs, which loads nothing and says what does not compare."""

import html.parser
import re

import numpy as np
import pytest

from jaxgen import writer
from jaxgen.cli.main import main


def run(folder, *, width, fid, seed=0):
  with writer.Writer(folder) as out:
    out.config({'name': folder.name, 'config': {'steps': 40, 'model': {'width': width}, 'note': '</script><b>'}})
    out.protocol('fid_2k', {'samples': 2000, 'seed': seed, 'network_hash': 'abc'})
    for step in range(10, 50, 10):
      out.scalars(step, {'loss': width / step, 'fid_2k': fid / step})
    out.scalars(40, {'attributes_seen': 0.5, 'attributes_seen/hair': width / 64})
    out.scalars(50, {'loss': float('nan')})
    out.images(40, 'samples', np.full((4, 8, 8, 3), width, np.uint8))
  return folder


@pytest.fixture
def page(tmp_path):
  runs = [run(tmp_path / 'narrow', width=8, fid=300.0), run(tmp_path / 'wide<r>', width=16, fid=200.0, seed=1)]
  assert main(['compare', *map(str, runs), '--out', str(tmp_path / 'out' / 'page.html')]) == 0
  return (tmp_path / 'out' / 'page.html').read_text(encoding='utf-8')


def test_the_page_has_curves_numbers_samples_and_differences(page):
  assert page.count('<polyline') == 6  # three metrics of two runs; parts are a table
  assert '<th scope="row">hair</th><td>0.125</td><td>0.25</td>' in page
  assert page.count('src="data:image/png;base64,') == 2
  assert re.search(r'<th>fid_2k</th><td>7\.5</td><td>5</td><td class="note">protocols differ in seed</td>', page)
  assert re.search(r'<th>model\.width</th><td>8</td><td>16</td>', page)
  assert '<th>steps</th>' not in page
  assert '<b>' not in page
  assert 'wide&lt;r&gt;' in page


def test_the_page_loads_nothing_and_is_whole(page):
  assert not re.search(r'https?://|<script|@import|url\(', page)

  class Balanced(html.parser.HTMLParser):
    open_tags: tuple = ()

    def handle_starttag(self, tag, attributes):
      if tag not in ('meta', 'img', 'line', 'circle', 'polyline'):
        self.open_tags = (*self.open_tags, tag)

    def handle_endtag(self, tag):
      if self.open_tags and self.open_tags[-1] == tag:
        self.open_tags = self.open_tags[:-1]

  parser = Balanced()
  parser.feed(page)
  assert parser.open_tags == ()


def test_what_is_no_run_is_refused(tmp_path, capsys):
  (tmp_path / 'empty').mkdir()
  assert main(['compare', str(tmp_path / 'empty'), str(tmp_path / 'empty')]) == 2
  assert 'is not the folder of a run' in capsys.readouterr().err
  assert main(['compare', str(tmp_path / 'empty')]) == 2
  assert 'a page compares 2 to 6 runs, and got 1' in capsys.readouterr().err
