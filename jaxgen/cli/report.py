"""`jaxgen report`: writes a run's report.html again, e.g. while it trains on another machine."""

import argparse


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='jaxgen report', description="Writes report.html in a run's folder.")
  parser.add_argument('--run', required=True, help="the run's folder")
  args = parser.parse_args(argv)

  from jaxgen import report

  print(report.write(args.run))
  return 0
