#!/usr/bin/env python3
"""Three hosts on one machine: network namespaces with links of limited rate, and Open MPI across them. Needs root.

    benches/three_hosts.py run -- hostname
    benches/three_hosts.py --slots 3+2+1 run -- target/release/esync-bench --collective ring
    benches/three_hosts.py --rate 200mbit --slow 2:50mbit compare
    benches/three_hosts.py --slots 2+2+2,3+2+1 compare --order fastest --output hosts.json

`run` runs a command on all ranks and prints what crossed each host's link. `compare` runs every collective of esync-bench at
several lengths, interleaved, and prints time and bytes of each, and who wins; `auto` reads what `esync probe` has measured
there just before. Links, hosts and processes are removed in the
end, also after ^C. The exit code is 3 where namespaces are not allowed, and 1 if something failed or an element was wrong.
"""

import argparse
import pathlib
import signal
import subprocess
import sys

import realtime
from hosts.compare import compare
from hosts.launch import Failed, environment, mpirun
from hosts.network import Hosts, NotPossible

ROOT = pathlib.Path(__file__).resolve().parent.parent


def parse_slots(text):
    slots = [int(word) for word in text.split("+")]
    if not any(slots) or min(slots) < 0:
        raise argparse.ArgumentTypeError(f"`{text}`: write ranks of each host, such as 3+2+1")
    return slots


def rates_of(options, count):
    """The links' rates, one for each host."""
    rates = [options.rate] * count
    for word in filter(None, (options.slow or "").split(",")):
        number, _, rate = word.partition(":")
        if not number.isdigit() or int(number) >= count or not rate:
            raise SystemExit(f"--slow {word}: write HOST:RATE, such as 2:100mbit; hosts are 0 to {count - 1}")
        rates[int(number)] = rate
    return rates


def run(options):
    slots = options.slots[0]
    with Hosts(rates_of(options, len(slots))) as hosts:
        before = hosts.traffic()
        process = subprocess.Popen(mpirun(hosts, slots, options.command), env=environment())
        code = process.wait()
        for host, old, new in zip(hosts.hosts, before, hosts.traffic()):
            print(f"# {host.name} ({host.rate}): sent {new.sent - old.sent} bytes, received {new.received - old.received}",
                  file=sys.stderr)
    return code


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=lambda text: [parse_slots(word) for word in text.split(",")],
                        default=[[2, 2, 2]], help="ranks of each host (2+2+2); compare takes several, separated by commas")
    parser.add_argument("--rate", default="200mbit", help="of every host's link, each direction, in tc's words (%(default)s)")
    parser.add_argument("--slow", help="other rates of some links, such as 2:100mbit")
    realtime.add_flag(parser)
    modes = parser.add_subparsers(dest="mode", required=True)
    mode = modes.add_parser("run", help="run a command")
    mode.add_argument("command", nargs=argparse.REMAINDER)
    mode = modes.add_parser("compare", help="compare esync's collectives")
    mode.add_argument("--sizes", default="64K,256K,1M,4M,16M", help="bytes of a vector (%(default)s)")
    mode.add_argument("--rounds", type=int, default=3, help="interleaved rounds (%(default)s)")
    mode.add_argument("--seconds", type=float, default=0.6, help="of timed calls in each process (%(default)s)")
    mode.add_argument("--collectives", help="names, separated by commas (all that the program has)")
    mode.add_argument("--order", default="fastest", help="of summation: what does not accept it is left out (%(default)s)")
    mode.add_argument("--probe", default="30s", metavar="TIME",
                      help="how long `esync probe` may measure the hosts for `auto` (%(default)s); 0 for not at all")
    mode.add_argument("--esync", default=str(ROOT / "target/release/esync-bench"), help="the program")
    mode.add_argument("--output", type=pathlib.Path, help="write everything that was measured to this file, as JSON")
    options = parser.parse_args()
    realtime.obey_flag(parser, options)
    # As ^C, so that everything is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.mode == "compare":
            return compare(options, rates_of)
        options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
        if not options.command:
            parser.error("run: no command; write it behind `--`")
        return run(options)
    except NotPossible as why:
        print(f"three_hosts: {why}", file=sys.stderr)
        return 3
    except Failed as why:
        print(f"three_hosts: {why}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
