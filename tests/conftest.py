import os

from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of several processes, and for what they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The first call into torch takes seconds; nothing here is a timed test. The same examples everywhere, every time.
settings.register_profile("pml_gca", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pml_gca")
