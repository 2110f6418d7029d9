"""The producer: checks sources, submits jobs, watches them, reads their results. Never imports torch."""

from producer.client import Client, Job

__all__ = ["Client", "Job"]
