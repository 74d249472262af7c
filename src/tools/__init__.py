"""Programs run with python -m; nothing imports them."""
