"""What ops/bench/ledger is made of."""
