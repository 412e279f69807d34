"""Mutated files for every parser (fuzz_parsers.py): clean errors alone, each in bounded time and memory."""

import json
import pathlib
import subprocess
import sys
import zipfile

import pytest

from jaxgen.data.listing import list_images
from tests.fuzz_parsers import PARSERS

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _run(parsers, count, seed, tmp_path):
  command = [sys.executable, '-m', 'tests.fuzz_parsers', parsers, str(count), str(seed), '--keep', str(tmp_path)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_few_mutated_files_of_every_kind(tmp_path):
  tallies = _run('all', 25, 1, tmp_path)
  assert [tally['parser'] for tally in tallies] == list(PARSERS)
  assert all(tally['read'] + tally['refused'] == 25 and tally['refused'] > 3 for tally in tallies)


@pytest.mark.slow
@pytest.mark.parametrize('parser', PARSERS)
def test_ten_thousand_mutated_files(parser, tmp_path):
  (tally,) = _run(parser, 10_000, 0, tmp_path)
  assert tally['read'] + tally['refused'] == 10_000


def test_a_zip_with_a_member_without_a_name(tmp_path):
  path = tmp_path / 'a.zip'
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('x', b'')
  path.write_bytes(path.read_bytes().replace(b'x', b'\0'))  # a name ends at its first 0
  with pytest.raises(FileNotFoundError):  # it has no images
    list_images(path)


def test_a_name_with_a_line_break_is_said_in_one_line(tmp_path):
  (tmp_path / 'a.png').touch()
  (tmp_path / 'metadata.csv').write_text('file_name,text\n"a\nb.png",caption\n')
  with pytest.raises(ValueError, match=r"names 1 files that do not exist, such as 'a\\nb.png'$"):
    list_images(tmp_path)
