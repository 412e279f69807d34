"""The README's example runs as it is written."""

import pathlib
import re

import jax

README = pathlib.Path(__file__).resolve().parents[1] / 'README.md'


def test_the_library_example_runs(tmp_path, monkeypatch):
  code = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
  assert len(code) == 1
  monkeypatch.chdir(tmp_path)
  names: dict = {}
  exec(compile(code[0], 'README.md', 'exec'), names)
  images = jax.device_get(names['images'])
  assert images.shape == (4, 32, 32, 3)
  assert abs(images).max() <= 1
  assert images.std() > 0.01
  assert (tmp_path / 'runs' / 'mine' / 'report.html').exists()
