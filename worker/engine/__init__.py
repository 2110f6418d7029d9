"""Generation. Imports neither celery nor redis: the engine knows requests and completions, no jobs."""
