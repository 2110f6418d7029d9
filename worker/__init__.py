"""The worker: takes batches of prompts from the queue, generates their text, commits the results."""
