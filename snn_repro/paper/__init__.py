"""From results to the paper: its rows, tables, figures, statistics, and what a row costs."""
