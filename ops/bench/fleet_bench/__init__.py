"""What ops/bench/fleet is made of."""
