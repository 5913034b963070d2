"""Stands in for `srun`: starts the tasks of a step on this machine, with the variables that Slurm sets for them.

Signals are passed on to the tasks, and the exit code is the highest of theirs, as Slurm has it.
"""

import os
import signal
import subprocess
import sys

command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
count = int(os.environ["SLURM_NTASKS"])
tasks = []
signal.signal(signal.SIGTERM, lambda number, _frame: [task.send_signal(number) for task in tasks])
for index in range(count):
    own = {
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
    }
    tasks.append(subprocess.Popen(command, env=os.environ | own))
sys.exit(max(task.wait() if task.wait() >= 0 else 128 - task.wait() for task in tasks))
