"""Ideas outside snn_repro; CONTRIBUTING.md and docs/extending.md have more of them."""
