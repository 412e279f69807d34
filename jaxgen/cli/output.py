"""Output folders of commands: earlier output is replaced; a folder with other images is refused."""

import json
import pathlib
import re
import shutil

_METADATA = 'metadata.jsonl'
_CARD = '---\nlibrary_name: jaxgen\n'  # how README.md of an export begins
_EXPORTED = (
  'README.md',
  'samples.png',
  'config.json',
  'data.json',
  'model_index.json',
  'scheduler_config.json',
  'sampler.stablehlo',
)
_SAMPLE = re.compile(r'\d{6,}\.png')


def check_samples_folder(folder: pathlib.Path) -> None:
  """Refuses a folder for samples that holds other images, which would later be measured with them.

  Raises:
    ValueError: it has an image that an earlier `jaxgen sample` did not write.
  """
  others = sorted(_images(folder) - _written(folder))
  if others:
    raise ValueError(
      f'{folder} holds images that are no samples of jaxgen, such as {others[0]} ({len(others)} in all); give another '
      '--out, or delete them'
    )


def clear_samples(folder: pathlib.Path) -> None:
  """Makes the folder, and deletes the samples of an earlier call."""
  check_samples_folder(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name in _written(folder) & _images(folder):
    (folder / name).unlink()
  (folder / _METADATA).unlink(missing_ok=True)


def check_export_folder(folder: pathlib.Path) -> None:
  """Refuses a folder for an export that holds files that no earlier `jaxgen export` wrote.

  Raises:
    ValueError: it has such a file.
  """
  if not folder.exists() or not any(folder.iterdir()):
    return
  card = folder / 'README.md'
  ours = card.is_file() and card.read_text(encoding='utf-8', errors='replace').startswith(_CARD)
  others = [] if ours else sorted(path.name for path in folder.iterdir())
  others = others or sorted(path.name for path in folder.iterdir() if not _is_exported(path))
  if others:
    raise ValueError(f'{folder} holds files that are no export of jaxgen, such as {others[0]}; give another --out')


def clear_export(folder: pathlib.Path) -> None:
  """Deletes the files of an earlier `jaxgen export`, which would be taken for a part of the new one."""
  check_export_folder(folder)
  for path in folder.iterdir() if folder.exists() else ():
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink()


def _is_exported(path: pathlib.Path) -> bool:
  if path.is_dir():
    return all(_is_exported(inner) and inner.is_file() for inner in path.iterdir())
  return path.suffix == '.safetensors' or path.name in _EXPORTED


def clear_matching(folder: pathlib.Path, pattern: str) -> None:
  """Makes the folder, and deletes the files whose names match, which an earlier call wrote."""
  folder.mkdir(parents=True, exist_ok=True)
  for path in folder.iterdir():
    if re.fullmatch(pattern, path.name):
      path.unlink()


def _images(folder: pathlib.Path) -> set[str]:
  """Names of the images anywhere in a folder."""
  if not folder.is_dir():
    return set()
  from jaxgen.data.listing import image_names, open_tree

  try:
    return set(image_names(open_tree(folder))[0])
  except FileNotFoundError:
    return set()


def _written(folder: pathlib.Path) -> set[str]:
  """Names of the images that the folder's metadata.jsonl says an earlier call wrote."""
  path = folder / _METADATA
  names = set()
  try:
    for line in path.read_text(encoding='utf-8').splitlines():
      names.add(str(json.loads(line)['file_name']))
  except (OSError, ValueError, KeyError, TypeError):
    return set()
  return {name for name in names if _SAMPLE.fullmatch(name)}
