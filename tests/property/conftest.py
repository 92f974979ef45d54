"""How hard Hypothesis looks: quick by default, `HYPOTHESIS_PROFILE=thorough` for more."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_SLOW_MACHINE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile("quick", deadline=None, suppress_health_check=_SLOW_MACHINE)
settings.register_profile("thorough", deadline=None, max_examples=2_000, suppress_health_check=_SLOW_MACHINE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
