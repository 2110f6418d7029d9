"""What a job is: its batches, states, files, and the upkeep that needs no model. No torch, no typer."""

__version__ = "0.1.0"
