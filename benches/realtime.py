"""Measuring on a machine where others work too."""

import os


def add_flag(parser):
    parser.add_argument("--realtime", action="store_true",
                        help="run everything at a real-time priority, for a machine where others work too; needs root")


def obey_flag(parser, options):
    """Puts this process, and with it its children, before everybody else if that was asked for."""
    if not options.realtime:
        return
    try:
        # Round robin, so that ranks that share a core still take turns.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        parser.error("--realtime needs root")
