"""Shows the indented lines of a module's docstring as code: they are indented by two, and Markdown wants four."""

import re
from typing import Any

import griffe


class CodeBlocks(griffe.Extension):
  def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
    if mod.docstring is not None:
      mod.docstring.value = re.sub(r'^ {2}', '    ', mod.docstring.value, flags=re.MULTILINE)
