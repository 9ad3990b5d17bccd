"""A loop that keeps one core busy until it is killed: the other program of `cvit bench --busy`."""

import argparse
import signal

from serve import confine, die_with_parent

parser = argparse.ArgumentParser()
parser.add_argument("--cpus", default="")
confine(parser.parse_args().cpus)
signal.signal(signal.SIGINT, signal.SIG_IGN)
die_with_parent()
print("ready", flush=True)
while True:
    pass
