"""The parts of ops/bench/pipeline."""
