"""The benchmark of the engine against what users would pick instead; `ops/bench/engine --help` says how it is run."""
