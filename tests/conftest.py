"""Models of this size are computed fastest by one thread, and several suites may share a machine."""

import os

# Read once, when torch is loaded, which no plugin does before this file is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
