"""What a run leaves behind, and how runs are stopped, resumed, followed and swept."""
