"""What people look at: scores and predictions in, one HTML file out that needs no network and no server."""
