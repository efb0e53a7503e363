"""What the Python sides of the benchmarks have in common: a line of JSON at a time, and the most memory that was held."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path


def say(**line):
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    print(json.dumps(finite), flush=True)


def peak_bytes():
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def device_bytes():
    """What this process holds on NVIDIA cards, by the driver; None where that cannot be asked."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"]
    try:
        rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        own = [int(used) for pid, used in (row.split(",") for row in rows) if int(pid) == os.getpid()]
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return sum(own) * 2**20 if own else None
