"""What all tests share."""

import hypothesis

# A busy machine is no bug: no test is judged by its time.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
