"""What the Python sides of the benchmarks have in common: a line of JSON at a time, and the most memory that was held."""

import json
import math
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
