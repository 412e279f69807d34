"""Adapters in `jaxgen sample`: --lora, --embedding, --control and --image-prompt.

For --weights all of them are files; a run has its own control branches, and reads what --control gives it.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxgen.cli import edit, lora
from jaxgen.cli.numbers import finite

if TYPE_CHECKING:
  import numpy as np


_TOGETHER = '--image-prompt, --ip-adapter and --image-encoder go together'


def add_options(parser: argparse.ArgumentParser) -> None:
  """The options of control, image prompts and new tokens; --lora is in cli/lora.py."""
  group = parser.add_argument_group('adapters')
  group.add_argument(
    '--embedding', metavar='FILE[=TOKEN]', action='append', default=[], help='a new word of textual inversion'
  )
  group.add_argument(
    '--control',
    metavar='[KIND=]IMAGE',
    action='append',
    default=[],
    help='picture that a control branch reads, or an image that one is made from: canny=IMAGE, hed=IMAGE (soft '
    'edges), depth=IMAGE (gray, 8 or 16 bits), pose=FILE.json (keypoints of OpenPose or COCO, in pixels of the '
    'result); may be repeated',
  )
  group.add_argument(
    '--controlnet',
    metavar='FOLDER',
    action='append',
    default=[],
    help='with --weights: control branch of each --control',
  )
  group.add_argument(
    '--control-scale', metavar='S', action='append', type=finite, default=[], help='scale of each control (1)'
  )
  group.add_argument('--guess', action='store_true', help='guess mode: controls act without a prompt')
  group.add_argument(
    '--image-prompt',
    metavar='IMAGE',
    action='append',
    type=pathlib.Path,
    help='picture to resemble; DALL-E 2 makes variations of it, or, given twice, images between the two',
  )
  group.add_argument('--ip-adapter', metavar='FILE', help='with --weights: the IP-Adapter of --image-prompt')
  group.add_argument('--image-encoder', metavar='FOLDER', help='CLIP vision tower that encodes the picture')
  group.add_argument(
    '--image-prompt-scale', metavar='S', type=finite, default=1.0, help='scale of the image prompt (1)'
  )


def check(args: argparse.Namespace) -> None:
  """Raises ValueError where options do not go together."""
  if args.weights is None:
    for name in ('embedding', 'controlnet', 'ip_adapter', 'image_encoder', 'image_prompt'):
      if getattr(args, name):
        raise ValueError(f'--{name.replace("_", "-")} is for --weights; a run has what it was trained with')
  elif len(args.controlnet) != len(args.control):
    raise ValueError(
      f'--control is given {len(args.control)} times and --controlnet {len(args.controlnet)} times; each picture of '
      '--control goes to one branch'
    )
  if len(args.control_scale) not in (0, 1, len(args.control)) or (args.control_scale and not args.control):
    raise ValueError(
      f'--control-scale is given {len(args.control_scale)} times for {len(args.control)} of --control; give it once, '
      'or for each'
    )
  if not args.image_prompt and (args.ip_adapter or args.image_encoder):
    raise ValueError(_TOGETHER)
  if len(args.image_prompt or ()) > 2:
    raise ValueError(f'--image-prompt is given {len(args.image_prompt)} times; give one picture, or two to go between')
  lora.check(args.lora)


class Extended(NamedTuple):
  """A published generator with the adapters of the options.

  Attributes:
    pipeline: the generator.
    extend: extends its conditioner.
    fields: fields of the batch, the same for all images.
  """

  pipeline: Any
  extend: Callable[[Any], Any]
  fields: dict[str, Any]


def extended(args: argparse.Namespace, pipeline: Any) -> Extended:
  """The generator with the files of the options."""
  import numpy as np

  from jaxgen.adapters import controlnet, published, textual_inversion
  from jaxgen.objectives import controlled
  from jaxgen.pretrained import networks
  from jaxgen.pretrained.pipeline import UNCLIP
  from jaxgen.pretrained.text_to_image import image_size

  if args.image_prompt and pipeline.kind in UNCLIP:
    return _of_pictures(args, pipeline)
  for text in args.lora:
    file, weight = lora.parsed(text)
    pipeline = published.with_lora(pipeline, lora.place(file), weight=weight)
  for text in args.embedding:
    file, _, token = text.partition('=')
    found = textual_inversion.read(pathlib.Path(file).expanduser(), token=token or None)
    pipeline = published.with_embedding(pipeline, found, source=file)
  extensions, fields = [], {}
  if args.image_prompt:
    if len(args.image_prompt) > 1 or not (args.ip_adapter and args.image_encoder):
      raise ValueError(f'{_TOGETHER} with a {pipeline.kind}, once each')
    height, width = image_size(pipeline)
    images = edit.read_images(args.image_prompt[0], (min(height, width),) * 2 + (3,), None)
    file, encoder = pathlib.Path(args.ip_adapter).expanduser(), networks.lazily(args.image_encoder)
    pipeline, tokens, nothing = published.with_image_prompt(pipeline, file, encoder, images)
    scale = np.full(len(tokens), args.image_prompt_scale, np.float32)
    fields = {controlled.IMAGE_PROMPT: tokens, controlled.IMAGE_PROMPT_SCALE: scale}
    extensions.append(lambda conditioner: controlled.prompted(conditioner, nothing))
  if args.control:
    branches = [controlnet.load(folder) for folder in args.controlnet]
    pipeline = published.with_controls(pipeline, branches)
    names = [published.field_of(i) for i in range(len(branches))]
    extensions.append(lambda conditioner: controlled.controlled(conditioner, *names, guess=args.guess))

  def extend(conditioner: Any) -> Any:
    for extension in extensions:
      conditioner = extension(conditioner)
    return conditioner

  return Extended(pipeline, extend, fields)


def _of_pictures(args: argparse.Namespace, pipeline: Any) -> Extended:
  """DALL-E 2 without its prior, for the pictures' own embeddings or those on the way from one to another's."""
  import jax.numpy as jnp
  import numpy as np

  from jaxgen.generation import cascade
  from jaxgen.objectives.embedded import EMBEDDING
  from jaxgen.pretrained import networks, unclip

  encoder = pipeline.components.get('image_encoder')
  if args.image_encoder:
    encoder = networks.lazily(args.image_encoder)
  if encoder is None:
    raise ValueError(f'{args.weights} has no image_encoder, which sees the picture; give --image-encoder FOLDER')
  given = [name for name in ('prompt', 'lora', 'embedding', 'control', 'ip_adapter') if getattr(args, name)]
  if given:
    raise ValueError(f'--{given[0].replace("_", "-")} has no effect with --image-prompt: the picture takes its place')
  side = (unclip.sides(pipeline)[1],) * 2
  rows = [unclip.embeddings(encoder, pipeline, edit.read_images(file, (*side, 3), None)) for file in args.image_prompt]
  if len(rows) == 2:
    a, b = (jnp.asarray(row[0]) for row in rows)
    rows = [np.asarray(cascade.between(a, b, jnp.linspace(0, 1, args.num)))]
  components = {name: it for name, it in pipeline.components.items() if name != 'prior'}
  return Extended(pipeline._replace(components=components), lambda conditioner: conditioner, {EMBEDDING: rows[0]})


def control_fields(args: argparse.Namespace, trained: Any) -> dict[str, np.ndarray]:
  """The fields of a batch that the options give.

  Raises:
    ValueError: a control is given to a model that reads none, or is missing for one that reads it.
  """
  import numpy as np

  from jaxgen.data.controls import FIELD
  from jaxgen.sample import parts_of

  fields = trained.stage.objective.conditioner.fields
  names = [name for name in fields if f'{name}_scale' in fields and name.startswith(FIELD)]
  if len(names) != len(args.control):
    raise ValueError(
      f'--control is given {len(args.control)} times; this model reads {len(names)} control pictures'
      + ('' if names else ': train one (--config controlnet), or give --weights and --controlnet')
    )
  given: dict[str, np.ndarray] = {}
  scales = args.control_scale or [1.0]
  for i, (name, text) in enumerate(zip(names, args.control, strict=True)):
    shape = edit.image_shape(parts_of(trained.stage), trained.frozen)
    given[name] = pictures(text, shape, args.num)
    scale = np.float32(scales[i if len(scales) > 1 else 0])
    given[f'{name}_scale'] = np.tile(scale * _guess(trained) if args.guess else scale, (len(given[name]), 1))
    if not args.guess:
      given[f'{name}_scale'] = given[f'{name}_scale'][:, 0]
  return given


def pictures(text: str, shape: tuple[int, ...], num: int) -> np.ndarray:
  """The controls of [KIND=]IMAGE, a file or a folder, in [0, 1]."""
  import numpy as np

  from jaxgen.data import pose
  from jaxgen.data.controls import MAKERS
  from jaxgen.data.image import center_crop

  kind, equals, file = text.partition('=')
  if not equals:
    kind, file = 'picture', text
  if kind not in (*MAKERS, 'hed', 'depth', 'pose'):
    kinds = ', '.join((*MAKERS, 'hed', 'depth', 'pose'))
    raise ValueError(f'--control {text}: there is no kind {kind!r}; wanted one of {kinds}, or a file alone')
  place, (height, width) = pathlib.Path(file).expanduser(), shape[:2]
  if kind == 'pose':
    return np.repeat(pose.pose(pose.keypoints(place), height=height, width=width)[None], num, axis=0)
  if kind == 'depth':
    from PIL import Image

    values = pose.read_depth(place)
    made = np.uint8(255 * pose.depth(values, of_distance=bool(values.max() > 255)))
    cropped = np.asarray(center_crop(Image.fromarray(made), (height, width)), np.float32) / 255
    return np.repeat(cropped[None], num, axis=0)
  if kind == 'hed':
    from jaxgen.pretrained import hed

    make = hed.load()
  else:
    make = MAKERS[kind]
  return np.stack([make(image) for image in edit.read_images(place, (height, width, 3), num)])


def _guess(trained: Any) -> np.ndarray:
  """Factors of the residuals in guess mode."""
  import numpy as np

  from jaxgen.models.controlnet import Controlled
  from jaxgen.models.unet import encoder

  net = trained.stage.objective.networks['net']
  if not isinstance(net, Controlled):
    raise ValueError('--guess is for control branches of U-Nets')
  return np.logspace(-1, 0, len(encoder(net.net)) + 2, dtype=np.float32)
