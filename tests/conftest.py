from hypothesis import HealthCheck, settings

# The first call into torch takes seconds; nothing here is a timed test. The same examples everywhere, every time.
settings.register_profile("pml_gca", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pml_gca")
