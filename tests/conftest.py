from hypothesis import settings

# The first call into torch takes seconds; nothing here is a timed test.
settings.register_profile("pml_gca", deadline=None)
settings.load_profile("pml_gca")
