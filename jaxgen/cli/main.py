"""The `jaxgen` program: finds the command, and turns a user's mistake into one line.

No large library is imported here, so that `jaxgen --help` is fast; each command imports what it needs.
"""

import dis
import importlib
import os
import sys
import traceback

_COMMANDS = {
  'train': ('jaxgen.cli.train', 'train a config, or go on with a run'),
  'configs': ('jaxgen.cli.configs', 'list the configs, or show the fields of one'),
  'sample': ('jaxgen.cli.sample', "make images with a run's model"),
  'evaluate': ('jaxgen.cli.evaluate', 'FID and other metrics, of a run or between two folders of images'),
  'export': ('jaxgen.cli.export', "a run's model as a folder for others, with a model card"),
  'project': ('jaxgen.cli.project', 'the latents of an image in a StyleGAN'),
  'mix': ('jaxgen.cli.mix', "the coarse layers of some StyleGAN's images with the fine ones of others"),
  'walk': ('jaxgen.cli.walk', "an animation of a walk through a StyleGAN's latents"),
  'truncate': ('jaxgen.cli.truncate', 'a grid of truncations of a StyleGAN'),
  'data': ('jaxgen.cli.data', 'list and prepare datasets'),
  'weights': ('jaxgen.cli.weights', 'list and get pretrained weights'),
  'bench': ('jaxgen.cli.bench', 'time the train step and print JSON'),
  'plan': ('jaxgen.cli.plan', 'what a config needs on TPUs or GPUs that are not here'),
  'compare': ('jaxgen.cli.compare', 'several runs on one page'),
  'vote': ('jaxgen.cli.vote', 'people compare images in the browser, and what their votes say'),
  'report': ('jaxgen.cli.report', "write a run's report.html again"),
}
_OURS = ('jaxgen', 'configs', 'config_file')  # top-level modules whose raised errors are meant for the user


def main(argv: list[str] | None = None) -> int:
  """Runs one command: the program's own where `argv` is None, which then ends even if threads or the terminal hang.

  Returns:
    0 when done, 2 for a user's mistake, 75 for a run that was preempted and can go on, 130 for Ctrl-C.
  """
  if argv is not None:
    return _code_of(list(argv))
  from jaxgen import signals

  with signals.insisting():
    code = _code_of(sys.argv[1:])
  jax = sys.modules.get('jax')
  if code in signals.EXIT_CODES.values() and not (jax and jax.distributed.is_initialized()):
    signals.leave(code)  # all is saved, and what hung or was interrupted may hang or crash on the usual way out
  signals.end_within(code)
  return code


def _code_of(argv: list[str]) -> int:
  """Runs one command and prints its errors."""
  show_traceback = bool(os.environ.get('JAXGEN_TRACEBACK')) or '--traceback' in argv
  argv = [_without_tilde(arg) for arg in argv if arg != '--traceback']
  try:
    code = _run(argv)
    sys.stdout.flush()
    return code
  except KeyboardInterrupt as interrupt:
    print(f'\njaxgen: interrupted {interrupt}'.rstrip(), file=sys.stderr)
    return 130
  except BrokenPipeError:  # `jaxgen data list | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except Exception as error:
    if show_traceback or not is_message(error):
      traceback.print_exc()
      return 1
    print(f'jaxgen: error: {_one_line(error)}', file=sys.stderr)
    return 2


def _without_tilde(argument: str) -> str:
  """`--workdir=~/run` as the shell gives `--workdir ~/run`: it leaves a ~ behind an equals sign as it is."""
  option, equals, value = argument.partition('=')
  if argument.startswith('-') and equals and value.startswith('~'):
    return f'{option}={os.path.expanduser(value)}'
  return os.path.expanduser(argument) if argument.startswith('~/') else argument


def is_message(error: Exception) -> bool:
  """Whether an error is a message to the user rather than a bug.

  It is when the system refused a file (OSError: missing, no permission, disk full), or when a `raise`
  statement of jaxgen or of a config gave it. The same class of error from inside a library, or from an
  expression, is a bug and keeps its traceback.
  """
  if isinstance(error, OSError):
    return True
  if not isinstance(error, ValueError | ArithmeticError | RuntimeError) or error.__traceback__ is None:
    return False
  innermost = error.__traceback__
  while innermost.tb_next is not None:
    innermost = innermost.tb_next
  frame = innermost.tb_frame
  raised = dis.opname[frame.f_code.co_code[innermost.tb_lasti]] == 'RAISE_VARARGS'
  return raised and frame.f_globals.get('__name__', '').split('.')[0] in _OURS


def _run(argv: list[str]) -> int:
  command = argv[0] if argv else '--help'
  if command in ('-h', '--help', 'help'):
    print(_help())
    return 0
  if command in ('-V', '--version'):
    from jaxgen import __version__

    print(f'jaxgen {__version__}')
    return 0
  if command not in _COMMANDS:
    import difflib

    close = difflib.get_close_matches(command, _COMMANDS, n=1)
    raise ValueError(
      f'unknown command {command!r}; '
      + (f'did you mean {close[0]!r}?' if close else f'the commands are: {", ".join(_COMMANDS)}')
    )
  _set_environment()
  return importlib.import_module(_COMMANDS[command][0]).main(argv[1:])


def _set_environment() -> None:
  """Settings that JAX reads when it is imported; what the user has set stays."""
  from jaxgen import xla_flags
  from jaxgen.home import compilation

  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', compilation())
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
  xla_flags.set_defaults()


def _one_line(error: Exception) -> str:
  if isinstance(error, OSError) and error.strerror:
    where = f': {error.filename}' if error.filename is not None else ''
    return f'{error.strerror}{where}'
  return ' '.join(str(error).split()) or type(error).__name__


def _help() -> str:
  commands = '\n'.join(f'  {name:10}{text}' for name, (_, text) in _COMMANDS.items())
  return f"""jaxgen trains image generators in JAX.

usage: jaxgen COMMAND [options]

{commands}

`jaxgen COMMAND --help` tells more. --version prints the version; --traceback (or JAXGEN_TRACEBACK=1) shows
where an error came from. Downloads, weights and compiled programs are kept in ~/.cache/jaxgen (JAXGEN_HOME).

  jaxgen train --config avatars --config.steps=1000
  jaxgen sample --prompt 'a smiling woman with red hair and glasses' --out grid.png"""


if __name__ == '__main__':
  sys.exit(main())
