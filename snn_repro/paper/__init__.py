"""The paper: its rows, tables, figures and the statistics behind them."""
