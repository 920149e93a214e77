"""Ideas that live outside of snn_repro; CONTRIBUTING.md has more of them."""
