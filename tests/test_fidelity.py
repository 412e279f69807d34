"""The command against torch-fidelity, end to end from the same two folders of PNGs.

The published file with the logits is in no package: both get the published features with the same random logits, as a
state dict in the format of pt_inception-2015-12-05-6726825d.pth.
"""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxgen.cli.main import main
from jaxgen.data.npz import read_npz
from jaxgen.pretrained import inception, safetensors_file, weights

IMAGES = pathlib.Path(__file__).parents[1] / 'jaxgen' / 'data' / 'datasets' / 'noto_emoji32.npz'
NUM = 100


@pytest.mark.slow
def test_the_command_agrees_with_torch_fidelity(tmp_path, monkeypatch, capsys):
  torch = pytest.importorskip('torch')
  named = torch.library.Library('torchvision', 'FRAGMENT')  # its own operators need not fit a CPU build of torch
  for name in ('nms', 'qnms'):
    named.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  pytest.importorskip('torchvision')
  fidelity = pytest.importorskip('torch_fidelity')
  weights.get('inception')
  tensors = safetensors_file.read(inception.default_path())
  rng = np.random.default_rng(0)
  tensors |= {'fc.weight': rng.normal(0, 0.05, (1008, 2048)).astype(np.float32), 'fc.bias': np.zeros(1008, np.float32)}
  scale = {
    name.replace('conv.weight', 'bn.weight'): np.ones(len(tensor), np.float32)
    for name, tensor in tensors.items()
    if name.endswith('.conv.weight')
  }
  file = tmp_path / 'pt_inception-2015-12-05-6726825d.pth'
  torch.save({name: torch.tensor(tensor) for name, tensor in (tensors | scale).items()}, file)
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  assert main(['weights', 'get', 'inception', '--from', str(file)]) == 0
  images = read_npz(IMAGES).images
  for folder, numbers in (('a', range(NUM)), ('b', range(NUM // 2, 2 * NUM))):
    (tmp_path / folder).mkdir()
    for number in numbers:
      Image.fromarray(images[number]).save(tmp_path / folder / f'{number:04d}.png')
  folders = [str(tmp_path / name) for name in 'ab']
  capsys.readouterr()
  names = 'fid,kid,inception_score,precision_recall'
  assert main(['evaluate', '--images', folders[0], '--reference', folders[1], '--metrics', names]) == 0
  got = json.loads(capsys.readouterr().out)
  wanted = fidelity.calculate_metrics(
    input1=folders[0],
    input2=folders[1],
    isc=True,
    fid=True,
    kid=True,
    prc=True,
    kid_subset_size=got['protocol']['kid_subset_size'],
    feature_extractor='inception-v3-compat',  # for precision and recall, too, which are VGG's by default
    save_cpu_ram=True,
    cuda=False,
    verbose=False,
    cache=False,
    batch_size=16,
    feature_extractor_weights_path=str(file),
  )
  pairs = {
    f'fid_{NUM}': 'frechet_inception_distance',
    'kid': 'kernel_inception_distance_mean',
    'kid_deviation': 'kernel_inception_distance_std',
    'inception_score': 'inception_score_mean',
    'inception_score_deviation': 'inception_score_std',
    'precision': 'precision',
    'recall': 'recall',
  }
  differences = {mine: abs(got[mine] - wanted[its]) / abs(wanted[its]) for mine, its in pairs.items()}
  print({mine: (got[mine], wanted[its]) for mine, its in pairs.items()}, differences)
  assert 0 < wanted['precision'] < 1
  for name, difference in differences.items():
    assert difference < (1e-4 if name.startswith(('fid', 'kid')) else 1e-3), name
