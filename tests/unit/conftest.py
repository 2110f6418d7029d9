"""Hypothesis without a deadline: how long an example takes on a busy machine decides nothing."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("promptmill", deadline=None)
settings.load_profile("promptmill")
