"""`jaxgen report`: writes a run's report.html again, e.g. while it trains on another machine."""

import argparse


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='jaxgen report', description="Writes report.html in a run's folder.")
  parser.add_argument('folder', nargs='?', metavar='RUN', help="the run's folder")
  parser.add_argument('--run', help='the same, as other commands have it')
  args = parser.parse_args(argv)
  if (args.folder is None) == (args.run is None):
    parser.error("wanted the run's folder, once: jaxgen report RUN")

  from jaxgen import report

  print(report.write(args.folder or args.run))
  return 0
