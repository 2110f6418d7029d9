"""``promptmill exporter``: metrics of jobs, backlog and workers, and the upkeep where no worker lives."""
