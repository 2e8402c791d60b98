"""What `gankern bench` runs: cases from real networks, the correctness gate, timing, and compile-time facts."""
