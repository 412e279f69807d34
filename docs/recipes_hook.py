"""Writes recipes.md while the site is built: one section a config, from the docstrings of configs/."""

import ast
import pathlib
import textwrap

from mkdocs.structure.files import File

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / 'configs'
HEAD = """# Recipes

One file of `configs/` an experiment; `jaxgen train --config NAME` runs it, and `--config.FIELD=VALUE` changes a field.
What a recipe costs and what it gave is in its text; "not run" means that nobody here has run it.

"""


def on_files(files, config):
  sections = [recipe(path) for path in sorted(CONFIGS.glob('*.py'))]
  files.append(File.generated(config, 'recipes.md', content=HEAD + '\n'.join(filter(None, sections))))
  return files


def recipe(path: pathlib.Path) -> str | None:
  """The section of one config; None for a file without `get_config`."""
  tree = ast.parse(path.read_text(encoding='utf-8'))
  if not any(isinstance(node, ast.FunctionDef) and node.name == 'get_config' for node in tree.body):
    return None
  title, _, body = (ast.get_docstring(tree) or '').partition('\n')
  return f'## {path.stem}\n\n{title}\n\n{_markdown(body)}\n'


def _markdown(text: str) -> str:
  """Paragraphs as they are; lines that are indented by two become code."""
  lines = []
  for line in text.split('\n'):
    lines.append(textwrap.indent(line, '  ') if line.startswith('  ') else line)
  return '\n'.join(lines).strip('\n')
