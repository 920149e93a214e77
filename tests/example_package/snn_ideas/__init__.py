"""Ideas that live outside of snn_repro: one file each, and one yaml under conf/. CONTRIBUTING.md has more of them."""
