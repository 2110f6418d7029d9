"""``python -m worker.supervisor PLAN``: what ``promptmill-worker start --devices`` becomes."""

import sys

from jobs.console import setup_logging
from worker.notify import Notifier
from worker.supervisor.loop import Supervisor
from worker.supervisor.plan import Plan

if __name__ == "__main__":
    plan = Plan.from_json(sys.argv[1])
    setup_logging(plan)
    sys.exit(Supervisor(plan, Notifier.to_supervisor()).run())
